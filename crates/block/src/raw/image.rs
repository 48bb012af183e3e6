//! Raw as a format among the others.

use super::RawFile;
use crate::backend::{BlockBackend, Capabilities, Extent, SECTOR_SIZE};
use crate::buffers::len;
use crate::error::BlockError;
use crate::format::Driver;
use crate::image::{CheckReport, DiskImage, ImageInfo, ImageResult, Repair};
use crate::options::{CreateOptions, OpenOptions, Preallocation};
use crate::qcow2::Measure;
use crate::transfer::Transfer;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The raw format.
#[derive(Debug)]
pub(crate) struct RawFormat;

const OPTIONS: &[(&str, &str)] = &[("preallocation", "off (thin), falloc (lazy), full (eager)")];

impl Driver for RawFormat {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn options(&self) -> &'static [(&'static str, &'static str)] {
        OPTIONS
    }

    fn probe(&self, _head: &[u8], _size: u64) -> bool {
        false
    }

    fn open(
        &self,
        file: Arc<dyn BlockBackend>,
        path: &Path,
        _options: &OpenOptions,
    ) -> ImageResult<Arc<dyn DiskImage>> {
        Ok(Arc::new(RawImage::new(file, path)))
    }

    fn measure(&self, options: CreateOptions, data: &[Range<u64>]) -> ImageResult<Measure> {
        let thick = options.options.get("preallocation").is_some_and(|mode| mode != "off" && mode != "thin");
        let stored = data.iter().map(|range| range.end - range.start).sum();
        Ok(Measure { required: if thick { options.size } else { stored }, fully_allocated: options.size })
    }

    fn create(&self, path: &Path, mut options: CreateOptions) -> ImageResult<()> {
        let mode = options
            .take("preallocation")
            .map_or(Ok(Preallocation::Off), |name| Preallocation::named(&name))?;
        options.finish("raw", OPTIONS)?;
        if options.backing.is_some() {
            return Err(BlockError::unsupported(path, "a backing file, which the raw format cannot have"));
        }
        let file = RawFile::create_storage(path, options.cache)?;
        let action = "taking the disk's space";
        file.allocate(0, options.size, mode).map_err(|source| BlockError::io(path, action, source))
    }
}

/// A raw image of any size: a last sector that is not whole is filled up with zeros.
pub struct RawImage {
    file: Arc<dyn BlockBackend>,
    path: PathBuf,
    size: AtomicU64,
}

impl RawImage {
    /// The disk that a file holds.
    pub fn new(file: Arc<dyn BlockBackend>, path: &Path) -> Self {
        let size = AtomicU64::new(file.size().next_multiple_of(SECTOR_SIZE));
        RawImage { file, path: path.to_owned(), size }
    }
}

impl BlockBackend for RawImage {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { growable: false, ..self.file.capabilities() }
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check_range(offset, len(buffers))?;
        self.file.read_at(offset, buffers)
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.check_range(offset, len(buffers))?;
        self.file.write_at(offset, buffers)
    }
    fn batches(&self) -> bool {
        self.file.batches()
    }
    fn transfer(&self, batch: &mut [&mut Transfer<'_>]) {
        let inside = |transfer: &Transfer<'_>| self.check_range(transfer.offset, transfer.bytes()).is_ok();
        let (mut below, mut wrong): (Vec<_>, Vec<_>) =
            batch.iter_mut().map(|transfer| &mut **transfer).partition(|transfer| inside(transfer));
        self.file.transfer(&mut below);
        wrong.iter_mut().for_each(|transfer| transfer.run(self));
    }
    fn flush(&self) -> Result<()> {
        self.file.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_range(offset, len)?;
        self.file.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.check_range(offset, len)?;
        self.file.write_zeroes(offset, len, unmap)
    }
    fn resize(&self, size: u64) -> Result<()> {
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::new(ErrorKind::InvalidInput, "the size is no multiple of 512"));
        }
        self.file.resize(size)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        self.file.block_status(offset, len)
    }
}

impl DiskImage for RawImage {
    fn info(&self) -> ImageResult<ImageInfo> {
        Ok(ImageInfo {
            filename: self.path.clone(),
            format: "raw".to_owned(),
            virtual_size: self.size(),
            actual_size: actual_size(&self.path).unwrap_or(self.file.size()),
            ..ImageInfo::default()
        })
    }
    fn check(&self, _repair: Repair) -> ImageResult<CheckReport> {
        Err(BlockError::unsupported(&self.path, "no check: a raw image has no metadata"))
    }
    fn cluster_size(&self) -> u64 {
        SECTOR_SIZE
    }
    fn set_backing(&self, backing: Option<(&str, &str)>) -> ImageResult<()> {
        match backing {
            None => Ok(()),
            Some(_) => {
                Err(BlockError::unsupported(&self.path, "a backing file, which raw images cannot have"))
            }
        }
    }
    fn make_empty(&self) -> ImageResult<()> {
        Err(BlockError::unsupported(&self.path, "to become empty, which raw images cannot"))
    }
}

/// Bytes a file takes on its file system.
pub(crate) fn actual_size(path: &Path) -> ImageResult<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.metadata().map_err(|source| BlockError::io(path, "asking for its size", source))?;
    Ok(metadata.blocks() * 512)
}
