//! Making new images, and the driver.

use super::Qcow2;
use super::bits::{autoclear, compatible, incompatible};
use super::header::{Header, L1_BYTES_MAX, LUKS, MAGIC};
use super::l1::L1;
use super::measure::{Measure, measure};
use crate::backend::{BlockBackend, SECTOR_SIZE};
use crate::error::BlockError;
use crate::format::Driver;
use crate::image::{DiskImage, ImageResult};
use crate::luks::NewContainer;
use crate::options::{CreateOptions, OpenOptions, Preallocation};
use crate::raw::RawFile;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The qcow2 format.
#[derive(Debug)]
pub(crate) struct Qcow2Format;

const OPTIONS: &[(&str, &str)] = &[
    ("cluster_size", "unit of allocation: 512 to 2M, a power of two; 64k"),
    ("compat", "version of the format: 0.10 (v2) or 1.1 (v3)"),
    ("compression_type", "of compressed clusters: zlib or zstd"),
    ("data_file", "name of an external file for the data"),
    ("data_file_raw", "keep the external file a raw image of the disk"),
    ("extended_l2", "sub-clusters: allocate in 32nds of a cluster"),
    ("lazy_refcounts", "write refcounts late; they are counted again after a crash"),
    ("encrypt.format", "luks; encrypt.NAME are its options, see: vireo image create -f luks -o help"),
    ("preallocation", "off (thin), metadata, falloc (lazy), full (eager)"),
    ("refcount_bits", "width of refcounts: 1 to 64, a power of two; 16"),
];

impl Driver for Qcow2Format {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn options(&self) -> &'static [(&'static str, &'static str)] {
        OPTIONS
    }

    fn probe(&self, head: &[u8], _size: u64) -> bool {
        head.starts_with(&MAGIC)
    }

    fn open(
        &self,
        file: Arc<dyn BlockBackend>,
        path: &Path,
        options: &OpenOptions,
    ) -> ImageResult<Arc<dyn DiskImage>> {
        Ok(Arc::new(Qcow2::open(file, path, options)?))
    }

    fn measure(&self, options: CreateOptions, data: &[Range<u64>]) -> ImageResult<Measure> {
        let Plan { header, preallocation, encryption, .. } = plan(Path::new("new image"), options)?;
        let bits = header.cluster_bits;
        let (mut clusters, mut next) = (0, 0);
        for range in data.iter().filter(|range| range.start < range.end) {
            let (first, end) = ((range.start >> bits).max(next), ((range.end - 1) >> bits) + 1);
            clusters += end.saturating_sub(first);
            next = end.max(next);
        }
        let thick = matches!(preallocation, Preallocation::Falloc | Preallocation::Full);
        let data = if thick { header.size.next_multiple_of(1 << bits) } else { clusters << bits };
        let luks = encryption.map_or(0, |new| new.header_len().next_multiple_of(1 << bits));
        let without = measure(&header, data);
        Ok(Measure {
            required: without.required.saturating_add(luks),
            fully_allocated: without.fully_allocated.saturating_add(luks),
        })
    }

    fn create(&self, path: &Path, options: CreateOptions) -> ImageResult<()> {
        let (size, cache) = (options.size, options.cache);
        let Plan { header, preallocation, external, encryption } = plan(path, options)?;
        if let Some(new) = &encryption {
            new.check(path)?;
        }
        let file = Arc::new(RawFile::create_storage(path, cache)?);
        let data: Arc<dyn BlockBackend> = match &external {
            Some(name) => {
                let folder = path.parent().unwrap_or(Path::new(""));
                let data = RawFile::create_storage(&folder.join(name), cache)?;
                data.resize(size).map_err(|source| BlockError::io(path, "making the data file", source))?;
                Arc::new(data)
            }
            None => file.clone(),
        };
        format_file(header, file, data, path, preallocation, encryption.as_ref())
    }
}

/// What a new image shall be.
struct Plan {
    header: Header,
    preallocation: Preallocation,
    /// Name of the external data file.
    external: Option<String>,
    encryption: Option<NewContainer>,
}

