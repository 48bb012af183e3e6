//! Opening.

use super::bits::{Geometry, autoclear, incompatible};
use super::header::{Header, LUKS, NO_ENCRYPTION};
use super::refcount::Refcounts;
use super::tables::Tables;
use super::words::read_words;
use super::{L1, Meta, Qcow2, as_block_error};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::format::{open_backing, referred_file};
use crate::image::{DiskImage, ImageResult, Repair};
use crate::luks::open_inside;
use crate::options::{BackingPolicy, OpenOptions};
use crate::raw::RawFile;
use parking_lot::{Mutex, RwLock};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Memory for L1 and L2 tables when nothing is said: what maps the whole disk, at most this. Refcounts have a quarter of
/// what L2 tables have: only changes of the mapping need them.
const CACHE_MAX: u64 = 32 << 20;
const CACHE_MIN: u64 = 1 << 20;

impl Qcow2 {
    /// Opens an image whose file is open.
    pub(crate) fn open(file: Arc<dyn BlockBackend>, path: &Path, options: &OpenOptions) -> ImageResult<Self> {
        let header = read_header(&*file, path)?;
        if header.has(incompatible::CORRUPT) && !options.read_only && !options.for_check {
            let what =
                "a repair before it is written to (it is marked as corrupt): vireo image check --repair all";
            return Err(BlockError::unsupported(path, what));
        }
        let data = match &header.data_file {
            Some(name) => open_data_file(path, name, options)?,
            None => file.clone(),
        };
        let data = decrypted(&header, &*file, data, path, options)?;
        let backing = match &header.backing {
            Some(name) => open_backing(path, name, header.backing_format.as_deref(), options)?,
            None => None,
        };
        let image = Self::assemble(header, file, data, backing, path, options);
        image.load()?;
        if !options.read_only && !options.for_check {
            image.enter()?;
        }
        Ok(image)
    }

    /// The image of a header, with nothing loaded yet.
    pub(super) fn assemble(
        header: Header,
        file: Arc<dyn BlockBackend>,
        data: Arc<dyn BlockBackend>,
        backing: Option<Arc<dyn DiskImage>>,
        path: &Path,
        options: &OpenOptions,
    ) -> Self {
        let geometry = Geometry {
            cluster_bits: header.cluster_bits,
            extended: header.extended_l2(),
            version: header.version,
            external: header.data_file.is_some(),
        };
        let covering = (header.size >> header.cluster_bits).saturating_mul(8 * geometry.words() as u64);
        let most = CACHE_MAX.saturating_sub(u64::from(header.l1_entries) * 8).max(CACHE_MIN);
        let cache = options.metadata_cache.unwrap_or(covering.clamp(CACHE_MIN, most));
        let refcounts = Refcounts::new(
            file.clone(),
            path.to_owned(),
            header.cluster_bits,
            header.refcount_order,
            cache / 4,
        );
        Qcow2 {
            path: path.to_owned(),
            file,
            data,
            backing,
            geometry,
            backing_named: header.backing.is_some(),
            raw_external: header.raw_data_file(),
            compression: header.compression,
            encrypted: header.crypt_method != NO_ENCRYPTION,
            locked: header.crypt_method != NO_ENCRYPTION && options.passphrase.is_none(),
            read_only: options.read_only,
            keep_discarded: options.keep_discarded,
            size: AtomicU64::new(header.size),
            l1: RwLock::default(),
            tables: Tables::new(geometry.cluster(), cache),
            flights: super::Flights::default(),
            gate: RwLock::new(()),
            meta: Mutex::new(Meta { header, refcounts, frees: Vec::new(), compressed_end: 0 }),
            flushing: Mutex::new(()),
            decompressed: Mutex::default(),
            bitmaps: Mutex::default(),
            recording: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            written: AtomicBool::new(false),
        }
    }

