//! The header of a sparse extent ("Virtual Disk Format 5.0", section "Hosted Sparse Extents").

use crate::backend::BlockBackend;
use crate::image::ImageResult;
use crate::mapped::{Fields, put};
use std::path::Path;

/// Magic number of hosted sparse extents.
pub(super) const MAGIC: &[u8; 4] = b"KDMV";
const NEW_LINES: u32 = 1;
const REDUNDANT: u32 = 2;
const ZEROED_GRAINS: u32 = 4;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;
/// Sectors of the largest compressed grain: 8 MiB, where 64 KiB are usual.
const COMPRESSED_GRAIN_MAX: u64 = 1 << 14;
const DEFLATE: u16 = 1;
/// The directory's offset when it is at the end, and the footer says where.
const AT_END: u64 = u64::MAX;
/// Sectors of a grain of a new extent.
pub(super) const GRAIN: u64 = 128;
/// Entries of a grain table.
const TABLE: u64 = 512;
/// Sectors of the descriptor of a new image.
const DESCRIPTOR_SECTORS: u64 = 20;
/// Where the flag of an extent that was not closed is.
pub(super) const UNCLEAN_AT: u64 = 72;

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    raw: Vec<u8>,
    /// Size in sectors.
    pub capacity: u64,
    /// Sectors of a grain.
    pub grain: u64,
    /// Where the descriptor is, in sectors; 0 for none.
    pub descriptor: u64,
    /// Sectors of the descriptor.
    pub descriptor_len: u64,
    /// Entries of a grain table.
    pub table_len: u64,
    /// Where the redundant directory is, in sectors, if there is one.
    pub redundant: Option<u64>,
    /// Where the directory is, in sectors.
    pub directory: u64,
    /// Sectors in front of the grains.
    pub overhead: u64,
    /// Grains are compressed.
    pub compressed: bool,
    /// An entry can say that a grain is zeros.
    pub zeroed_grains: bool,
    /// It was not closed in order.
    pub unclean: bool,
}

impl Header {
    /// For a new extent.
    pub fn new(capacity: u64, with_descriptor: bool, compressed: bool, zeroed_grains: bool) -> Self {
        let mut raw = vec![0; 512];
        put(&mut raw, 0, MAGIC);
        let version: u32 = if compressed {
            3
        } else if zeroed_grains {
            2
        } else {
            1
        };
        put(&mut raw, 4, &version.to_le_bytes());
        let mut flags = NEW_LINES | REDUNDANT;
        flags |= if compressed { COMPRESSED | MARKERS } else { 0 };
        flags |= if zeroed_grains { ZEROED_GRAINS } else { 0 };
        put(&mut raw, 8, &flags.to_le_bytes());
        put(&mut raw, 73, b"\n \r\n");
        put(&mut raw, 77, &if compressed { DEFLATE } else { 0 }.to_le_bytes());
        let descriptor = u64::from(with_descriptor);
        let descriptor_len = descriptor * DESCRIPTOR_SECTORS;
        let redundant = 1 + descriptor_len;
        let mut header = Header {
            raw,
            capacity,
            grain: GRAIN,
            descriptor,
            descriptor_len,
            table_len: TABLE,
            redundant: Some(redundant),
            directory: 0,
            overhead: 0,
            compressed,
            zeroed_grains,
            unclean: false,
        };
        let one = header.directory_sectors() + header.tables() * header.table_sectors();
        header.directory = redundant + one;
        header.overhead = (header.directory + one).next_multiple_of(GRAIN);
        header
    }

