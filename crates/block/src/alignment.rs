//! Requests of any alignment, for those who cannot be told to keep to sectors.

use crate::backend::{BlockBackend, Capabilities, Extent, SECTOR_SIZE};
use crate::buffers::{len, part};
use crate::transfer::Transfer;
use parking_lot::RwLock;
use std::io::{IoSlice, IoSliceMut, Result};
use std::ops::Range;
use std::sync::Arc;

/// A disk whose requests need not begin and end at multiples of a block, [`SECTOR_SIZE`] or a larger one; the disk below
/// sees only such as do.
///
/// A block that is written in part is read first, and nothing else is changed meanwhile: whoever writes other bytes
/// of it finds them afterwards.
pub struct ByteAligned {
    disk: Arc<dyn BlockBackend>,
    /// Bytes of a block; a power of two.
    block: u64,
    /// Held alone by who reads a block to write it, shared by all other changes.
    changes: RwLock<()>,
}

impl ByteAligned {
    /// Over this disk.
    pub fn new(disk: Arc<dyn BlockBackend>) -> Self {
        Self::with_blocks(disk, SECTOR_SIZE)
    }

    /// Over a disk whose blocks have this many bytes, a power of two.
    pub fn with_blocks(disk: Arc<dyn BlockBackend>, block: u64) -> Self {
        ByteAligned { disk, block, changes: RwLock::default() }
    }

    /// The whole blocks around a range of the disk.
    fn around(&self, range: &Range<u64>) -> Range<u64> {
        range.start - range.start % self.block..range.end.next_multiple_of(self.block).min(self.size())
    }

    /// Whether a request is of whole blocks, or of all up to the disk's end.
    fn fits(&self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.block)
            && (len.is_multiple_of(self.block) || offset.checked_add(len) == Some(self.size()))
    }

    /// The whole blocks inside a range; empty where it has none.
    fn inside(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start.next_multiple_of(self.block).min(range.end);
        let end = if range.end == self.size() { range.end } else { range.end - range.end % self.block };
        start..end.max(start)
    }

    /// Changes bytes of at most a block. The lock is held.
    fn patch(&self, range: Range<u64>, change: impl FnOnce(&mut [u8])) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let around = self.around(&range);
        let mut block = vec![0; (around.end - around.start) as usize];
        self.disk.read_bytes(around.start, &mut block)?;
        let at = (range.start - around.start) as usize;
        if let Some(bytes) = block.get_mut(at..at + (range.end - range.start) as usize) {
            change(bytes);
        }
        self.disk.write_bytes(around.start, &block)
    }
}