/// Writes an empty image into a file.
fn format_file(
    header: Header,
    file: Arc<dyn BlockBackend>,
    data: Arc<dyn BlockBackend>,
    path: &Path,
    preallocation: Preallocation,
    encryption: Option<&NewContainer>,
) -> ImageResult<()> {
    let mut image = Qcow2::assemble(header, file, data, None, path, &OpenOptions::default());
    let size = BlockBackend::size(&image);
    let room = encryption.map(NewContainer::header_len);
    let start = image.tell("writing the first metadata", image.format(room))?;
    if let Some(new) = encryption {
        let encrypted = new.write_inside(&*image.file, start, image.data.clone(), path)?;
        (image.data, image.locked) = (Arc::new(encrypted), false);
    }
    image.preallocate(0, size, preallocation)?;
    image.tell("closing the new image", image.close())
}

impl Qcow2 {
    /// Header, refcounts and L1 table of an empty disk, and room for a header of the encryption; returns where that is.
    fn format(&self, encryption: Option<u64>) -> std::io::Result<u64> {
        let mut meta = self.meta.lock();
        meta.refcounts.start()?;
        let header = meta.header.clone();
        let entries = header.l1_needed(header.size);
        let clusters = (entries * 8).div_ceil(self.cluster()).max(1);
        let start = meta.refcounts.allocate(clusters)?;
        // No header is in the file yet: where the table went first is simply not used.
        if let Some((old, count)) = meta.refcounts.moved.take() {
            let first = old >> self.geometry.cluster_bits;
            for cluster in first..first + u64::from(count) {
                meta.refcounts.sub(cluster)?;
            }
        }
        let mut luks = 0;
        if let Some(len) = encryption {
            let count = len.div_ceil(self.cluster());
            luks = meta.refcounts.allocate(count)? << self.geometry.cluster_bits;
            meta.header.encryption = Some((luks, len));
            self.file.write_zeroes(luks, count << self.geometry.cluster_bits, false)?;
        }
        let mut l1 = self.l1.write();
        *l1 = L1::new(start << self.geometry.cluster_bits, vec![0; entries as usize]);
        let end = (start + clusters) << self.geometry.cluster_bits;
        self.file.write_zeroes(l1.offset, end - l1.offset, false)?;
        meta.header.l1_offset = l1.offset;
        meta.header.l1_entries = entries as u32;
        meta.header.refcount_table_offset = meta.refcounts.table_offset;
        meta.header.refcount_table_clusters = meta.refcounts.table_clusters() as u32;
        drop(l1);
        drop(meta);
        self.flush_metadata(false)?;
        let header = self.meta.lock().header.clone();
        self.write_header(&header)?;
        self.written.store(true, std::sync::atomic::Ordering::Release);
        Ok(luks)
    }
}

/// The container that `encrypt.` options ask for.
fn encryption(options: &mut CreateOptions) -> ImageResult<Option<NewContainer>> {
    let mut inner = CreateOptions { passphrase: options.passphrase.clone(), ..CreateOptions::default() };
    options.options.retain(|name, value| {
        let own = name.strip_prefix("encrypt.");
        if let Some(own) = own {
            inner.options.insert(own.to_owned(), value.clone());
        }
        own.is_none()
    });
    match inner.take("format").as_deref() {
        Some("luks") => {
            let new = NewContainer::plan(&mut inner)?;
            inner.finish("encrypt", OPTIONS)?;
            Ok(Some(new))
        }
        Some(other) => {
            Err(BlockError::option("encrypt.format", format!("{other:?} is unknown; known: luks")))
        }
        None if inner.options.is_empty() => Ok(None),
        None => Err(BlockError::option("encrypt.format", "is needed with options of the encryption: luks")),
    }
}

