//! One request of a block device (virtio 5.2.6): header, data, status byte, in any division into buffers.
#![expect(unsafe_code, reason = "disk data goes directly between guest RAM and the backend")]

use super::bits::{ID_LEN, RANGE_SECTORS_MAX, RANGES_MAX, feature, request, status};
use super::link::{DiskLink, ErrorAction};
use crate::queue::{Buffer, Chain, QueueError};
use block::{BlockBackend, Buffers, SECTOR_SIZE, Transfer};
use guest_memory::GuestMemory;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result as IoResult};

const HEADER_LEN: usize = 16;
const RANGE_LEN: usize = 16;

/// What a request is executed on.
pub(super) struct Disk<'a> {
    pub backend: &'a dyn BlockBackend,
    pub link: &'a DiskLink,
    pub id: &'a [u8; ID_LEN],
    /// Negotiated.
    pub features: u64,
    pub writeback: bool,
    pub memory: &'a GuestMemory,
}

/// A range of the disk in bytes that lies inside of it.
struct Range {
    offset: u64,
    len: u64,
    unmap: bool,
}

/// Why a request has no success.
pub(super) enum Fault {
    /// It is wrong in itself.
    Guest(Error),
    /// The host failed.
    Host { write: bool, error: Error },
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Guest(error)
    }
}

impl Fault {
    fn of_host(write: bool, error: Error) -> Self {
        match error.kind() {
            // What the back end cannot do at all, the guest has to know.
            ErrorKind::Unsupported => Fault::Guest(error),
            _ => Fault::Host { write, error },
        }
    }

    fn read(error: Error) -> Self {
        Fault::of_host(false, error)
    }

    fn write(error: Error) -> Self {
        Fault::of_host(true, error)
    }
}

fn bad(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let part = bytes.get(at..at + 4).and_then(|part| part.try_into().ok());
    u32::from_le_bytes(part.unwrap_or_default())
}

fn sector(header: &[u8]) -> u64 {
    u64::from(word(header, 8)) | u64::from(word(header, 12)) << 32
}

/// What came of a request's data: how many bytes were written to the start of its writable part.
pub(super) type Done = Result<u64, Fault>;