/// Fills bytes from buffers of the same length.
fn gather(buffers: &[IoSlice<'_>], to: &mut [u8]) {
    let from = buffers.iter().flat_map(|buffer| buffer.iter());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

impl BlockBackend for ByteAligned {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.disk.capabilities()
    }

    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = len(buffers);
        if self.fits(offset, len) {
            return self.disk.read_at(offset, buffers);
        }
        let range = offset..self.check_range(offset, len)?;
        // What lies before and behind in the outermost blocks goes nowhere.
        let around = self.around(&range);
        let mut before = vec![0; (range.start - around.start) as usize];
        let mut behind = vec![0; (around.end - range.end) as usize];
        let mut all = Vec::with_capacity(buffers.len() + 2);
        all.push(IoSliceMut::new(&mut before));
        all.extend(buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)));
        all.push(IoSliceMut::new(&mut behind));
        self.disk.read_at(around.start, &mut all)
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let len = len(buffers);
        if self.fits(offset, len) {
            let _shared = self.changes.read();
            return self.disk.write_at(offset, buffers);
        }
        let range = offset..self.check_range(offset, len)?;
        let bytes = |part_of: &Range<u64>| part(buffers, part_of.start - offset, part_of.end - part_of.start);
        let inside = self.inside(&range);
        let _alone = self.changes.write();
        let (head, tail) = (range.start..inside.start, inside.end..range.end);
        self.patch(head.clone(), |to| gather(&bytes(&head), to))?;
        if !inside.is_empty() {
            self.disk.write_at(inside.start, &bytes(&inside))?;
        }
        self.patch(tail.clone(), |to| gather(&bytes(&tail), to))
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let inside = self.inside(&(offset..self.check_range(offset, len)?));
        let _shared = self.changes.read();
        // Of blocks that are meant in part nothing is given back.
        if inside.is_empty() { Ok(()) } else { self.disk.discard(inside.start, inside.end - inside.start) }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        if self.fits(offset, len) {
            let _shared = self.changes.read();
            return self.disk.write_zeroes(offset, len, unmap);
        }
        let range = offset..self.check_range(offset, len)?;
        let inside = self.inside(&range);
        let _alone = self.changes.write();
        let zero = |to: &mut [u8]| to.fill(0);
        self.patch(range.start..inside.start, zero)?;
        if !inside.is_empty() {
            self.disk.write_zeroes(inside.start, inside.end - inside.start, unmap)?;
        }
        self.patch(inside.end..range.end, zero)
    }

    fn resize(&self, size: u64) -> Result<()> {
        let _alone = self.changes.write();
        self.disk.resize(size)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        let range = offset..self.check_range(offset, len)?;
        let around = self.around(&range);
        let found = self.disk.block_status(around.start, around.end - around.start)?;
        let skipped = range.start - around.start;
        if found.length <= skipped {
            // The block goes on in another way.
            return Ok(Extent::data(offset, (self.block - skipped).min(len), None));
        }
        Ok(Extent {
            start: offset,
            length: (found.length - skipped).min(len),
            offset: found.offset.map(|at| at + skipped),
            ..found
        })
    }

    fn batches(&self) -> bool {
        self.disk.batches()
    }

    fn transfer(&self, batch: &mut [&mut Transfer<'_>]) {
        if !batch.iter().all(|transfer| self.fits(transfer.offset, transfer.bytes())) {
            return batch.iter_mut().for_each(|transfer| transfer.run(self));
        }
        let _shared = self.changes.read();
        self.disk.transfer(batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::io::ErrorKind;

    const SIZE: usize = 16 << 10;

    /// A disk in memory that refuses parts of sectors.
    struct Sectors(Mutex<Vec<u8>>);

    impl Sectors {
        fn with(&self, offset: u64, len: u64, act: impl FnOnce(&mut [u8])) -> Result<()> {
            if !offset.is_multiple_of(SECTOR_SIZE) || !len.is_multiple_of(SECTOR_SIZE) {
                return Err(ErrorKind::InvalidInput.into());
            }
            act(&mut self.0.lock()[offset as usize..(offset + len) as usize]);
            Ok(())
        }
    }

    impl BlockBackend for Sectors {
        fn size(&self) -> u64 {
            SIZE as u64
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities { read_only: false, discard: true, zero_alignment: 512, growable: false }
        }
        fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
            self.with(offset, len(buffers), |bytes| {
                let mut at = 0;
                for buffer in buffers.iter_mut() {
                    let end = at + buffer.len();
                    buffer.copy_from_slice(&bytes[at..end]);
                    at = end;
                }
            })
        }
        fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
            self.with(offset, len(buffers), |bytes| gather(buffers, bytes))
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn discard(&self, offset: u64, len: u64) -> Result<()> {
            self.with(offset, len, |bytes| bytes.fill(0))
        }
        fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
            self.with(offset, len, |bytes| bytes.fill(0))
        }
        fn resize(&self, _size: u64) -> Result<()> {
            Err(ErrorKind::Unsupported.into())
        }
        fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
            // Every other sector is a hole.
            self.with(offset, len, |_| ())?;
            let length = len.min(SECTOR_SIZE);
            let hole = (offset / SECTOR_SIZE).is_multiple_of(2);
            Ok(if hole { Extent::hole(offset, length) } else { Extent::data(offset, length, Some(offset)) })
        }
    }

    fn disk() -> ByteAligned {
        ByteAligned::new(Arc::new(Sectors(Mutex::new((0..SIZE).map(|at| at as u8).collect()))))
    }

    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn any_range_is_read_written_and_zeroed_as_it_is_meant() {
        let disk = disk();
        let mut model: Vec<u8> = (0..SIZE).map(|at| at as u8).collect();
        let mut state = 9;
        for round in 0..20_000 {
            let at = random(&mut state) as usize % SIZE;
            let most = if round % 3 == 0 { 40 } else { 3000 };
            let len = random(&mut state) as usize % most.min(SIZE - at + 1);
            let offset = at as u64;
            match random(&mut state) % 4 {
                0 => {
                    let bytes: Vec<u8> = (0..len).map(|_| random(&mut state) as u8).collect();
                    let (one, other) = bytes.split_at(len / 3);
                    disk.write_at(offset, &[IoSlice::new(one), IoSlice::new(other)]).unwrap();
                    model[at..at + len].copy_from_slice(&bytes);
                }
                1 => {
                    disk.write_zeroes(offset, len as u64, true).unwrap();
                    model[at..at + len].fill(0);
                }
                2 if len > 0 => {
                    let extent = disk.block_status(offset, len as u64).unwrap();
                    let sector = (offset | 511) + 1;
                    assert_eq!((extent.start, extent.length), (offset, (len as u64).min(sector - offset)));
                    assert_eq!(extent.zero, (offset / 512).is_multiple_of(2));
                    assert!(extent.zero || extent.offset == Some(offset));
                }
                _ => {
                    let mut bytes = vec![0xee; len];
                    disk.read_bytes(offset, &mut bytes).unwrap();
                    assert!(bytes == model[at..at + len], "{len} bytes at {at}");
                }
            }
        }
        let mut all = vec![0; SIZE];
        disk.read_bytes(0, &mut all).unwrap();
        assert!(all == model);
        assert!(disk.write_bytes(SIZE as u64 - 1, &[0; 2]).is_err());
        assert!(disk.read_bytes(u64::MAX, &mut [0; 2]).is_err());
    }

    #[test]
    fn a_discard_keeps_to_whole_sectors() {
        let disk = disk();
        disk.discard(100, 1500).unwrap();
        let mut bytes = vec![0; 2048];
        disk.read_bytes(0, &mut bytes).unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            let expected = if (512..1536).contains(&at) { 0 } else { at as u8 };
            assert_eq!(*byte, expected, "at {at}");
        }
    }

    /// Threads that write other bytes of the same sectors lose none of each other's.
    #[test]
    fn neighbours_in_a_sector_do_not_lose_what_they_wrote() {
        let disk = disk();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let disk = &disk;
                scope.spawn(move || {
                    for round in 0..200 {
                        for at in (thread * 32..SIZE as u64).step_by(128) {
                            disk.write_bytes(at, &[thread as u8 * 50 + round as u8 / 8; 32]).unwrap();
                        }
                    }
                });
            }
        });
        let mut bytes = vec![0; SIZE];
        disk.read_bytes(0, &mut bytes).unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte, (at / 32 % 4) as u8 * 50 + 199 / 8, "at {at}");
        }
    }
}
