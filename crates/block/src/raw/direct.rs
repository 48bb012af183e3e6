//! Transfers that bypass the host's page cache (`O_DIRECT`).
//!
//! The kernel wants offsets, lengths and addresses to be multiples of what the device underneath can do. What is
//! aligned goes as it is; everything else goes through a buffer of our own, and a write that begins or ends inside a
//! block reads that block first. A last block that the file does not have as a whole is left to the page cache: writing
//! it as a whole would make the file longer than its content.

use crate::buffers::{len, part};
use crate::error::BlockError;
use parking_lot::Mutex;
use std::fs::File;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of a request that go through a buffer of ours at a time.
const BOUNCE: u64 = 1 << 20;
/// Alignment where the kernel does not say which it wants: enough for all disks there are.
const CAREFUL: u32 = 4096;
/// Largest alignment that is believed.
const ALIGNMENT_MAX: u32 = 1 << 20;

/// A file that is open a second time, without the page cache.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    /// What addresses are multiples of.
    memory: u64,
    /// What offsets and lengths are multiples of.
    pub block: u64,
    /// Held by whoever changes part of a block, so that no other change of the block gets lost.
    edges: Mutex<()>,
}

impl Direct {
    /// Opens the file at `path`, which is `same` already, once more.
    pub fn open(path: &Path, same: &File, read_only: bool) -> std::result::Result<Self, BlockError> {
        let failed = |source| BlockError::Open {
            path: path.to_owned(),
            hint: " without the page cache; its file system or driver may not have O_DIRECT: use cache=writeback",
            source,
        };
        let mut options = File::options();
        options.read(true).write(!read_only).custom_flags(libc::O_DIRECT);
        let file = options.open(path).map_err(failed)?;
        let identity = |file: &File| file.metadata().map(|found| (found.dev(), found.ino()));
        if identity(&file).map_err(failed)? != identity(same).map_err(failed)? {
            return Err(failed(Error::other("the path leads to another file meanwhile")));
        }
        let (memory, block) = alignments(&file).map_err(failed)?;
        Ok(Direct { file, memory: memory.into(), block: block.into(), edges: Mutex::new(()) })
    }

    /// Whether a transfer can go as it is.
    pub fn fits(&self, offset: u64, mut buffers: impl Iterator<Item = (usize, usize)>) -> bool {
        offset.is_multiple_of(self.block)
            && buffers.all(|(address, len)| {
                (address as u64).is_multiple_of(self.memory) && (len as u64).is_multiple_of(self.block)
            })
    }

