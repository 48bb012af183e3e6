//! A logical unit as a disk.

use crate::error::IscsiError;
use crate::scsi::{self, Command, Facts, Failure, lba_status};
use crate::session::Session;
use crate::uri::Location;
use crate::wire::{Dialer, Tcp};
use block::{BlockBackend, Buffers, ByteAligned, Capabilities, Extent, Transfer};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Longest read or write of one command, in bytes; longer requests are several.
const LONGEST: u64 = 1 << 20;
/// Commands of one request that are under way at once.
const AT_ONCE: usize = 8;
/// Bytes of an UNMAP or WRITE SAME of which nothing is said.
const STEP: u64 = 32 << 20;

/// A disk with whole blocks.
struct Disk {
    session: Arc<Session>,
    facts: Facts,
    read_only: bool,
    /// Bytes that a command reads or writes at most.
    longest: u64,
    /// WRITE SAME was not refused yet.
    same: AtomicBool,
    /// The long form of the flush was not refused yet.
    long_flush: AtomicBool,
    /// GET LBA STATUS was not refused yet.
    status: AtomicBool,
    /// Held by whoever flushes because much is kept.
    flushing: Mutex<()>,
}

/// Connects to a logical unit. Its requests may have any alignment.
///
/// # Errors
/// When the target is not there or refuses, the unit is no disk, or it is write-protected and `read_only` is not set.
pub fn open(location: &Location, read_only: bool) -> std::result::Result<Arc<dyn BlockBackend>, IscsiError> {
    open_with(location, read_only, Box::new(Tcp))
}

/// The same over any kind of connection.
pub(crate) fn open_with(
    location: &Location,
    read_only: bool,
    dialer: Box<dyn Dialer>,
) -> std::result::Result<Arc<dyn BlockBackend>, IscsiError> {
    let session = Session::open(location, dialer)?;
    let refuse = |problem| IscsiError::Unit { lun: location.lun, target: location.target.clone(), problem };
    let facts = scsi::ask(&mut |command| session.call(command));
    let facts = facts.and_then(|facts| match facts.write_protected && !read_only {
        true => Err("it is write-protected; open it read-only (readonly=on)".to_owned()),
        false => Ok(facts),
    });
    let facts = facts.map_err(|problem| {
        session.close();
        refuse(problem)
    })?;
    session.is(facts.clone());
    let block = u64::from(facts.block);
    let longest = match facts.longest {
        0 => LONGEST,
        blocks => (u64::from(blocks) * block).min(LONGEST),
    };
    tracing::debug!("iSCSI target {}: {facts:?}", location.target);
    let disk = Disk {
        longest,
        same: AtomicBool::new(true),
        long_flush: AtomicBool::new(true),
        status: AtomicBool::new(facts.thin),
        flushing: Mutex::new(()),
        session,
        facts,
        read_only,
    };
    Ok(Arc::new(ByteAligned::with_blocks(Arc::new(disk), block)))
}

/// A command of a request, and the request's bytes that it moves.
struct Part {
    task: u32,
    range: std::ops::Range<usize>,
}

impl Disk {
    fn block(&self) -> u64 {
        self.facts.block.into()
    }

