//! Encrypted sectors of a file: reading decrypts, writing encrypts.
//!
//! Two faces: [`Sectors`] for a container's content, and [`EncryptedFile`] for a file whose bytes stay where they are, as
//! the data clusters of a qcow2 image do.

use super::Unlocked;
use crate::backend::{BlockBackend, Capabilities, Extent};
use crate::mapped::{Slices, SlicesMut};
use parking_lot::Mutex;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Result};
use std::sync::Arc;

/// Bytes that are encrypted at a time.
const PART: u64 = 1 << 20;

/// The content.
pub(super) struct Sectors {
    pub file: Arc<dyn BlockBackend>,
    pub unlocked: Unlocked,
    /// Held while parts of sectors are written: the rest of them is read before.
    edges: Mutex<()>,
}

impl Sectors {
    pub fn new(file: Arc<dyn BlockBackend>, unlocked: Unlocked) -> Self {
        Sectors { file, unlocked, edges: Mutex::new(()) }
    }

    fn number(&self, at: u64) -> u64 {
        self.unlocked.first.wrapping_add(at / 512)
    }

    /// Whole sectors, decrypted.
    fn read_sectors(&self, first: u64, last: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (last - first) as usize];
        self.file.read_bytes(self.unlocked.start + first, &mut bytes)?;
        self.unlocked.cipher.decrypt(self.number(first), &mut bytes);
        Ok(bytes)
    }

    /// The sectors around a range of at most [`PART`] bytes.
    fn around(&self, at: u64, len: u64) -> (u64, u64) {
        let sector = self.unlocked.sector;
        (at - at % sector, (at + len).next_multiple_of(sector))
    }

    fn write_part(&self, at: u64, data: &[&[u8]], len: u64) -> Result<()> {
        let (first, last) = self.around(at, len);
        let whole = first == at && last == at + len;
        // Two writes to parts of one sector would lose one of them; a write of whole sectors waits as well.
        let _edges = (self.unlocked.sector > 512 || !whole).then(|| self.edges.lock());
        let mut bytes = if whole { vec![0; len as usize] } else { self.read_sectors(first, last)? };
        let mut to = (at - first) as usize;
        for part in data {
            if let Some(place) = bytes.get_mut(to..to + part.len()) {
                place.copy_from_slice(part);
            }
            to += part.len();
        }
        self.unlocked.cipher.encrypt(self.number(first), &mut bytes);
        self.file.write_bytes(self.unlocked.start + first, &bytes)
    }

    /// Reads and decrypts; the caller has checked the range.
    pub fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let end = offset + buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        let mut slices = SlicesMut::new(buffers);
        let mut at = offset;
        while at < end {
            let len = (end - at).min(PART - at % PART);
            let (first, last) = self.around(at, len);
            let bytes = self.read_sectors(first, last)?;
            let mut from = (at - first) as usize;
            for mut part in slices.take(len) {
                let to = from + part.len();
                part.copy_from_slice(bytes.get(from..to).ok_or(ErrorKind::UnexpectedEof)?);
                from = to;
            }
            at += len;
        }
        Ok(())
    }

    /// Encrypts and writes; the caller has checked the range.
    pub fn write(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let end = offset + buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        let mut slices = Slices::new(buffers);
        let mut at = offset;
        while at < end {
            let len = (end - at).min(PART - at % PART);
            self.write_part(at, &slices.take(len), len)?;
            at += len;
        }
        Ok(())
    }

    /// Writes encrypted zeros; the caller has checked the range.
    pub fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let zeros = vec![0; len.min(PART) as usize];
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let len = (end - at).min(PART - at % PART);
            self.write_part(at, &[zeros.get(..len as usize).unwrap_or_default()], len)?;
            at += len;
        }
        Ok(())
    }
}

/// A file with encrypted sectors where the plain ones would be.
pub(crate) struct EncryptedFile(Sectors);

impl EncryptedFile {
    /// Encrypts what is in `file`, whatever place in it the container's own content would have had.
    pub(super) fn new(file: Arc<dyn BlockBackend>, unlocked: Unlocked) -> Self {
        EncryptedFile(Sectors::new(file, Unlocked { start: 0, first: 0, ..unlocked }))
    }
}

impl BlockBackend for EncryptedFile {
    fn size(&self) -> u64 {
        self.0.file.size()
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { zero_alignment: self.0.unlocked.sector, ..self.0.file.capabilities() }
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.0.read(offset, buffers)
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.0.write(offset, buffers)
    }
    fn flush(&self) -> Result<()> {
        self.0.file.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.file.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        self.0.zero(offset, len)
    }
    fn resize(&self, size: u64) -> Result<()> {
        self.0.file.resize(size)
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent::data(offset, len, None))
    }
}

/// Part of a file, as if it were one.
pub(super) struct Section<'a> {
    pub file: &'a dyn BlockBackend,
    pub start: u64,
    pub len: u64,
}

impl Section<'_> {
    fn place(&self, offset: u64, len: u64) -> Result<u64> {
        match (offset.checked_add(len), self.start.checked_add(offset)) {
            (Some(end), Some(place)) if end <= self.len => Ok(place),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl BlockBackend for Section<'_> {
    fn size(&self) -> u64 {
        self.len
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { growable: false, ..self.file.capabilities() }
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        self.file.read_at(self.place(offset, len)?, buffers)
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let len = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        self.file.write_at(self.place(offset, len)?, buffers)
    }
    fn flush(&self) -> Result<()> {
        self.file.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.file.discard(self.place(offset, len)?, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.file.write_zeroes(self.place(offset, len)?, len, unmap)
    }
    fn resize(&self, _size: u64) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        let start = self.place(offset, len)?;
        Ok(Extent { start: offset, ..self.file.block_status(start, len)? })
    }
}