impl Disk<'_> {
    /// Does the reads and writes at the front of these requests at once, if they are at least two; says for each what
    /// came of it, which is for [`Disk::execute`].
    pub fn execute_together(&self, chains: Vec<Chain>) -> VecDeque<(Chain, Done)> {
        let mut staged = Vec::new();
        for chain in chains {
            let mut own = chain.clone();
            match self.stage(&mut own) {
                Some(transfer) => staged.push((chain, own, transfer)),
                None => break,
            }
        }
        if staged.len() < 2 {
            return VecDeque::new();
        }
        let mut batch: Vec<&mut Transfer<'_>> = staged.iter_mut().map(|(_, _, transfer)| transfer).collect();
        self.backend.transfer(&mut batch);
        let finish = |(chain, own, transfer): (Chain, Chain, Transfer<'_>)| {
            let done = if transfer.is_write() {
                transfer.result.map_err(Fault::write).and_then(|()| self.write_through()).map(|()| 0)
            } else {
                self.note_written(own.writable());
                transfer.result.map(|()| own.writable_len()).map_err(Fault::read)
            };
            (chain, done)
        };
        staged.into_iter().map(finish).collect()
    }

    /// A read or write as a transfer; `None` for everything else, and for what is wrong in itself.
    fn stage(&self, chain: &mut Chain) -> Option<Transfer<'static>> {
        chain.take_last_writable()?;
        let mut header = [0; HEADER_LEN];
        if chain.read(self.memory, &mut header).ok()? != HEADER_LEN {
            return None;
        }
        let sector = sector(&header);
        match word(&header, 0) {
            request::READ => {
                let range = self.range(sector, chain.writable_len()).ok()?;
                Some(Transfer::new(range.offset, Buffers::Read(self.filled(chain.writable()).ok()?)))
            }
            request::WRITE => {
                self.refuse_if_read_only().ok()?;
                let len = chain.readable().iter().map(|buffer| u64::from(buffer.len)).sum();
                let range = self.range(sector, len).ok()?;
                Some(Transfer::new(range.offset, Buffers::Write(self.taken(chain.readable()).ok()?)))
            }
            _ => None,
        }
    }

    /// Executes a request and writes its status; with `done`, only the status. Returns how many bytes were written from the start of the writable
    /// part on: all with the status behind them, or as many as are sure (virtio 2.7.8.2). `None`: the host failed, and
    /// the request is to be done again.
    ///
    /// # Errors
    /// When not even the status can be written.
    pub fn execute(&self, mut chain: Chain, done: Option<Done>) -> Result<Option<u32>, QueueError> {
        // A request without room for its status cannot be answered; it is given back as it is.
        let Some(status_address) = chain.take_last_writable() else { return Ok(Some(0)) };
        self.memory.host_range(status_address, 1)?;
        let data_len = chain.writable_len();
        let (code, written) = match done.unwrap_or_else(|| self.perform(&mut chain)) {
            Ok(written) => (status::OK, written),
            Err(Fault::Guest(error)) if error.kind() == ErrorKind::Unsupported => (status::UNSUPPORTED, 0),
            Err(Fault::Guest(error)) => {
                tracing::debug!("wrong disk request: {error}");
                (status::IO_ERROR, 0)
            }
            Err(Fault::Host { write, error }) => {
                tracing::debug!("disk request failed: {error}");
                match self.link.failed(write, &error) {
                    ErrorAction::Stop => return Ok(None),
                    ErrorAction::Ignore => (status::OK, if write { 0 } else { data_len }),
                    ErrorAction::Report | ErrorAction::Enospc => (status::IO_ERROR, 0),
                }
            }
        };
        self.memory.write(status_address, &[code])?;
        // The chain has at most 4 GiB, so the sum fits.
        Ok(Some((written + u64::from(written == data_len)) as u32))
    }

    /// Does what the header says; returns how many bytes were written to the start of the writable part.
    fn perform(&self, chain: &mut Chain) -> Result<u64, Fault> {
        let mut header = [0; HEADER_LEN];
        let read = chain.read(self.memory, &mut header).map_err(|_| bad("header outside of RAM"))?;
        if read != HEADER_LEN {
            return Err(bad("header cut off").into());
        }
        let sector = sector(&header);
        match word(&header, 0) {
            request::READ => self.read(sector, chain.writable()),
            request::WRITE => self.write(sector, chain.readable()),
            request::FLUSH => self.backend.flush().map(|()| 0).map_err(Fault::write),
            request::GET_ID => {
                let written = chain.write(self.memory, self.id).map_err(|_| bad("buffer outside of RAM"))?;
                Ok(written as u64)
            }
            kind @ (request::DISCARD | request::WRITE_ZEROES) => self.change_ranges(kind, chain),
            _ => Err(Error::from(ErrorKind::Unsupported).into()),
        }
    }

    /// A range inside the disk, or an error.
    fn range(&self, sector: u64, len: u64) -> IoResult<Range> {
        let offset = sector.checked_mul(SECTOR_SIZE).ok_or_else(|| bad("sector past all disks"))?;
        let end = offset.checked_add(len).ok_or_else(|| bad("end past all disks"))?;
        if end > self.backend.size() || !len.is_multiple_of(SECTOR_SIZE) {
            return Err(bad("beyond the disk's end, or not whole sectors"));
        }
        Ok(Range { offset, len, unmap: false })
    }

    fn refuse_if_read_only(&self) -> IoResult<()> {
        match self.backend.is_read_only() {
            true => Err(ErrorKind::PermissionDenied.into()),
            false => Ok(()),
        }
    }

    /// After a change: it is complete once it is on the disk, unless the driver asked for less.
    fn write_through(&self) -> Result<(), Fault> {
        if self.writeback { Ok(()) } else { self.backend.flush().map_err(Fault::write) }
    }

    fn host(&self, buffer: &Buffer) -> IoResult<(*mut u8, usize)> {
        let pointer = self.memory.host_range(buffer.address, buffer.len.into());
        Ok((pointer.map_err(|_| bad("buffer outside of RAM"))?, buffer.len as usize))
    }

    /// Guest RAM that the backend fills.
    fn filled(&self, buffers: &[Buffer]) -> IoResult<Vec<IoSliceMut<'static>>> {
        let slice = |buffer| {
            let (pointer, len) = self.host(buffer)?;
            // SAFETY: the range is guest RAM, which stays mapped for as long as requests are served. The guest and, if
            // the driver named memory twice, another slice may change it meanwhile, as with any DMA; backends only fill
            // it and do not look at it.
            Ok(IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(pointer, len) }))
        };
        buffers.iter().map(slice).collect()
    }

    /// Guest RAM that the backend takes.
    fn taken(&self, buffers: &[Buffer]) -> IoResult<Vec<IoSlice<'static>>> {
        let slice = |buffer| {
            let (pointer, len) = self.host(buffer)?;
            // SAFETY: as in `filled`; backends copy from it once and believe nothing it says.
            Ok(IoSlice::new(unsafe { std::slice::from_raw_parts(pointer, len) }))
        };
        buffers.iter().map(slice).collect()
    }

    /// After a failure too: some of it may have been written.
    fn note_written(&self, buffers: &[Buffer]) {
        for buffer in buffers {
            self.memory.note_write(buffer.address, buffer.len.into());
        }
    }

    fn read(&self, sector: u64, buffers: &[Buffer]) -> Result<u64, Fault> {
        let len = buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
        let range = self.range(sector, len)?;
        let result = self.backend.read_at(range.offset, &mut self.filled(buffers)?);
        self.note_written(buffers);
        result.map(|()| len).map_err(Fault::read)
    }

    fn write(&self, sector: u64, buffers: &[Buffer]) -> Result<u64, Fault> {
        self.refuse_if_read_only()?;
        let range = self.range(sector, buffers.iter().map(|buffer| u64::from(buffer.len)).sum())?;
        self.backend.write_at(range.offset, &self.taken(buffers)?).map_err(Fault::write)?;
        self.write_through()?;
        Ok(0)
    }

    /// Discard and write zeroes (virtio 5.2.6.2): all ranges are looked at before the first is changed.
    fn change_ranges(&self, kind: u32, chain: &mut Chain) -> Result<u64, Fault> {
        let negotiated = match kind {
            request::DISCARD => feature::DISCARD,
            _ => feature::WRITE_ZEROES,
        };
        if self.features & negotiated == 0 {
            return Err(Error::from(ErrorKind::Unsupported).into());
        }
        self.refuse_if_read_only()?;
        let len = chain.readable_len();
        let count = len / RANGE_LEN as u64;
        if !len.is_multiple_of(RANGE_LEN as u64) || !(1..=u64::from(RANGES_MAX)).contains(&count) {
            return Err(bad("number of ranges").into());
        }
        let ranges = (0..count).map(|_| self.read_range(kind, chain)).collect::<IoResult<Vec<_>>>()?;
        for Range { offset, len, unmap } in ranges.into_iter().filter(|range| range.len > 0) {
            match kind {
                request::DISCARD => self.backend.discard(offset, len),
                _ => self.backend.write_zeroes(offset, len, unmap),
            }
            .map_err(Fault::write)?;
        }
        self.write_through()?;
        Ok(0)
    }

    fn read_range(&self, kind: u32, chain: &mut Chain) -> IoResult<Range> {
        let mut bytes = [0; RANGE_LEN];
        let read = chain.read(self.memory, &mut bytes).map_err(|_| bad("range outside of RAM"))?;
        if read != RANGE_LEN {
            return Err(bad("range cut off"));
        }
        let sector = u64::from(word(&bytes, 0)) | u64::from(word(&bytes, 4)) << 32;
        let (sectors, flags) = (word(&bytes, 8), word(&bytes, 12));
        let allowed = if kind == request::WRITE_ZEROES { request::FLAG_UNMAP } else { 0 };
        if flags & !allowed != 0 {
            return Err(ErrorKind::Unsupported.into());
        }
        if sectors > RANGE_SECTORS_MAX {
            return Err(bad("range too long"));
        }
        let range = self.range(sector, u64::from(sectors) * SECTOR_SIZE)?;
        Ok(Range { unmap: flags & request::FLAG_UNMAP != 0, ..range })
    }
}
