//! The client: an export of another server as a disk.

mod connection;
mod handshake;

use crate::error::NbdError;
use crate::protocol::{allocation, command, command_flag, flag};
use crate::uri::Location;
use block::{BlockBackend, Capabilities, Extent};
use connection::Connection;
use parking_lot::Mutex;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Result};

/// Longest range of a request without data, in bytes.
const RANGE_MAX: u64 = 1 << 30;

/// A disk on an NBD server.
///
/// A connection that broke is not made again: every request fails then, with an error that says why.
pub struct Client {
    connection: Connection,
    size: u64,
    flags: u16,
    block: u64,
    longest: u64,
    allocation: bool,
    read_only: bool,
    /// Held for writes of less than a block, which read the rest of it first.
    partial: Mutex<()>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When the server is not there, refuses, or offers only reading and `read_only` is not set.
    pub fn connect(location: &Location, read_only: bool) -> std::result::Result<Self, NbdError> {
        let offer = handshake::connect(location)?;
        let refuse =
            |problem: &str| NbdError::Server { server: location.server(), problem: problem.to_owned() };
        if offer.flags & flag::READ_ONLY != 0 && !read_only {
            return Err(refuse("the export is read-only; open it so (readonly=on)"));
        }
        if i64::try_from(offer.size).is_err() {
            return Err(refuse("the export is larger than 8 EiB"));
        }
        Ok(Client {
            size: offer.size,
            flags: offer.flags,
            block: offer.block.into(),
            longest: offer.longest.into(),
            allocation: offer.allocation.is_some(),
            read_only,
            connection: Connection::new(offer),
            partial: Mutex::new(()),
        })
    }

    fn can(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<u64> {
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        self.check_range(offset, len)
    }

    fn is_aligned(&self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.block) && len.is_multiple_of(self.block)
    }

    /// The whole blocks around a range, which end with the disk at the latest.
    fn around(&self, offset: u64, len: u64) -> (u64, u64) {
        let start = offset - offset % self.block;
        let end = (offset + len).next_multiple_of(self.block).min(self.size);
        (start, end - start)
    }

    /// Reads whole blocks.
    fn read_blocks(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        if len <= self.longest {
            return Ok(self.connection.call(command::READ, 0, offset, len as u32, &[])?.data);
        }
        let mut data = Vec::new();
        while (data.len() as u64) < len {
            let part = (len - data.len() as u64).min(self.longest) as u32;
            let at = offset + data.len() as u64;
            data.append(&mut self.connection.call(command::READ, 0, at, part, &[])?.data);
        }
        Ok(data)
    }

    /// Writes whole blocks.
    fn write_blocks(&self, offset: u64, buffers: &[IoSlice<'_>], len: u64) -> Result<()> {
        if len <= self.longest {
            return self.connection.call(command::WRITE, 0, offset, len as u32, buffers).map(drop);
        }
        let data = joined(buffers);
        for (number, part) in data.chunks(self.longest as usize).enumerate() {
            let at = offset + number as u64 * self.longest;
            self.connection.call(command::WRITE, 0, at, part.len() as u32, &[IoSlice::new(part)])?;
        }
        Ok(())
    }

    /// A command on whole blocks that has no data, in parts of a length the protocol can say.
    fn command(&self, command: u16, flags: u16, offset: u64, len: u64) -> Result<()> {
        let mut at = 0;
        while at < len {
            let part = (len - at).min(RANGE_MAX) as u32;
            self.connection.call(command, flags, offset + at, part, &[])?;
            at += u64::from(part);
        }
        Ok(())
    }
}

fn joined(buffers: &[IoSlice<'_>]) -> Vec<u8> {
    buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect()
}

fn total(lengths: impl Iterator<Item = usize>) -> u64 {
    lengths.map(|len| len as u64).sum()
}

impl BlockBackend for Client {
    fn size(&self) -> u64 {
        self.size
    }

    fn capabilities(&self) -> Capabilities {
        let zeroes = self.can(flag::SEND_WRITE_ZEROES);
        Capabilities {
            read_only: self.read_only,
            discard: self.can(flag::SEND_TRIM),
            zero_alignment: if zeroes { self.block.max(4096) } else { 1 << 63 },
            growable: false,
        }
    }

    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = total(buffers.iter().map(|buffer| buffer.len()));
        self.check_range(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let (start, whole) = self.around(offset, len);
        let data = self.read_blocks(start, whole)?;
        let mut rest = data.get((offset - start) as usize..).unwrap_or_default();
        for buffer in buffers {
            let (first, after) = rest.split_at_checked(buffer.len()).ok_or(ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(first);
            rest = after;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let len = total(buffers.iter().map(|buffer| buffer.len()));
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        if self.is_aligned(offset, len) {
            return self.write_blocks(offset, buffers, len);
        }
        let _turn = self.partial.lock();
        let (start, whole) = self.around(offset, len);
        let mut data = self.read_blocks(start, whole)?;
        let first = (offset - start) as usize;
        let place = data.get_mut(first..first + len as usize).ok_or(ErrorKind::UnexpectedEof)?;
        place.copy_from_slice(&joined(buffers));
        self.write_blocks(start, &[IoSlice::new(&data)], whole)
    }

    fn flush(&self) -> Result<()> {
        if self.read_only || !self.can(flag::SEND_FLUSH) {
            return Ok(());
        }
        self.connection.call(command::FLUSH, 0, 0, 0, &[]).map(drop)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.check_write(offset, len)?;
        let start = offset.next_multiple_of(self.block);
        let end = if end == self.size { end } else { end - end % self.block };
        // Discarding is advice: what is no whole block stays.
        if !self.can(flag::SEND_TRIM) || start >= end {
            return Ok(());
        }
        match self.command(command::TRIM, 0, start, end - start) {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        const STEP: u64 = 1 << 20;
        self.check_write(offset, len)?;
        if self.can(flag::SEND_WRITE_ZEROES) && self.is_aligned(offset, len) {
            let flags = if unmap { 0 } else { command_flag::NO_HOLE };
            return self.command(command::WRITE_ZEROES, flags, offset, len);
        }
        let zeros = vec![0; len.min(STEP) as usize];
        let mut at = 0;
        while at < len {
            let part = (len - at).min(STEP);
            self.write_bytes(offset + at, &zeros[..part as usize])?;
            at += part;
        }
        Ok(())
    }

    fn resize(&self, _size: u64) -> Result<()> {
        Err(std::io::Error::new(ErrorKind::Unsupported, "an NBD export cannot change its size"))
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        let unknown = Extent::data(offset, len, None);
        let (start, whole) = self.around(offset, len);
        if !self.allocation || len == 0 {
            return Ok(unknown);
        }
        let asked = whole.min(RANGE_MAX) as u32;
        let answer = self.connection.call(command::BLOCK_STATUS, command_flag::REQ_ONE, start, asked, &[])?;
        let Some((length, flags)) = answer.status else { return Ok(unknown) };
        let length = u64::from(length).saturating_sub(offset - start).min(len);
        if length == 0 {
            return Ok(unknown);
        }
        let (hole, zero) = (flags & allocation::HOLE != 0, flags & allocation::ZERO != 0);
        Ok(match (hole, zero) {
            (true, true) => Extent::hole(offset, length),
            (false, true) => Extent::zero(offset, length),
            _ => Extent::data(offset, length, None),
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.disconnect();
    }
}
