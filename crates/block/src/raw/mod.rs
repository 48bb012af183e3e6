//! Raw files and block devices.
#![expect(unsafe_code, reason = "vectored positional I/O and fallocate are system calls")]

mod direct;
mod image;
mod rings;
#[cfg(test)]
mod tests;

use direct::Direct;
pub use image::RawImage;
pub(crate) use image::{RawFormat, actual_size};
use rings::Rings;

use crate::backend::{BlockBackend, Capabilities, Extent, SECTOR_SIZE};
use crate::buffers::len;
use crate::error::BlockError;
use crate::lock;
use crate::lvm::{Activation, VolumeName};
use crate::options::{Aio, CacheMode, OpenOptions, Preallocation};
use crate::transfer::{Buffers, Transfer};
use std::fs::File;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A file or block device: byte `n` of the disk is byte `n` of the file.
///
/// Opened as a disk ([`RawFile::open`]) it has a fixed size, and what leaves it is an error. Opened as the file below a
/// format ([`RawFile::open_storage`]) it grows with what is written to it.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    size: AtomicU64,
    read_only: bool,
    growable: bool,
    keep_discarded: bool,
    cache: CacheMode,
    /// The same file without the page cache, for modes that bypass it.
    direct: Option<Direct>,
    rings: Option<Rings>,
    /// The disk on its file system takes no space for zeros.
    regular: bool,
    /// A flush failed: no later one can promise anything.
    flush_failed: AtomicBool,
    /// What keeps its device there; dropped after the file.
    _activation: Option<Activation>,
}

impl RawFile {
    /// Opens and locks a raw disk.
    pub fn open(path: &Path, read_only: bool) -> std::result::Result<Self, BlockError> {
        Self::open_disk(path, &OpenOptions { read_only, ..OpenOptions::default() })
    }

