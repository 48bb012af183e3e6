//! The header and its extensions (qcow2 specification, "Header" and "Header extensions").

use super::bits::{autoclear, compatible, incompatible};
use crate::error::BlockError;
use crate::image::ImageResult;
use std::path::Path;

/// First bytes of an image: `QFI` and 0xfb.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Method of encryption: none.
pub(super) const NO_ENCRYPTION: u32 = 0;
/// Method of encryption: LUKS, with its header in the image.
pub(super) const LUKS: u32 = 2;
/// Length of a version 2 header.
const V2_LENGTH: usize = 72;
/// Length of the header we write in version 3: with the compression type, padded to 8.
pub(super) const V3_LENGTH: usize = 112;
/// Largest L1 table in bytes, refcount table in bytes, and number of snapshots: all that is allocated before a byte
/// of it is known stays below 64 MiB.
pub(super) const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
const SNAPSHOTS_MAX: u32 = 65536;
const BACKING_NAME_MAX: u32 = 1023;

mod extension {
    pub const END: u32 = 0;
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    pub const BITMAPS: u32 = 0x2385_2875;
    pub const ENCRYPTION: u32 = 0x0537_be77;
    pub const DATA_FILE: u32 = 0x4441_5441;
}

/// Bitmaps extension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BitmapsExtension {
    pub count: u32,
    pub directory_size: u64,
    pub directory_offset: u64,
}

/// A header, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub crypt_method: u32,
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    /// 0 zlib, 1 zstd.
    pub compression: u8,
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    pub data_file: Option<String>,
    pub bitmaps: Option<BitmapsExtension>,
    /// Offset and length of the LUKS header.
    pub encryption: Option<(u64, u64)>,
    /// Names of feature bits, as stored.
    pub feature_names: Vec<u8>,
    /// Extensions of unknown meaning, kept as they are.
    pub unknown: Vec<(u32, Vec<u8>)>,
    /// Fields beyond those we know, kept as they are.
    pub more_fields: Vec<u8>,
}

/// Reads numbers out of a byte string; beyond its end they are 0.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
    }
    fn u64(&self, at: usize) -> u64 {
        self.0.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
    }
}

impl Header {
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub fn has(&self, incompatible: u64) -> bool {
        self.incompatible & incompatible != 0
    }

    /// Clusters of 16-byte L2 entries ("extended").
    pub fn extended_l2(&self) -> bool {
        self.has(incompatible::EXTENDED_L2)
    }