    /// The descriptor, for transfers that fit.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads into all buffers; returns what the file is too short for.
    pub fn read<'b>(&self, offset: u64, buffers: &'b mut [IoSliceMut<'_>]) -> Result<Vec<&'b mut [u8]>> {
        let end = offset + len(buffers);
        if self.fits(offset, buffers.iter().map(|buffer| (buffer.as_ptr() as usize, buffer.len()))) {
            return self.read_fitting(offset, buffers);
        }
        let mut bounce = Bounce::new(self.memory.max(self.block), BOUNCE.min(self.around(offset, end)));
        // What is to be filled next, and from where.
        let (mut at, mut left) = (offset, buffers.iter_mut().map(|buffer| &mut **buffer).collect::<Vec<_>>());
        left.reverse();
        while at < end {
            let from = at - at % self.block;
            let to = end.next_multiple_of(self.block).min(from + bounce.len() as u64);
            let window = &mut bounce[..(to - from) as usize];
            let missing =
                self.read_fitting(from, &mut [IoSliceMut::new(window)])?.first().map_or(0, |rest| rest.len());
            let there = to - missing as u64;
            let mut source = &window[(at - from) as usize..];
            source = &source[..there.min(end).saturating_sub(at) as usize];
            at += source.len() as u64;
            while !source.is_empty()
                && let Some(buffer) = left.pop()
            {
                let (now, rest) = buffer.split_at_mut(source.len().min(buffer.len()));
                now.copy_from_slice(&source[..now.len()]);
                source = &source[now.len()..];
                if !rest.is_empty() {
                    left.push(rest);
                }
            }
            if missing > 0 {
                break;
            }
        }
        left.retain(|buffer| !buffer.is_empty());
        Ok(left)
    }

    /// A read that fits, up to the end of the file, which alone need not be a multiple; returns what was not filled.
    fn read_fitting<'b>(&self, offset: u64, buffers: &'b mut [IoSliceMut<'_>]) -> Result<Vec<&'b mut [u8]>> {
        super::read_up_to(&self.file, offset, buffers, self.block)
    }

    /// Writes all buffers. `cached` is the same file with the page cache, `size` how long it is.
    pub fn write(&self, offset: u64, buffers: &[IoSlice<'_>], cached: &File, size: u64) -> Result<()> {
        let end = offset + len(buffers);
        let first = offset.next_multiple_of(self.block).min(end);
        let last = (end - end % self.block).max(first);
        if first > offset {
            self.write_edge(offset, &part(buffers, 0, first - offset), cached, size)?;
        }
        if last > first {
            self.write_blocks(first, &part(buffers, first - offset, last - first))?;
        }
        if end > last {
            self.write_edge(last, &part(buffers, last - offset, end - last), cached, size)?;
        }
        Ok(())
    }

    /// Whole blocks.
    fn write_blocks(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        if self.fits(offset, buffers.iter().map(|buffer| (buffer.as_ptr() as usize, buffer.len()))) {
            return super::write_all(&self.file, offset, buffers);
        }
        let total = len(buffers);
        let mut bounce = Bounce::new(self.memory.max(self.block), BOUNCE.min(total));
        let mut done = 0;
        while done < total {
            let now = (total - done).min(bounce.len() as u64);
            let mut to = &mut bounce[..now as usize];
            for from in part(buffers, done, now) {
                let (here, rest) = to.split_at_mut(from.len());
                here.copy_from_slice(&from);
                to = rest;
            }
            super::write_all(&self.file, offset + done, &[IoSlice::new(&bounce[..now as usize])])?;
            done += now;
        }
        Ok(())
    }

    /// Part of one block.
    fn write_edge(&self, offset: u64, buffers: &[IoSlice<'_>], cached: &File, size: u64) -> Result<()> {
        let _one = self.edges.lock();
        let start = offset - offset % self.block;
        if start + self.block > size {
            return super::write_all(cached, offset, buffers);
        }
        let mut bounce = Bounce::new(self.memory.max(self.block), self.block);
        if !self.read_fitting(start, &mut [IoSliceMut::new(&mut bounce)])?.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut to = &mut bounce[(offset - start) as usize..];
        for from in buffers {
            let (here, rest) = to.split_at_mut(from.len());
            here.copy_from_slice(from);
            to = rest;
        }
        super::write_all(&self.file, start, &[IoSlice::new(&bounce)])
    }

    /// Runs a change of a range by other means than a transfer, which may change part of a block.
    pub fn change<T>(&self, range: Range<u64>, change: impl FnOnce() -> T) -> T {
        let whole = range.start.is_multiple_of(self.block) && range.end.is_multiple_of(self.block);
        let _one = (!whole).then(|| self.edges.lock());
        change()
    }

    /// Bytes of all blocks that a range touches.
    fn around(&self, start: u64, end: u64) -> u64 {
        end.next_multiple_of(self.block) - (start - start % self.block)
    }
}

/// Bytes at an aligned address.
struct Bounce {
    all: Vec<u8>,
    start: usize,
    len: usize,
}

impl Bounce {
    /// `len` bytes, rounded up to the alignment.
    fn new(alignment: u64, len: u64) -> Self {
        let (alignment, len) = (alignment as usize, len.next_multiple_of(alignment) as usize);
        let all = vec![0; len + alignment];
        let start = all.as_ptr().align_offset(alignment).min(alignment);
        Bounce { all, start, len }
    }
}

impl Deref for Bounce {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.all[self.start..self.start + self.len]
    }
}

impl DerefMut for Bounce {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.all[self.start..self.start + self.len]
    }
}

/// What addresses, and what offsets and lengths, have to be multiples of.
fn alignments(file: &File) -> Result<(u32, u32)> {
    let (memory, block) = match told(file)? {
        Some((_, 0)) => return Err(ErrorKind::Unsupported.into()),
        Some(told) => told,
        None => (CAREFUL, sector_of_device(file).unwrap_or(CAREFUL)),
    };
    let fine = |value: u32| value.is_power_of_two() && value <= ALIGNMENT_MAX;
    match fine(memory.max(1)) && fine(block) {
        true => Ok((memory.max(1), block)),
        false => Err(Error::other(format!("the kernel asks for alignments of {memory} and {block} bytes"))),
    }
}

/// What statx(2) tells since Linux 6.1; zeros where the file system has no direct transfers.
fn told(file: &File) -> Result<Option<(u32, u32)>> {
    // SAFETY: plain numbers, all of which may be zero.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let (flags, mask) = (libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN);
    // SAFETY: the descriptor is open, the path empty, and the kernel fills the structure.
    let done = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, &mut found) };
    if done != 0 {
        let error = Error::last_os_error();
        return if super::is_unsupported(&error) { Ok(None) } else { Err(error) };
    }
    let knows = found.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(knows.then_some((found.stx_dio_mem_align, found.stx_dio_offset_align)))
}

