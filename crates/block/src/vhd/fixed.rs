//! Fixed images: the disk's bytes, then the footer.

use super::footer::{FOOTER, Footer};
use crate::backend::{BlockBackend, Capabilities, Extent, SECTOR_SIZE};
use crate::buffers::len;
use crate::error::BlockError;
use crate::image::{CheckReport, DiskImage, ImageInfo, ImageResult, Repair};
use parking_lot::Mutex;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A fixed image.
pub(super) struct VhdFixed {
    file: Arc<dyn BlockBackend>,
    path: PathBuf,
    footer: Mutex<Footer>,
    size: AtomicU64,
}

impl VhdFixed {
    /// The disk in front of a footer at `footer_at`.
    pub fn new(
        file: Arc<dyn BlockBackend>,
        path: &Path,
        footer: Footer,
        footer_at: u64,
    ) -> ImageResult<Self> {
        let size = footer.size;
        if size > footer_at {
            let problem =
                format!("is {size} bytes, but the file has only {footer_at} in front of the footer");
            return Err(BlockError::metadata(path, footer_at + 48, "current size", problem));
        }
        Ok(VhdFixed { file, path: path.to_owned(), footer: Mutex::new(footer), size: AtomicU64::new(size) })
    }
}

impl BlockBackend for VhdFixed {
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
        let mut footer = self.footer.lock();
        let old = self.size();
        if size < old || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::new(ErrorKind::InvalidInput, "a vhd image can only grow, by whole sectors"));
        }
        let new = footer.resized(size);
        if new.size > super::footer::SIZE_MAX {
            return Err(Error::new(ErrorKind::FileTooLarge, "a vhd image has at most 2040 GiB"));
        }
        // The new footer is durable before the old one goes.
        let old_end = self.file.size();
        self.file.write_bytes(new.size, &new.encode())?;
        self.file.flush()?;
        self.file.write_zeroes(old, old_end.min(new.size).saturating_sub(old), false)?;
        self.file.flush()?;
        self.size.store(new.size, Ordering::Release);
        *footer = new;
        Ok(())
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        self.file.block_status(offset, len)
    }
}

impl DiskImage for VhdFixed {
    fn info(&self) -> ImageResult<ImageInfo> {
        let mut info = ImageInfo {
            filename: self.path.clone(),
            format: "vpc".to_owned(),
            virtual_size: self.size(),
            actual_size: crate::raw::actual_size(&self.path).unwrap_or(self.file.size()),
            ..ImageInfo::default()
        };
        super::describe(&mut info, &self.footer.lock());
        Ok(info)
    }

    fn check(&self, _repair: Repair) -> ImageResult<CheckReport> {
        let blocks = self.size().div_ceil(SECTOR_SIZE);
        Ok(CheckReport {
            total_clusters: blocks,
            allocated_clusters: blocks,
            image_end_offset: self.size() + FOOTER,
            ..CheckReport::default()
        })
    }

    fn cluster_size(&self) -> u64 {
        SECTOR_SIZE
    }

    fn set_backing(&self, backing: Option<(&str, &str)>) -> ImageResult<()> {
        match backing {
            None => Ok(()),
            Some(_) => Err(BlockError::unsupported(&self.path, "a differencing image for a backing file")),
        }
    }

    fn make_empty(&self) -> ImageResult<()> {
        Err(BlockError::unsupported(&self.path, "to become empty, which fixed images cannot"))
    }
}