    fn check_blocks(&self, offset: u64, len: u64) -> Result<()> {
        if (offset | len).is_multiple_of(self.block()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidInput, "the range has parts of blocks"))
    }

    /// A command's range in blocks.
    fn blocks(&self, offset: u64, len: u64) -> Result<(u64, u32)> {
        self.check_blocks(offset, len)?;
        let count = u32::try_from(len / self.block()).map_err(|_| ErrorKind::InvalidInput)?;
        Ok((offset / self.block(), count))
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<u64> {
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        self.check_range(offset, len)
    }

    /// Does a request as several commands, `AT_ONCE` of them at a time.
    fn in_parts(
        &self,
        len: usize,
        mut submit: impl FnMut(std::ops::Range<usize>) -> Result<u32>,
        mut done: impl FnMut(std::ops::Range<usize>, std::result::Result<Vec<u8>, Failure>) -> Result<()>,
    ) -> Result<()> {
        let mut result = Ok(());
        let mut under_way: VecDeque<Part> = VecDeque::new();
        let mut at = 0;
        while at < len || !under_way.is_empty() {
            if at < len && under_way.len() < AT_ONCE && result.is_ok() {
                let range = at..len.min(at.saturating_add(self.longest as usize));
                at = range.end;
                match submit(range.clone()) {
                    Ok(task) => under_way.push_back(Part { task, range }),
                    Err(error) => result = Err(error),
                }
                continue;
            }
            let Some(part) = under_way.pop_front() else { break };
            let outcome = done(part.range, self.session.wait(part.task));
            result = result.and(outcome);
        }
        result
    }

    fn submit_read(&self, offset: u64, len: usize) -> Result<u32> {
        let (block, count) = self.blocks(offset, len as u64)?;
        Ok(self.session.submit(Command::read(block, count, len as u32)))
    }

    fn submit_write(&self, offset: u64, data: Vec<u8>) -> Result<u32> {
        let (block, count) = self.blocks(offset, data.len() as u64)?;
        Ok(self.session.submit(Command::write(block, count, data)))
    }

    /// A read's data, of which none may be missing.
    fn read_done(outcome: std::result::Result<Vec<u8>, Failure>, len: usize) -> Result<Vec<u8>> {
        let data = outcome.map_err(|failure| failure.into_io(READING))?;
        if data.len() == len { Ok(data) } else { Err(Failure::Short.into_io(READING)) }
    }

    /// What is kept for repetition has a bound.
    fn after_write(&self) -> Result<()> {
        if !self.session.wants_flush() {
            return Ok(());
        }
        let _turn = self.flushing.lock();
        if self.session.wants_flush() { self.flush() } else { Ok(()) }
    }

    fn flush_command(&self) -> std::result::Result<(), Failure> {
        if self.long_flush.load(Ordering::Relaxed) {
            match self.session.call(Command::flush(true)) {
                Err(failure) if failure.is_unknown() => self.long_flush.store(false, Ordering::Relaxed),
                result => return result.map(drop),
            }
        }
        match self.session.call(Command::flush(false)) {
            // Without a cache there is nothing to flush.
            Err(failure) if failure.is_unknown() && !self.facts.cache => Ok(()),
            result => result.map(drop),
        }
    }

    /// Runs commands without much data over a range of whole blocks, each of at most `most` blocks.
    fn over_range(
        &self,
        offset: u64,
        len: u64,
        most: u64,
        mut make: impl FnMut(u64, u32) -> Command,
    ) -> std::result::Result<(), Failure> {
        let most = most.clamp(1, (STEP / self.block()).max(1));
        let (mut at, end) = (offset / self.block(), (offset + len) / self.block());
        while at < end {
            let count = most.min(end - at);
            self.session.call(make(at, count as u32))?;
            at += count;
        }
        Ok(())
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> Result<()> {
        let mut at = offset;
        while at < offset + len {
            let part = (offset + len - at).min(LONGEST);
            self.write_at(at, &[IoSlice::new(&vec![0; part as usize])])?;
            at += part;
        }
        Ok(())
    }

    fn whole(&self, transfer: &Transfer<'_>) -> bool {
        let (offset, len) = (transfer.offset, transfer.bytes());
        let may =
            if transfer.is_write() { self.check_write(offset, len) } else { self.check_range(offset, len) };
        may.is_ok() && (1..=self.longest).contains(&len)
    }
}

const READING: &str = "Reading from the iSCSI target failed";
const WRITING: &str = "Writing to the iSCSI target failed";

fn joined(buffers: &[IoSlice<'_>]) -> Vec<u8> {
    let mut all = Vec::with_capacity(buffers.iter().map(|buffer| buffer.len()).sum());
    buffers.iter().for_each(|buffer| all.extend_from_slice(buffer));
    all
}

/// Fills buffers from bytes.
fn scatter(data: &[u8], buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
    let mut rest = data;
    for buffer in buffers {
        let (first, after) = rest.split_at_checked(buffer.len()).ok_or(ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(first);
        rest = after;
    }
    Ok(())
}

impl BlockBackend for Disk {
    fn size(&self) -> u64 {
        self.facts.blocks * self.block()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: self.read_only,
            discard: self.facts.unmap > 0 || self.facts.unmaps_same,
            zero_alignment: if self.same.load(Ordering::Relaxed) { self.block().max(4096) } else { 1 << 63 },
            growable: false,
        }
    }

    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        self.check_range(offset, len as u64)?;
        let mut all = vec![0; if len as u64 > self.longest { len } else { 0 }];
        let mut only = Vec::new();
        self.in_parts(
            len,
            |range| self.submit_read(offset + range.start as u64, range.len()),
            |range, outcome| {
                let data = Self::read_done(outcome, range.len())?;
                match all.get_mut(range) {
                    Some(place) => place.copy_from_slice(&data),
                    None => only = data,
                }
                Ok(())
            },
        )?;
        scatter(if all.is_empty() { &only } else { &all }, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let mut data = joined(buffers);
        let len = data.len();
        self.check_write(offset, len as u64)?;
        self.in_parts(
            len,
            |range| {
                let at = offset + range.start as u64;
                let whole = range.len() == len;
                let part = if whole {
                    std::mem::take(&mut data)
                } else {
                    data.get(range).unwrap_or_default().to_vec()
                };
                self.submit_write(at, part)
            },
            |_, outcome| outcome.map(drop).map_err(|failure| failure.into_io(WRITING)),
        )?;
        self.after_write()
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let flushed = self.session.flush(|| self.flush_command());
        flushed.map_err(|failure| failure.into_io("Flushing the iSCSI target's cache failed"))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        self.check_blocks(offset, len)?;
        let done = if self.facts.unmap > 0 {
            self.over_range(offset, len, self.facts.unmap.into(), Command::unmap)
        } else if self.facts.unmaps_same {
            let most = self.facts.same.unwrap_or(u64::MAX);
            self.over_range(offset, len, most, |at, count| {
                Command::write_same(at, count, true, self.facts.block)
            })
        } else {
            return Ok(());
        };
        match done {
            // Discarding is advice.
            Err(failure) if failure.is_unknown() => Ok(()),
            Err(failure) => Err(failure.into_io("Discarding on the iSCSI target failed")),
            Ok(()) => self.after_write(),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.check_write(offset, len)?;
        self.check_blocks(offset, len)?;
        let unmap = unmap && self.facts.unmaps_same && self.facts.zeros;
        if self.same.load(Ordering::Relaxed) {
            let most = self.facts.same.unwrap_or(u64::MAX);
            let make = |at, count| Command::write_same(at, count, unmap, self.facts.block);
            match self.over_range(offset, len, most, make) {
                Err(failure) if failure.is_unknown() => self.same.store(false, Ordering::Relaxed),
                Err(failure) => return Err(failure.into_io("Writing zeros to the iSCSI target failed")),
                Ok(()) => return self.after_write(),
            }
        }
        self.write_zero_bytes(offset, len)
    }

    fn resize(&self, _size: u64) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "a logical unit's size is changed at its target"))
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        let unknown = Extent::data(offset, len, None);
        let block = offset / self.block();
        if len == 0 || !self.status.load(Ordering::Relaxed) {
            return Ok(unknown);
        }
        let answer = match self.session.call(Command::get_lba_status(block)) {
            Ok(answer) => answer,
            Err(failure) if failure.is_unknown() => {
                self.status.store(false, Ordering::Relaxed);
                return Ok(unknown);
            }
            Err(failure) => return Err(failure.into_io(READING)),
        };
        let Some((count, stored)) = lba_status(&answer, block) else { return Ok(unknown) };
        let length = count.saturating_mul(self.block()).min(len);
        // Without the promise that they read as zeros, blocks without space hold anything.
        let hole = !stored && self.facts.zeros;
        Ok(if hole { Extent::hole(offset, length) } else { Extent::data(offset, length, None) })
    }

    fn batches(&self) -> bool {
        true
    }

    fn transfer(&self, batch: &mut [&mut Transfer<'_>]) {
        let mut tasks = Vec::with_capacity(batch.len());
        for transfer in batch.iter_mut() {
            if !self.whole(transfer) {
                tasks.push(None);
                continue;
            }
            let (offset, len) = (transfer.offset, transfer.bytes() as usize);
            let task = match &transfer.buffers {
                Buffers::Read(_) => self.submit_read(offset, len),
                Buffers::Write(buffers) => self.submit_write(offset, joined(buffers)),
            };
            tasks.push(task.ok());
        }
        for (transfer, task) in batch.iter_mut().zip(tasks) {
            // What one command cannot do says what is wrong by itself, or is done in parts.
            let Some(task) = task else {
                transfer.run(self);
                continue;
            };
            let len = transfer.bytes() as usize;
            let outcome = self.session.wait(task);
            transfer.result = match &mut transfer.buffers {
                Buffers::Read(buffers) => {
                    Self::read_done(outcome, len).and_then(|data| scatter(&data, buffers))
                }
                Buffers::Write(_) => {
                    let written = outcome.map(drop).map_err(|failure| failure.into_io(WRITING));
                    written.and_then(|()| self.after_write())
                }
            };
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.session.close();
    }
}
