//! Raw files and block devices.
#![expect(unsafe_code, reason = "vectored positional I/O and fallocate are system calls")]

use crate::lock;
use crate::{BlockBackend, SECTOR_SIZE};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error as ThisError;

/// Why a disk cannot be opened.
#[derive(Debug, ThisError)]
pub enum BlockError {
    /// The system refuses.
    #[error("Disk {path} cannot be opened{hint}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What would help, if anything is known.
        hint: &'static str,
        /// The system's reason.
        source: Error,
    },
    /// Neither a regular file nor a block device.
    #[error("Disk {path} is {what}; a regular file or a block device is needed")]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// No whole number of sectors.
    #[error("Disk {path} has {size} bytes, which is {problem}; grow it with: truncate -s {right} {path}")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// What is wrong with that.
        problem: &'static str,
        /// The next size that is right.
        right: u64,
    },
    /// Somebody else has it open.
    #[error("Disk {path} is in use by another process; a disk can be shared only if all open it read-only")]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

/// A raw image: byte `n` of the disk is byte `n` of the file.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    size: AtomicU64,
    read_only: bool,
}

impl RawFile {
    /// Opens and locks an image.
    pub fn open(path: &Path, read_only: bool) -> std::result::Result<Self, BlockError> {
        let own = path.to_owned();
        let opened = OpenOptions::new().read(true).write(!read_only).open(path);
        let mut file = match opened {
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
        let failed = |source| BlockError::Open { path: path.to_owned(), hint: "", source };
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() { "a directory" } else { "neither file nor block device" };
            return Err(BlockError::NotADisk { path: own, what });
        }
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            let problem = if size == 0 { "empty" } else { "no multiple of 512" };
            let right = size.max(1).next_multiple_of(SECTOR_SIZE);
            return Err(BlockError::Size { path: own, size, problem, right });
        }
        if !lock::acquire(&file, !read_only).map_err(failed)? {
            return Err(BlockError::InUse { path: own });
        }
        Ok(RawFile { file, size: AtomicU64::new(size), read_only })
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(Error::new(ErrorKind::InvalidInput, "the range leaves the disk")),
        }
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        self.check(offset, len)
    }

    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        // SAFETY: numbers only; the range was checked against the size.
        let done = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, len as i64) };
        if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
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

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, mut offset: u64, mut buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check(offset, buffers.iter().map(|buffer| buffer.len() as u64).sum())?;
        IoSliceMut::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            let count = buffers.len().min(VECTORS_MAX) as i32;
            // SAFETY: IoSliceMut has the layout of iovec; the kernel writes only into these buffers.
            let done =
                unsafe { libc::preadv(self.file.as_raw_fd(), buffers.as_ptr().cast(), count, offset as i64) };
            match done {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                1.. => {
                    offset += done as u64;
                    IoSliceMut::advance_slices(&mut buffers, done as usize);
                }
                _ => retry_if_interrupted()?,
            }
        }
        Ok(())
    }

    fn write_at(&self, mut offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.check_write(offset, buffers.iter().map(|buffer| buffer.len() as u64).sum())?;
        let mut own = buffers.to_vec();
        let mut buffers = own.as_mut_slice();
        IoSlice::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            let count = buffers.len().min(VECTORS_MAX) as i32;
            // SAFETY: IoSlice has the layout of iovec; the kernel only reads these buffers.
            let done = unsafe {
                libc::pwritev(self.file.as_raw_fd(), buffers.as_ptr().cast(), count, offset as i64)
            };
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

    fn flush(&self) -> Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
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
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::new(ErrorKind::InvalidInput, "the size is no multiple of 512"));
        }
        self.file.set_len(size)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

impl RawFile {
    fn write_zero_bytes(&self, offset: u64, len: u64) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        let zeros = vec![0; len.min(CHUNK) as usize];
        let mut at = offset;
        while at < offset + len {
            let part = (offset + len - at).min(CHUNK);
            self.file.write_all_at(&zeros[..part as usize], at)?;
            at += part;
        }
        Ok(())
    }
}

fn retry_if_interrupted() -> Result<()> {
    let error = Error::last_os_error();
    if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::Command;

    fn image(size: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0xaa; size]).unwrap();
        file
    }

    #[test]
    fn what_is_written_is_read_and_zeroes_are_zero() {
        let file = image(8192);
        let disk = RawFile::open(file.path(), false).unwrap();
        disk.write_at(510, &[IoSlice::new(&[1, 2]), IoSlice::new(&[]), IoSlice::new(&[3])]).unwrap();
        disk.write_zeroes(4096, 1024, false).unwrap();
        let (mut a, mut b) = ([0; 4], [9; 2]);
        disk.read_at(509, &mut [IoSliceMut::new(&mut a)]).unwrap();
        disk.read_at(5119, &mut [IoSliceMut::new(&mut b)]).unwrap();
        assert_eq!((a, b), ([0xaa, 1, 2, 3], [0, 0xaa]));
        assert!(disk.read_at(8191, &mut [IoSliceMut::new(&mut b)]).is_err());
        assert!(disk.write_at(u64::MAX, &[IoSlice::new(&b)]).is_err());
    }

    #[test]
    fn sizes_and_kinds_that_are_no_disks_are_refused_with_the_reason() {
        let odd = image(1000);
        let error = RawFile::open(odd.path(), false).unwrap_err().to_string();
        assert!(error.contains("1000 bytes") && error.contains("truncate -s 1024"), "{error}");
        assert!(RawFile::open(Path::new("/"), true).unwrap_err().to_string().contains("a directory"));
        assert!(RawFile::open(Path::new("/nonexistent/disk"), true).is_err());
    }

    #[test]
    fn one_writer_or_many_readers() {
        let file = image(512);
        let writer = RawFile::open(file.path(), false).unwrap();
        assert!(matches!(RawFile::open(file.path(), true), Err(BlockError::InUse { .. })));
        drop(writer);
        let reader = RawFile::open(file.path(), true).unwrap();
        let _other = RawFile::open(file.path(), true).unwrap();
        assert!(matches!(RawFile::open(file.path(), false), Err(BlockError::InUse { .. })));
        drop(reader);
    }

    /// The oracle of the lock bytes is `qemu-img`.
    #[test]
    fn qemu_img_respects_our_lock() {
        let file = image(512);
        let target = tempfile::NamedTempFile::new().unwrap();
        let convert = |path: &Path| {
            let mut command = Command::new("qemu-img");
            command.args(["convert", "-f", "raw", "-O", "raw"]).arg(path).arg(target.path()).output()
        };
        let Ok(before) = convert(file.path()) else {
            eprintln!("skipped: qemu-img is not installed");
            return;
        };
        assert!(before.status.success());
        let _disk = RawFile::open(file.path(), false).unwrap();
        let during = convert(file.path()).unwrap();
        assert!(!during.status.success());
        assert!(String::from_utf8_lossy(&during.stderr).contains("lock"));
    }
}