    /// Reads the L1 table and the refcount table.
    pub(super) fn load(&self) -> ImageResult<()> {
        let mut meta = self.meta.lock();
        let (offset, clusters) = (meta.header.refcount_table_offset, meta.header.refcount_table_clusters);
        self.tell("reading the refcount table", meta.refcounts.load(offset, clusters))?;
        let (offset, entries) = (meta.header.l1_offset, meta.header.l1_entries);
        let entries = read_words(&*self.file, offset, entries as usize);
        let entries = self.tell("reading the L1 table", entries)?;
        *self.l1.write() = L1::new(offset, entries);
        Ok(())
    }

    /// Makes a loaded image ready for writing.
    fn enter(&self) -> ImageResult<()> {
        let (dirty, unknown) = {
            let meta = self.meta.lock();
            (meta.header.has(incompatible::DIRTY), meta.header.autoclear & !autoclear::KNOWN)
        };
        if dirty {
            // It was not closed: refcounts are counted again.
            let report = self.check_and_repair(Repair::All)?;
            if report.corruptions > 0 || report.check_errors > 0 {
                let what =
                    "a repair by hand: it was not closed in order, and its metadata contradict themselves";
                return Err(BlockError::unsupported(&self.path, what));
            }
        }
        if unknown != 0 {
            let mut meta = self.meta.lock();
            meta.header.autoclear &= autoclear::KNOWN;
            let header = meta.header.clone();
            self.tell("writing the header", self.write_header(&header))?;
        }
        self.load_bitmaps()
    }
}

/// `data` with what decrypts it, if the image is encrypted. Who only checks the image needs no passphrase.
fn decrypted(
    header: &Header,
    file: &dyn BlockBackend,
    data: Arc<dyn BlockBackend>,
    path: &Path,
    options: &OpenOptions,
) -> ImageResult<Arc<dyn BlockBackend>> {
    match (header.crypt_method, header.encryption) {
        (NO_ENCRYPTION, _) => Ok(data),
        _ if options.for_check && options.passphrase.is_none() => Ok(data),
        (LUKS, Some(place)) => {
            let passphrase = options.passphrase.as_deref();
            Ok(Arc::new(open_inside(file, place, data, path, passphrase, options.key_limits)?))
        }
        (LUKS, None) => Err(BlockError::metadata(
            path,
            32,
            "crypt_method",
            "is LUKS, but no extension says where its header is",
        )),
        _ => Err(BlockError::unsupported(
            path,
            "decryption of the old kind (AES-CBC without key slots); convert the image with: qemu-img convert",
        )),
    }
}

pub(super) fn read_header(file: &dyn BlockBackend, path: &Path) -> ImageResult<Header> {
    let size = file.size();
    let mut head = vec![0; size.min(1 << 21) as usize];
    let short = head.len().min(1 << 16);
    file.read_bytes(0, &mut head[..short])
        .map_err(|error| as_block_error(error, path, "reading the header"))?;
    if let Some(bits @ 17..=21) = head.get(23) {
        // Extensions may go on up to the end of a large cluster.
        let end = head.len().min(1 << bits);
        let rest = &mut head[short..end.max(short)];
        file.read_bytes(short as u64, rest)
            .map_err(|error| as_block_error(error, path, "reading the header"))?;
    }
    let bits = head.get(23).copied().unwrap_or(0).clamp(9, 21);
    let end = head.len().min(1 << bits);
    Header::parse(&head[..end], size, path)
}

fn open_data_file(path: &Path, name: &str, options: &OpenOptions) -> ImageResult<Arc<dyn BlockBackend>> {
    if options.backing == BackingPolicy::Ignore && !options.read_only {
        let other = name.to_owned();
        let problem = "its data are there, and no other file may be opened".to_owned();
        return Err(BlockError::Reference { path: path.to_owned(), other, problem });
    }
    let file = referred_file(path, name, options)?;
    Ok(Arc::new(RawFile::open_storage(&file, options)?))
}