    /// Grain tables that the capacity needs.
    pub fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.grain * self.table_len)
    }

    /// Sectors of a grain table.
    pub fn table_sectors(&self) -> u64 {
        (4 * self.table_len).div_ceil(512)
    }

    /// Sectors of a directory.
    pub fn directory_sectors(&self) -> u64 {
        (4 * self.tables()).div_ceil(512)
    }

    /// Reads the header; when it says that the directory is at the end, the footer instead.
    pub fn read(file: &dyn BlockBackend, path: &Path) -> ImageResult<Self> {
        let fields = Fields::read(file, path, 0, 512, "sparse extent header")?;
        let header = Self::parse(&fields, file.size())?;
        if header.directory != AT_END {
            return Ok(header);
        }
        let at = file.size().saturating_sub(1024) / 512 * 512;
        let fields = Fields::read(file, path, at, 512, "footer")?;
        let footer = Self::parse(&fields, file.size())?;
        fields.require(footer.directory != AT_END, 56, "gdOffset", || {
            "of the footer leads nowhere".to_owned()
        })?;
        let same = footer.capacity == header.capacity && footer.grain == header.grain;
        fields.require(same, 12, "capacity", || "or grainSize differs from the header".to_owned())?;
        Ok(Header { descriptor: header.descriptor, descriptor_len: header.descriptor_len, ..footer })
    }

    fn parse(fields: &Fields<'_>, file_size: u64) -> ImageResult<Self> {
        let magic: [u8; 4] = fields.array(0);
        fields
            .require(&magic == MAGIC, 0, "magicNumber", || format!("is {magic:02x?}; \"KDMV\" is right"))?;
        let version = fields.u32_le(4);
        fields.require((1..=3).contains(&version), 4, "version", || {
            format!("is {version}; 1 to 3 are known")
        })?;
        let flags = fields.u32_le(8);
        let header = Header {
            raw: fields.bytes().to_vec(),
            capacity: fields.u64_le(12),
            grain: fields.u64_le(20),
            descriptor: fields.u64_le(28),
            descriptor_len: fields.u64_le(36),
            table_len: fields.u32_le(44).into(),
            redundant: (flags & REDUNDANT != 0)
                .then(|| fields.u64_le(48))
                .filter(|&start| start != 0 && start != AT_END),
            directory: fields.u64_le(56),
            overhead: fields.u64_le(64),
            compressed: flags & COMPRESSED != 0,
            zeroed_grains: flags & ZEROED_GRAINS != 0,
            unclean: fields.array::<1>(72) != [0],
        };
        if flags & NEW_LINES != 0 {
            let ends: [u8; 4] = fields.array(73);
            fields.require(&ends == b"\n \r\n", 73, "singleEndLineChar", || {
                format!("and what follows is {ends:02x?}: the file was changed as if it were text")
            })?;
        }
        let algorithm = fields.u16_le(77);
        fields.require(!header.compressed || algorithm == DEFLATE, 77, "compressAlgorithm", || {
            format!("is {algorithm}; only 1 (deflate) is known")
        })?;
        fields.require(!header.compressed || flags & MARKERS != 0, 8, "flags", || {
            format!("are {flags:#x}: compressed grains without markers cannot be read")
        })?;
        header.check(fields, file_size)?;
        Ok(header)
    }

    fn check(&self, fields: &Fields<'_>, file_size: u64) -> ImageResult<()> {
        let sectors = file_size / 512;
        let grain = self.grain;
        fields.require(grain.is_power_of_two() && (8..=1 << 17).contains(&grain), 20, "grainSize", || {
            format!("is {grain} sectors; a power of two from 8 to 131072 is right")
        })?;
        // A compressed grain is held in memory as a whole, several times.
        fields.require(!self.compressed || grain <= COMPRESSED_GRAIN_MAX, 20, "grainSize", || {
            format!("is {grain} sectors; compressed grains have at most {COMPRESSED_GRAIN_MAX}")
        })?;
        fields.require(self.capacity <= 1 << 42, 12, "capacity", || {
            format!("is {} sectors; at most 2 PiB is right", self.capacity)
        })?;
        let table = self.table_len;
        fields.require((1..=512).contains(&table) && table.is_power_of_two(), 44, "numGTEsPerGT", || {
            format!("is {table}; a power of two of at most 512 is right")
        })?;
        let length = self.descriptor_len;
        let end = self.descriptor.checked_add(length);
        let right = self.descriptor == 0
            || length <= super::descriptor::DESCRIPTOR_MAX / 512 && end.is_some_and(|e| e <= sectors);
        fields.require(right, 28, "descriptorOffset", || {
            format!("is {} with {length} sectors; at most 1 MiB inside the file is right", self.descriptor)
        })?;
        for (at, name, start) in [(56, "gdOffset", Some(self.directory)), (48, "rgdOffset", self.redundant)] {
            let Some(start) = start.filter(|&start| start != AT_END) else { continue };
            let end = start.checked_add(self.directory_sectors());
            let inside = end.is_some_and(|end| end <= sectors) && (start > 0 || self.capacity == 0);
            fields.require(inside, at, name, || {
                format!(
                    "is sector {start} for {} tables; inside the file, {sectors} sectors, is right",
                    self.tables()
                )
            })?;
        }
        Ok(())
    }

    /// The 512 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = self.raw.clone();
        put(&mut raw, 12, &self.capacity.to_le_bytes());
        put(&mut raw, 20, &self.grain.to_le_bytes());
        put(&mut raw, 28, &self.descriptor.to_le_bytes());
        put(&mut raw, 36, &self.descriptor_len.to_le_bytes());
        put(&mut raw, 44, &(self.table_len as u32).to_le_bytes());
        put(&mut raw, 48, &self.redundant.unwrap_or(0).to_le_bytes());
        put(&mut raw, 56, &self.directory.to_le_bytes());
        put(&mut raw, 64, &self.overhead.to_le_bytes());
        put(&mut raw, UNCLEAN_AT as usize, &[u8::from(self.unclean)]);
        raw
    }
}