    /// Opens and locks a raw disk with more options.
    pub fn open_disk(path: &Path, options: &OpenOptions) -> std::result::Result<Self, BlockError> {
        let mut file = Self::open_storage(path, options)?;
        let size = *file.size.get_mut();
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            let problem = if size == 0 { "empty" } else { "no multiple of 512" };
            let right = size.max(1).next_multiple_of(SECTOR_SIZE);
            return Err(BlockError::Size { path: path.to_owned(), size, problem, right });
        }
        file.growable = false;
        Ok(file)
    }

    /// Opens and locks the file below a format. It may have any size.
    pub fn open_storage(path: &Path, options: &OpenOptions) -> std::result::Result<Self, BlockError> {
        let (path, activation) = VolumeName::place(path)?;
        let path = path.as_path();
        let own = path.to_owned();
        let read_only = options.read_only;
        let opened = File::options().read(true).write(!read_only).open(path);
        let file = match opened {
            Ok(file) => file,
            Err(source) if path.is_dir() => {
                drop(source);
                return Err(BlockError::NotADisk { path: own, what: "a directory" });
            }
            Err(source) => {
                let read_only_file = !read_only && File::open(path).is_ok();
                let hint =
                    if read_only_file { " for writing; add readonly=on to use it read-only" } else { "" };
                return Err(BlockError::Open { path: own, hint, source });
            }
        };
        Ok(RawFile { _activation: activation, ..Self::adopt(file, path, options)? })
    }

    /// Makes an empty file, or empties the one that is there, and opens it as the file below a format. A block device
    /// stays as it is.
    pub fn create_storage(path: &Path, cache: CacheMode) -> std::result::Result<Self, BlockError> {
        let (path, activation) = VolumeName::place(path)?;
        let path = path.as_path();
        let failed = |source| BlockError::Open { path: path.to_owned(), hint: " for a new image", source };
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        // What is written to make an image is little, and flushed at its end.
        let cache = if cache.bypasses_host() { CacheMode::WriteBack } else { cache };
        let options = OpenOptions { cache, ..OpenOptions::default() };
        let storage = RawFile { _activation: activation, ..Self::adopt(file, path, &options)? };
        if storage.regular {
            // Only now that it is locked.
            storage.file.set_len(0).map_err(failed)?;
            storage.size.store(0, Ordering::Release);
        }
        Ok(storage)
    }

    fn adopt(mut file: File, path: &Path, options: &OpenOptions) -> std::result::Result<Self, BlockError> {
        let own = path.to_owned();
        let failed = |source| BlockError::Open { path: path.to_owned(), hint: "", source };
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() { "a directory" } else { "neither file nor block device" };
            return Err(BlockError::NotADisk { path: own, what });
        }
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if !options.ignore_locks && !lock::acquire(&file, !options.read_only).map_err(failed)? {
            return Err(BlockError::InUse { path: own });
        }
        let regular = kind.is_file();
        let direct = options.cache.bypasses_host().then(|| Direct::open(path, &file, options.read_only));
        let direct = direct.transpose()?;
        Ok(RawFile {
            file,
            size: AtomicU64::new(size),
            read_only: options.read_only,
            growable: regular,
            keep_discarded: options.keep_discarded,
            cache: options.cache,
            direct,
            rings: rings(options, path)?,
            regular,
            flush_failed: AtomicBool::new(false),
            _activation: None,
        })
    }

    /// Bytes the file takes on its file system.
    pub fn actual_size(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Takes space for a range, growing the file where it ends earlier.
    pub fn allocate(&self, offset: u64, len: u64, mode: Preallocation) -> Result<()> {
        let end = offset.checked_add(len).ok_or(ErrorKind::InvalidInput)?;
        match mode {
            Preallocation::Off | Preallocation::Metadata => {
                if self.size() < end {
                    self.file.set_len(end)?;
                }
            }
            Preallocation::Falloc if len > 0 => match self.fallocate(0, offset, len) {
                Err(error) if is_unsupported(&error) => self.write_zero_bytes(offset, len)?,
                result => result?,
            },
            Preallocation::Falloc => {}
            Preallocation::Full => self.write_zero_bytes(offset, len)?,
        }
        self.size.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    /// The bytes of a request that the file has; the rest reads as zeros.
    fn stored(&self, offset: u64, len: u64) -> u64 {
        self.size().saturating_sub(offset).min(len)
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if self.growable && i64::try_from(end).is_ok() => Ok(()),
            _ => self.check_range(offset, len).map(drop),
        }
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        self.check(offset, len)
    }

    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        let change = || {
            // SAFETY: numbers only; the range was checked against the size.
            let done = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, len as i64) };
            if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
        };
        match &self.direct {
            Some(direct) => direct.change(offset..offset.saturating_add(len), change),
            None => change(),
        }
    }

    /// Writes without looking at the size.
    fn put(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        match &self.direct {
            Some(direct) => direct.write(offset, buffers, &self.file, self.size()),
            None => write_all(&self.file, offset, buffers),
        }
    }
}

/// Why the host gives no io_uring; `None` where it does.
pub fn io_uring_refusal() -> Option<Error> {
    Rings::new().err()
}

fn rings(options: &OpenOptions, path: &Path) -> std::result::Result<Option<Rings>, BlockError> {
    match options.aio {
        Aio::Auto if options.cache.bypasses_host() => Ok(Rings::new().ok()),
        Aio::Auto | Aio::Threads => Ok(None),
        Aio::IoUring => match Rings::new() {
            Ok(rings) => Ok(Some(rings)),
            Err(source) => {
                let hint = " with io_uring, which this host refuses: use aio=threads";
                Err(BlockError::Open { path: path.to_owned(), hint, source })
            }
        },
    }
}

/// Most buffers a system call takes (POSIX IOV_MAX on Linux).
const VECTORS_MAX: usize = 1024;

fn is_unsupported(error: &Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL | libc::ENODEV)
    )
}