    /// Disk bytes that one L2 table maps, as a power of two.
    pub fn l2_span_bits(&self) -> u32 {
        self.cluster_bits * 2 - if self.extended_l2() { 4 } else { 3 }
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub fn l1_needed(&self, size: u64) -> u64 {
        size.div_ceil(1 << self.l2_span_bits())
    }

    /// Reads the header out of the file's first cluster (or what there is of it).
    pub fn parse(head: &[u8], file_size: u64, path: &Path) -> ImageResult<Header> {
        let wrong =
            |offset: u64, field, problem: String| Err(BlockError::metadata(path, offset, field, problem));
        let fields = Fields(head);
        if !head.starts_with(&MAGIC) {
            return wrong(0, "magic", "is not that of a qcow2 image".into());
        }
        let version = fields.u32(4);
        if !(2..=3).contains(&version) {
            return wrong(4, "version", format!("is {version}; 2 and 3 are known"));
        }
        if head.len() < V2_LENGTH || (version == 3 && head.len() < 104) {
            return wrong(0, "header", format!("ends after {} bytes", head.len()));
        }
        let mut header = Header {
            version,
            cluster_bits: fields.u32(20),
            size: fields.u64(24),
            crypt_method: fields.u32(32),
            l1_entries: fields.u32(36),
            l1_offset: fields.u64(40),
            refcount_table_offset: fields.u64(48),
            refcount_table_clusters: fields.u32(56),
            snapshots: fields.u32(60),
            snapshots_offset: fields.u64(64),
            refcount_order: 4,
            ..Header::default()
        };
        if !(9..=21).contains(&header.cluster_bits) {
            return wrong(20, "cluster_bits", format!("is {}; 9 to 21 are possible", header.cluster_bits));
        }
        let mut length = V2_LENGTH;
        if version == 3 {
            header.incompatible = fields.u64(72);
            header.compatible = fields.u64(80);
            header.autoclear = fields.u64(88);
            header.refcount_order = fields.u32(96);
            length = fields.u32(100) as usize;
            if length < 104 || !length.is_multiple_of(8) || length as u64 > header.cluster_size() {
                return wrong(100, "header_length", format!("is {length}"));
            }
            if length > head.len() {
                return wrong(100, "header_length", format!("is {length}, beyond the end of the file"));
            }
            if length > 104 {
                header.compression = head[104];
            }
            header.more_fields = head.get(V3_LENGTH..length).unwrap_or_default().to_vec();
        }
        header.check_fields(path, file_size)?;
        header.parse_backing(head, path, length)?;
        header.parse_extensions(head, path, length)?;
        if header.has(incompatible::DATA_FILE) && header.data_file.is_none() {
            return wrong(72, "incompatible_features", "say external data file, but none is named".into());
        }
        Ok(header)
    }

    fn check_fields(&self, path: &Path, file_size: u64) -> ImageResult<()> {
        let wrong =
            |offset: u64, field, problem: String| Err(BlockError::metadata(path, offset, field, problem));
        let cluster = self.cluster_size();
        let unknown = self.incompatible & !incompatible::KNOWN;
        if unknown != 0 {
            return Err(BlockError::unsupported(path, format!("unknown incompatible features {unknown:#x}")));
        }
        if self.refcount_order > 6 {
            return wrong(96, "refcount_order", format!("is {}; 0 to 6 are possible", self.refcount_order));
        }
        if self.crypt_method > LUKS {
            return wrong(32, "crypt_method", format!("is {}; 0 to 2 are known", self.crypt_method));
        }
        if self.compression > 1 || (self.compression != 0) != self.has(incompatible::COMPRESSION) {
            let problem =
                format!("is {}, which its feature bit does not fit or nobody knows", self.compression);
            return wrong(104, "compression_type", problem);
        }
        if self.extended_l2() && self.cluster_bits < 14 {
            return wrong(20, "cluster_bits", "is too small for sub-clusters; 14 is the least".into());
        }
        if self.size > i64::MAX as u64 {
            return wrong(24, "size", format!("is {:#x}, beyond 8 EiB", self.size));
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > L1_BYTES_MAX {
            return wrong(
                36,
                "l1_size",
                format!("is {}; {} are possible", self.l1_entries, L1_BYTES_MAX / 8),
            );
        }
        if u64::from(self.l1_entries) < self.l1_needed(self.size) {
            let problem = format!(
                "is {}; a disk of {} bytes needs {}",
                self.l1_entries,
                self.size,
                self.l1_needed(self.size)
            );
            return wrong(36, "l1_size", problem);
        }
        let table = |at, field, offset: u64, bytes: u64| match offset.checked_add(bytes) {
            _ if bytes == 0 => Ok(()),
            Some(end)
                if offset.is_multiple_of(cluster)
                    && offset != 0
                    && end <= file_size.next_multiple_of(cluster) =>
            {
                Ok(())
            }
            _ => wrong(
                at,
                field,
                format!("is {offset:#x}: not a cluster inside the file of {file_size} bytes"),
            ),
        };
        table(40, "l1_table_offset", self.l1_offset, l1_bytes)?;
        let bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        if bytes > REFCOUNT_TABLE_BYTES_MAX.max(cluster) || bytes == 0 {
            let problem =
                format!("is {}; 1 to {} bytes", self.refcount_table_clusters, REFCOUNT_TABLE_BYTES_MAX);
            return wrong(56, "refcount_table_clusters", problem);
        }
        table(48, "refcount_table_offset", self.refcount_table_offset, bytes)?;
        if self.snapshots > SNAPSHOTS_MAX {
            return wrong(60, "nb_snapshots", format!("is {}; {SNAPSHOTS_MAX} are possible", self.snapshots));
        }
        table(64, "snapshots_offset", self.snapshots_offset, u64::from(self.snapshots) * 40)
    }

    fn parse_backing(&mut self, head: &[u8], path: &Path, length: usize) -> ImageResult<()> {
        let fields = Fields(head);
        let (offset, len) = (fields.u64(8), fields.u32(16));
        if offset == 0 || len == 0 {
            return Ok(());
        }
        let wrong = |at, field, problem: String| Err(BlockError::metadata(path, at, field, problem));
        if len > BACKING_NAME_MAX {
            return wrong(16, "backing_file_size", format!("is {len}; {BACKING_NAME_MAX} is the most"));
        }
        let end = offset.checked_add(u64::from(len)).filter(|end| *end <= head.len() as u64);
        let Some(end) = end.filter(|_| offset >= length as u64) else {
            return wrong(8, "backing_file_offset", format!("is {offset:#x}, outside the first cluster"));
        };
        match std::str::from_utf8(&head[offset as usize..end as usize]) {
            Ok(name) if !name.contains('\0') => self.backing = Some(name.to_owned()),
            _ => return wrong(offset, "backing file name", "is no text".into()),
        }
        Ok(())
    }

    fn parse_extensions(&mut self, head: &[u8], path: &Path, length: usize) -> ImageResult<()> {
        let fields = Fields(head);
        let mut at = length;
        // In version 2, zero bytes or the backing file's name may follow the header instead.
        let end = if self.backing.is_some() { fields.u64(8) as usize } else { head.len() };
        while at + 8 <= end {
            let (kind, len) = (fields.u32(at), fields.u32(at + 4) as usize);
            if kind == extension::END {
                break;
            }
            let Some(data) =
                head.get(at + 8..).and_then(|rest| rest.get(..len)).filter(|_| at + 8 + len <= end)
            else {
                let problem = format!("is {len}, beyond the end of the extensions");
                return Err(BlockError::metadata(path, at as u64 + 4, "extension length", problem));
            };
            self.parse_extension(kind, data, path, at as u64)?;
            at += 8 + len.next_multiple_of(8);
        }
        Ok(())
    }

    fn parse_extension(&mut self, kind: u32, data: &[u8], path: &Path, at: u64) -> ImageResult<()> {
        let wrong = |field, problem: String| BlockError::metadata(path, at, field, problem);
        let text = |field| match std::str::from_utf8(data) {
            Ok(text) if text.len() <= 1023 => Ok(Some(text.to_owned())),
            _ => Err(wrong(field, "is no text".into())),
        };
        let fields = Fields(data);
        match kind {
            extension::BACKING_FORMAT => self.backing_format = text("backing file format")?,
            extension::DATA_FILE => self.data_file = text("external data file name")?,
            extension::FEATURE_NAMES => self.feature_names = data.to_vec(),
            extension::ENCRYPTION if data.len() == 16 => {
                let (start, len) = (fields.u64(0), fields.u64(8));
                if start.checked_add(len).is_none() {
                    let problem = format!("is {len:#x} bytes at {start:#x}, beyond the end of any file");
                    return Err(wrong("encryption header", problem));
                }
                self.encryption = Some((start, len));
            }
            extension::ENCRYPTION => {
                return Err(wrong(
                    "encryption header extension",
                    format!("has {} bytes, not 16", data.len()),
                ));
            }
            // Without its autoclear bit, somebody wrote who did not keep the bitmaps.
            extension::BITMAPS if self.autoclear & autoclear::BITMAPS == 0 => {}
            extension::BITMAPS => {
                let bitmaps = BitmapsExtension {
                    count: fields.u32(0),
                    directory_size: fields.u64(8),
                    directory_offset: fields.u64(16),
                };
                let fits = bitmaps.directory_size <= 64 << 20
                    && bitmaps.directory_offset.is_multiple_of(self.cluster_size())
                    && bitmaps.directory_offset != 0
                    && (1..=65535).contains(&bitmaps.count);
                if data.len() != 24 || !fits {
                    return Err(wrong("bitmaps extension", "has an impossible directory".into()));
                }
                self.bitmaps = Some(bitmaps);
            }
            other => self.unknown.push((other, data.to_vec())),
        }
        Ok(())
    }

    /// The first bytes of the file; what follows them up to the cluster's end is zeros.
    pub fn encode(&self, path: &Path) -> ImageResult<Vec<u8>> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&[0; 12]); // backing file: below
        out.extend_from_slice(&self.cluster_bits.to_be_bytes());
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.crypt_method.to_be_bytes());
        out.extend_from_slice(&self.l1_entries.to_be_bytes());
        out.extend_from_slice(&self.l1_offset.to_be_bytes());
        out.extend_from_slice(&self.refcount_table_offset.to_be_bytes());
        out.extend_from_slice(&self.refcount_table_clusters.to_be_bytes());
        out.extend_from_slice(&self.snapshots.to_be_bytes());
        out.extend_from_slice(&self.snapshots_offset.to_be_bytes());
        if self.version == 3 {
            for field in [self.incompatible, self.compatible, self.autoclear] {
                out.extend_from_slice(&field.to_be_bytes());
            }
            out.extend_from_slice(&self.refcount_order.to_be_bytes());
            let length = (V3_LENGTH + self.more_fields.len()) as u32;
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&[self.compression, 0, 0, 0, 0, 0, 0, 0]);
            out.extend_from_slice(&self.more_fields);
        }
        let mut add = |kind: u32, data: &[u8]| {
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&(data.len() as u32).to_be_bytes());
            out.extend_from_slice(data);
            out.resize(out.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &self.backing_format {
            add(extension::BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            add(extension::DATA_FILE, name.as_bytes());
        }
        if let Some((offset, length)) = self.encryption {
            add(extension::ENCRYPTION, &[offset.to_be_bytes(), length.to_be_bytes()].concat());
        }
        if !self.feature_names.is_empty() {
            add(extension::FEATURE_NAMES, &self.feature_names);
        }
        if let Some(bitmaps) = self.bitmaps {
            let mut data = u64::from(bitmaps.count).to_be_bytes().to_vec();
            data.rotate_left(4); // the count, then 4 reserved bytes
            data.extend_from_slice(&bitmaps.directory_size.to_be_bytes());
            data.extend_from_slice(&bitmaps.directory_offset.to_be_bytes());
            add(extension::BITMAPS, &data);
        }
        for (kind, data) in &self.unknown {
            add(*kind, data);
        }
        add(extension::END, &[]);
        if let Some(name) = &self.backing {
            let offset = out.len() as u64;
            out.extend_from_slice(name.as_bytes());
            out[8..16].copy_from_slice(&offset.to_be_bytes());
            out[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        }
        if out.len() as u64 > self.cluster_size() {
            let problem = format!("with extensions and names has {} bytes, more than a cluster", out.len());
            return Err(BlockError::metadata(path, 0, "header", problem));
        }
        Ok(out)
    }

    /// The table of names of the feature bits, for programs that do not know a bit.
    pub fn standard_feature_names() -> Vec<u8> {
        let names: [(u8, u8, &str); 8] = [
            (0, 0, "dirty bit"),
            (0, 1, "corrupt bit"),
            (0, 2, "external data file"),
            (0, 3, "compression type"),
            (0, 4, "extended L2 entries"),
            (1, 0, "lazy refcounts"),
            (2, 0, "bitmaps"),
            (2, 1, "raw external data"),
        ];
        let mut out = Vec::new();
        for (kind, bit, name) in names {
            let start = out.len();
            out.extend_from_slice(&[kind, bit]);
            out.extend_from_slice(name.as_bytes());
            out.resize(start + 48, 0);
        }
        out
    }

    pub fn lazy_refcounts(&self) -> bool {
        self.compatible & compatible::LAZY_REFCOUNTS != 0
    }

    pub fn raw_data_file(&self) -> bool {
        self.data_file.is_some() && self.autoclear & autoclear::RAW_DATA != 0
    }
}