/// The external data file that options ask for, and whether it is to be readable as a raw image.
fn external_data(options: &mut CreateOptions, header: &mut Header) -> ImageResult<(Option<String>, bool)> {
    let data_file = options.take("data_file");
    let raw = options.take_switch("data_file_raw")?.unwrap_or(false);
    if raw && data_file.is_none() {
        return Err(BlockError::option("data_file_raw", "needs data_file"));
    }
    if data_file.is_some() {
        header.incompatible |= incompatible::DATA_FILE;
        header.autoclear |= if raw { autoclear::RAW_DATA } else { 0 };
        header.data_file.clone_from(&data_file);
    }
    Ok((data_file, raw))
}

/// The header that options ask for.
fn plan(path: &Path, mut options: CreateOptions) -> ImageResult<Plan> {
    let wrong = |what: &str, problem: String| Err(BlockError::option(what, problem));
    let mut header = Header { version: 3, refcount_order: 4, size: options.size, ..Header::default() };
    match options.take("compat").as_deref() {
        None | Some("1.1" | "v3") => {}
        Some("0.10" | "v2") => header.version = 2,
        Some(other) => return wrong("compat", format!("{other:?} is unknown; known: 0.10 (v2), 1.1 (v3)")),
    }
    let extended = options.take_switch("extended_l2")?.unwrap_or(false);
    let cluster = options.take_bytes("cluster_size")?.unwrap_or(65536);
    let least = if extended { 16384 } else { 512 };
    if !cluster.is_power_of_two() || !(least..=2 << 20).contains(&cluster) {
        return wrong("cluster_size", format!("{cluster} is not a power of two from {least} to 2M"));
    }
    header.cluster_bits = cluster.trailing_zeros();
    let width = options.take_bytes("refcount_bits")?.unwrap_or(16);
    if !width.is_power_of_two() || width > 64 {
        return wrong("refcount_bits", format!("{width} is not a power of two from 1 to 64"));
    }
    header.refcount_order = width.trailing_zeros();
    match options.take("compression_type").as_deref() {
        None | Some("zlib") => {}
        Some("zstd") => {
            header.compression = 1;
            header.incompatible |= incompatible::COMPRESSION;
        }
        Some(other) => return wrong("compression_type", format!("{other:?} is unknown; known: zlib, zstd")),
    }
    let (data_file, raw) = external_data(&mut options, &mut header)?;
    if extended {
        header.incompatible |= incompatible::EXTENDED_L2;
    }
    if options.take_switch("lazy_refcounts")?.unwrap_or(false) {
        header.compatible |= compatible::LAZY_REFCOUNTS;
    }
    let encryption = encryption(&mut options)?;
    if encryption.is_some() {
        header.crypt_method = LUKS;
    }
    let preallocation =
        options.take("preallocation").map_or(Ok(Preallocation::Off), |name| Preallocation::named(&name))?;
    options.finish("qcow2", OPTIONS)?;
    if let Some((name, format)) = options.backing.take() {
        if raw || (preallocation != Preallocation::Off && !extended) {
            return wrong(
                "backing file",
                "cannot be combined with preallocation or a raw data file".to_owned(),
            );
        }
        header.backing = Some(name);
        header.backing_format = Some(format);
    }
    let needs_3 = header.incompatible != 0 || header.compatible != 0 || header.refcount_order != 4;
    if header.version == 2 && needs_3 {
        return wrong(
            "compat",
            "0.10 has none of the other options but cluster_size and preallocation".to_owned(),
        );
    }
    if header.version >= 3 {
        header.feature_names = Header::standard_feature_names();
        if header.cluster_bits == 9 {
            // The table of names does not leave room for the names of files in a cluster of 512 bytes.
            header.feature_names.clear();
        }
    }
    if !options.size.is_multiple_of(SECTOR_SIZE) || header.l1_needed(options.size) > L1_BYTES_MAX / 8 {
        return wrong(
            "size",
            format!("{} is no multiple of 512, or too large for the cluster size", options.size),
        );
    }
    header.encode(path)?;
    Ok(Plan { header, preallocation, external: data_file, encryption })
}