impl BlockBackend for RawFile {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: self.read_only,
            discard: true,
            zero_alignment: 4096,
            growable: self.growable,
        }
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check(offset, len)?;
        let end = offset + len;
        let size = self.size();
        if !self.regular || len == 0 {
            return Ok(Extent::data(offset, len, Some(offset)));
        }
        if offset >= size {
            return Ok(Extent::zero(offset, len));
        }
        let seek = |whence| {
            // SAFETY: numbers only. All transfers name their offset, so that the file's position means nothing.
            let at = unsafe { libc::lseek(self.file.as_raw_fd(), offset as i64, whence) };
            if at < 0 { Err(Error::last_os_error()) } else { Ok(at as u64) }
        };
        let data = match seek(libc::SEEK_DATA) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => end,
            Err(error) if is_unsupported(&error) => offset,
            result => result?.min(end),
        };
        if data > offset {
            return Ok(Extent { offset: Some(offset), ..Extent::zero(offset, data - offset) });
        }
        let hole = match seek(libc::SEEK_HOLE) {
            Err(error) if is_unsupported(&error) => end.min(size),
            result => result?.min(end),
        };
        Ok(Extent::data(offset, hole.max(offset + 1) - offset, Some(offset)))
    }

    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check(offset, len(buffers))?;
        let left = match &self.direct {
            Some(direct) => direct.read(offset, buffers)?,
            None => read_up_to(&self.file, offset, buffers, 1)?,
        };
        if left.is_empty() {
            return Ok(());
        }
        if !self.growable {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        // The end: in a file below a format, zeros follow.
        left.into_iter().for_each(|buffer| buffer.fill(0));
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let total = len(buffers);
        self.check_write(offset, total)?;
        self.put(offset, buffers)?;
        if self.growable {
            self.size.fetch_max(offset + total, Ordering::AcqRel);
        }
        Ok(())
    }

    fn batches(&self) -> bool {
        self.rings.is_some()
    }

    fn transfer(&self, batch: &mut [&mut Transfer<'_>]) {
        let Some(rings) = &self.rings else {
            return batch.iter_mut().for_each(|transfer| transfer.run(self));
        };
        let file = self.direct.as_ref().map_or(&self.file, Direct::file);
        let (mut together, mut alone): (Vec<_>, Vec<_>) =
            batch.iter_mut().partition(|transfer| self.goes_along(transfer));
        if together.len() == 1 {
            // A system call of its own is the shorter way.
            alone.append(&mut together);
        }
        for part in together.chunks_mut(rings::DEPTH) {
            let mut part: Vec<&mut Transfer<'_>> = part.iter_mut().map(|transfer| &mut ***transfer).collect();
            for left in rings.run(file, &mut part) {
                if let Some(transfer) = part.get_mut(left) {
                    transfer.run(self);
                }
            }
        }
        alone.iter_mut().for_each(|transfer| transfer.run(self));
    }

    fn flush(&self) -> Result<()> {
        if self.flush_failed.load(Ordering::Acquire) {
            return Err(Error::other(
                "an earlier flush failed, and what it lost is not known; open the disk again",
            ));
        }
        if self.cache == CacheMode::Unsafe {
            return Ok(());
        }
        // After a failed flush the host may take its pages for clean: another one would succeed without them.
        self.file.sync_data().inspect_err(|_| self.flush_failed.store(true, Ordering::Release))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        let len = self.stored(offset, len);
        if len == 0 || self.keep_discarded {
            return Ok(());
        }
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match self.fallocate(punch, offset, len) {
            // Discarding is advice.
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.check_write(offset, len)?;
        let end = offset + len;
        let len = self.stored(offset, len);
        if self.growable && self.size() < end {
            self.file.set_len(end)?;
            self.size.fetch_max(end, Ordering::AcqRel);
        }
        if len == 0 {
            return Ok(());
        }
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        match self.fallocate(if unmap { punch } else { zero }, offset, len) {
            Err(error) if is_unsupported(&error) => self.write_zero_bytes(offset, len),
            result => result,
        }
    }

    fn resize(&self, size: u64) -> Result<()> {
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        if !self.growable && (size == 0 || !size.is_multiple_of(SECTOR_SIZE)) {
            return Err(Error::new(ErrorKind::InvalidInput, "the size is no multiple of 512"));
        }
        self.file.set_len(size)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

impl RawFile {
    /// Whether the kernel can do a transfer as it is: inside the file, and aligned where that is wanted.
    fn goes_along(&self, transfer: &Transfer<'_>) -> bool {
        let places: Vec<(usize, usize)> = match &transfer.buffers {
            Buffers::Read(buffers) => {
                buffers.iter().map(|buffer| (buffer.as_ptr() as usize, buffer.len())).collect()
            }
            Buffers::Write(buffers) => {
                buffers.iter().map(|buffer| (buffer.as_ptr() as usize, buffer.len())).collect()
            }
        };
        let end = transfer.offset.checked_add(transfer.bytes());
        (1..=VECTORS_MAX).contains(&places.len())
            && end.is_some_and(|end| end > transfer.offset && end <= self.size())
            && !(self.read_only && transfer.is_write())
            && self.direct.as_ref().is_none_or(|direct| direct.fits(transfer.offset, places.into_iter()))
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        let zeros = vec![0; len.min(CHUNK) as usize];
        let mut at = offset;
        while at < offset + len {
            let part = (offset + len - at).min(CHUNK);
            self.put(at, &[IoSlice::new(&zeros[..part as usize])])?;
            at += part;
        }
        Ok(())
    }
}

/// Reads until the buffers are full or the file ends; returns what was not filled. A system call reads a multiple of
/// `unit` bytes, unless the file ends.
fn read_up_to<'b>(
    file: &File,
    offset: u64,
    mut buffers: &'b mut [IoSliceMut<'_>],
    unit: u64,
) -> Result<Vec<&'b mut [u8]>> {
    let mut at = offset;
    IoSliceMut::advance_slices(&mut buffers, 0);
    while !buffers.is_empty() {
        let done = read_some(file, at, buffers)?;
        at += done;
        IoSliceMut::advance_slices(&mut buffers, done as usize);
        if done == 0 || !done.is_multiple_of(unit) {
            break;
        }
    }
    Ok(buffers.iter_mut().map(|buffer| &mut **buffer).collect())
}

