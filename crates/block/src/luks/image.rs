//! The opened container: a disk whose sectors are encrypted on their way.

use super::sectors::Sectors;
use super::{Header, Lock};
use crate::backend::{BlockBackend, Capabilities, Extent, SECTOR_SIZE};
use crate::error::BlockError;
use crate::image::{CheckReport, DiskImage, ImageInfo, ImageResult, Repair};
use crate::options::OpenOptions;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An opened container.
pub struct LuksImage {
    file: Arc<dyn BlockBackend>,
    path: PathBuf,
    header: Header,
    /// Where the content is.
    lock: Lock,
    /// The content; nothing without a passphrase, when only the header is of interest.
    sectors: Option<Sectors>,
    size: AtomicU64,
    read_only: bool,
}

impl LuksImage {
    /// Opens the container in `file` with the passphrase of the options. Without a passphrase only what the header
    /// says can be had, and only for a check.
    pub fn open(file: Arc<dyn BlockBackend>, path: &Path, options: &OpenOptions) -> ImageResult<Self> {
        let header = Header::read(&*file, path)?;
        let lock = header.lock(path)?;
        let sectors = match &options.passphrase {
            Some(passphrase) => {
                let (key, _) = header.unlock(&*file, path, passphrase, options.key_limits)?;
                Some(Sectors::new(file.clone(), lock.open(path, &key)?))
            }
            None if options.for_check && options.read_only => None,
            None => return Err(super::needs_passphrase(path)),
        };
        let room = file.size().checked_sub(lock.start).ok_or_else(|| {
            let problem = format!("is {:#x}, behind the file's end", lock.start);
            BlockError::metadata(path, 0, "offset of the content", problem)
        })?;
        let size = lock.len.unwrap_or(room);
        if size > room {
            let problem = format!("is {size} bytes, but the file has room for {room}");
            return Err(BlockError::metadata(path, 0, "size of the content", problem));
        }
        let size = AtomicU64::new(size / lock.sector * lock.sector);
        let path = path.to_owned();
        Ok(LuksImage { file, path, header, lock, sectors, size, read_only: options.read_only })
    }

    fn sectors(&self) -> Result<&Sectors> {
        let locked = || Error::new(ErrorKind::PermissionDenied, "the disk was opened without its passphrase");
        self.sectors.as_ref().ok_or_else(locked)
    }

    fn writable(&self) -> Result<&Sectors> {
        if self.is_read_only() { Err(ErrorKind::ReadOnlyFilesystem.into()) } else { self.sectors() }
    }
}

impl BlockBackend for LuksImage {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn capabilities(&self) -> Capabilities {
        let read_only = self.read_only || self.file.is_read_only();
        Capabilities { read_only, discard: false, zero_alignment: self.lock.sector, growable: false }
    }

    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check_range(offset, buffers.iter().map(|buffer| buffer.len() as u64).sum())?;
        self.sectors()?.read(offset, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.check_range(offset, buffers.iter().map(|buffer| buffer.len() as u64).sum())?;
        self.writable()?.write(offset, buffers)
    }

    fn flush(&self) -> Result<()> {
        self.file.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.writable()?;
        self.check_range(offset, len).map(|_| ())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        self.check_range(offset, len)?;
        self.writable()?.zero(offset, len)
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.writable()?;
        let old = self.size();
        if !size.is_multiple_of(self.lock.sector.max(SECTOR_SIZE)) || self.lock.len.is_some() {
            let what = "the size is fixed, or no multiple of the sector size";
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let end = self.lock.start.checked_add(size).ok_or(ErrorKind::InvalidInput)?;
        self.file.resize(end)?;
        self.size.store(size, Ordering::Release);
        // New bytes of the file would be decrypted to noise.
        if size > old { self.write_zeroes(old, size - old, false) } else { Ok(()) }
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        Ok(Extent::data(offset, len, None))
    }
}

impl DiskImage for LuksImage {
    fn info(&self) -> ImageResult<ImageInfo> {
        let mut info = ImageInfo {
            filename: self.path.clone(),
            format: "luks".to_owned(),
            virtual_size: self.size(),
            actual_size: crate::raw::actual_size(&self.path).unwrap_or(self.file.size()),
            encrypted: true,
            ..ImageInfo::default()
        };
        let (version, cipher) = match &self.header {
            Header::One(header) => (1, header.cipher()),
            Header::Two(header) => (2, header.cipher()),
        };
        let slots: Vec<String> =
            self.header.slots().into_iter().map(|slot| format!("{}: {}", slot.number, slot.kdf)).collect();
        let specific = &mut info.format_specific;
        specific.insert("version".into(), version.into());
        specific.insert("encryption".into(), cipher.into());
        specific.insert("payload-offset".into(), self.lock.start.into());
        specific.insert("slots".into(), slots.into());
        Ok(info)
    }

    fn check(&self, _repair: Repair) -> ImageResult<CheckReport> {
        Err(BlockError::unsupported(&self.path, "no check: what can be checked was when it was opened"))
    }

    fn cluster_size(&self) -> u64 {
        self.lock.sector
    }

    fn set_backing(&self, backing: Option<(&str, &str)>) -> ImageResult<()> {
        match backing {
            None => Ok(()),
            Some(_) => {
                Err(BlockError::unsupported(&self.path, "a backing file, which luks containers cannot have"))
            }
        }
    }

    fn make_empty(&self) -> ImageResult<()> {
        Err(BlockError::unsupported(&self.path, "to become empty, which luks containers cannot"))
    }
}
