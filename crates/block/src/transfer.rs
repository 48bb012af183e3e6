//! Several reads and writes at once.

use crate::backend::BlockBackend;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};

/// Where the bytes of a transfer go or come from.
pub enum Buffers<'a> {
    /// A read fills these.
    Read(Vec<IoSliceMut<'a>>),
    /// A write takes these.
    Write(Vec<IoSlice<'a>>),
}

/// A read or write among others ([`BlockBackend::transfer`]).
pub struct Transfer<'a> {
    /// First byte on the disk.
    pub offset: u64,
    /// The bytes.
    pub buffers: Buffers<'a>,
    /// What came of it; an error until it is done.
    pub result: Result<()>,
}

impl<'a> Transfer<'a> {
    /// One that is to be done.
    pub fn new(offset: u64, buffers: Buffers<'a>) -> Self {
        Transfer { offset, buffers, result: Err(Error::new(ErrorKind::Interrupted, "not done yet")) }
    }

    /// Bytes it moves.
    pub fn bytes(&self) -> u64 {
        match &self.buffers {
            Buffers::Read(buffers) => crate::buffers::len(buffers),
            Buffers::Write(buffers) => crate::buffers::len(buffers),
        }
    }

    /// Whether it changes the disk.
    pub fn is_write(&self) -> bool {
        matches!(self.buffers, Buffers::Write(_))
    }

    /// Does it by itself.
    pub fn run<B: BlockBackend + ?Sized>(&mut self, disk: &B) {
        self.result = match &mut self.buffers {
            Buffers::Read(buffers) => disk.read_at(self.offset, buffers),
            Buffers::Write(buffers) => disk.write_at(self.offset, buffers),
        };
    }

    /// The same bytes at another offset, for the file below.
    pub(crate) fn moved(&mut self, offset: u64) -> Transfer<'_> {
        let buffers = match &mut self.buffers {
            Buffers::Read(buffers) => {
                Buffers::Read(buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect())
            }
            Buffers::Write(buffers) => {
                Buffers::Write(buffers.iter().map(|buffer| IoSlice::new(buffer)).collect())
            }
        };
        Transfer::new(offset, buffers)
    }
}