/// What one system call reads.
fn read_some(file: &File, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<u64> {
    let count = buffers.len().min(VECTORS_MAX) as i32;
    loop {
        // SAFETY: IoSliceMut has the layout of iovec; the kernel writes only into these buffers.
        let done = unsafe { libc::preadv(file.as_raw_fd(), buffers.as_ptr().cast(), count, offset as i64) };
        match u64::try_from(done) {
            Ok(done) => return Ok(done),
            Err(_) => retry_if_interrupted()?,
        }
    }
}

fn write_all(file: &File, mut offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
    let mut own = buffers.to_vec();
    let mut buffers = own.as_mut_slice();
    IoSlice::advance_slices(&mut buffers, 0);
    while !buffers.is_empty() {
        let count = buffers.len().min(VECTORS_MAX) as i32;
        // SAFETY: IoSlice has the layout of iovec; the kernel only reads these buffers.
        let done = unsafe { libc::pwritev(file.as_raw_fd(), buffers.as_ptr().cast(), count, offset as i64) };
        match done {
            0 => return Err(ErrorKind::WriteZero.into()),
            1.. => {
                offset += done as u64;
                IoSlice::advance_slices(&mut buffers, done as usize);
            }
            _ => retry_if_interrupted()?,
        }
    }
    Ok(())
}

fn retry_if_interrupted() -> Result<()> {
    let error = Error::last_os_error();
    if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}