/// Logical sectors of a block device; `None` for a file.
fn sector_of_device(file: &File) -> Option<u32> {
    let mut size = 0_i32;
    // SAFETY: BLKSSZGET writes one int.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &mut size) };
    if done == 0 { u32::try_from(size).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A file of `size` bytes that count, open both ways. `None` where the file system has no direct transfers.
    fn opened(folder: &Path, size: usize) -> Option<(Direct, File, Vec<u8>)> {
        let path = folder.join("file");
        let content: Vec<u8> = (0..size).map(|at| (at / 7 % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let cached = File::options().read(true).write(true).open(&path).unwrap();
        match Direct::open(&path, &cached, false) {
            Ok(direct) => Some((direct, cached, content)),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn any_alignment_reads_and_writes_what_the_page_cache_has() {
        let folder = tempfile::tempdir().unwrap();
        let Some((direct, cached, mut content)) = opened(folder.path(), 3_000_100) else { return };
        let mut seed = 5_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for turn in 0..300 {
            let (offset, skew) = (random(content.len()), random(3));
            let most = 1 << random(22);
            let long = (random(most) + 1).min(content.len() - offset);
            let mut memory = vec![0xee; long + 2];
            let half = random(long);
            let (one, two) = memory[skew..skew + long].split_at_mut(half);
            if turn % 2 == 0 {
                one.fill(turn as u8);
                two.fill(!turn as u8);
                let buffers = [IoSlice::new(one), IoSlice::new(two)];
                direct.write(offset as u64, &buffers, &cached, content.len() as u64).unwrap();
                content[offset..offset + half].fill(turn as u8);
                content[offset + half..offset + long].fill(!turn as u8);
            } else {
                let mut buffers = [IoSliceMut::new(one), IoSliceMut::new(two)];
                assert!(direct.read(offset as u64, &mut buffers).unwrap().is_empty());
                assert!(memory[skew..skew + long] == content[offset..offset + long], "{offset} {long}");
            }
        }
        let mut found = vec![0; content.len() + 1];
        assert_eq!(cached.read_at(&mut found, 0).unwrap(), content.len(), "the file keeps its length");
        assert!(found[..content.len()] == content);
        let mut beyond = [0xee; 300];
        let mut buffers = [IoSliceMut::new(&mut beyond)];
        let missing = direct.read(3_000_000, &mut buffers).unwrap();
        assert_eq!(missing.iter().map(|rest| rest.len()).sum::<usize>(), 200, "the file has 100 bytes there");
    }

    #[test]
    fn halves_of_one_block_written_at_once_both_stay() {
        let folder = tempfile::tempdir().unwrap();
        let Some((direct, cached, content)) = opened(folder.path(), 64 << 10) else { return };
        let half = direct.block as usize / 2;
        for turn in 0..50_u8 {
            let write = |at: usize| {
                let bytes = vec![turn; half];
                direct.write(at as u64, &[IoSlice::new(&bytes)], &cached, content.len() as u64).unwrap();
            };
            std::thread::scope(|scope| {
                scope.spawn(|| write(0));
                write(half);
            });
            let mut found = vec![0xee; 2 * half];
            direct.read(0, &mut [IoSliceMut::new(&mut found)]).unwrap();
            assert!(found.iter().all(|byte| *byte == turn));
        }
    }
}
