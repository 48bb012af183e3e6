//! Making data durable, and then the records that lead to them.

use super::record::{MemberId, Place, Record, Slot};
use super::stored::{self, Area, BLOCK, LOG, Root};
use super::{Inner, Pool};
use crate::BlockBackend;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where the metadata of a member are.
#[derive(Clone, Debug)]
pub(super) struct MemberLog {
    pub areas: [Area; 2],
    /// The second area holds what counts.
    pub second: bool,
    /// So does the second root slot.
    pub second_slot: bool,
    /// Where the next batch goes, and where the area ends, in bytes of the file.
    pub at: u64,
    pub end: u64,
}

/// The log, in the same state on all healthy members.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub epoch: u64,
    /// Of the next batch.
    pub number: u64,
    pub members: BTreeMap<MemberId, MemberLog>,
    /// What is on the members may differ: a checkpoint must come next.
    pub must_checkpoint: bool,
    /// The last commit that ended, by its number.
    pub done: u64,
}

/// A member that did not do what it was told.
struct Failure {
    member: MemberId,
    error: Error,
}

type Disks = [(MemberId, Arc<dyn BlockBackend>)];

/// What a commit writes.
struct Prepared {
    bytes: Vec<u8>,
    is_checkpoint: bool,
    /// Records and freed places that it covers.
    records: usize,
    freed: usize,
}

fn on(member: MemberId) -> impl FnOnce(Error) -> Failure {
    move |error| Failure { member, error }
}

/// Chunks after which work on a whole volume is made durable, and what it gave up becomes free.
pub(super) const COMMIT_EVERY: u64 = 64;

/// No fault of the member: with more space it goes on.
pub(super) fn is_full(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

impl Pool {
    /// Makes durable all that was written and recorded before the call.
    pub(super) fn commit(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let before = self.commits.load(Ordering::SeqCst);
        let mut log = self.log.lock();
        if log.done > before {
            // One that began after the call has ended meanwhile.
            return Ok(());
        }
        let number = self.commits.fetch_add(1, Ordering::SeqCst) + 1;
        self.rest_regions(false)?;
        self.commit_with(&mut log)?;
        log.done = number;
        Ok(())
    }

    /// The last commit: everything is clean, and the log is empty.
    pub(super) fn close(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let mut log = self.log.lock();
        self.commit_with(&mut log)?;
        self.rest_regions(true)?;
        let idle = log.number == 0 && self.inner.read().queue.is_empty();
        log.must_checkpoint |= !idle;
        self.commit_with(&mut log)
    }

    pub(super) fn commit_with(&self, log: &mut Log) -> Result<()> {
        let mut lost = Ok(());
        loop {
            let prepared = self.prepare(log)?;
            match self.store(log, &prepared) {
                Ok(()) => {
                    self.settle(&prepared);
                    return lost;
                }
                Err(Failure { member, error }) => {
                    log.must_checkpoint = true;
                    let text = error.to_string();
                    self.fail_member(member, error)?;
                    if self.is_needed(member) {
                        lost = Err(Error::other(format!("Member {}: {text}", self.name_of(member))));
                    }
                }
            }
        }
    }

    /// Puts the records into a batch, or the whole state into a checkpoint: what is recorded from now on is not in it,
    /// because its data are not flushed yet.
    fn prepare(&self, log: &mut Log) -> Result<Prepared> {
        let inner = self.inner.read();
        let (records, freed) = (inner.queue.len(), inner.freed.len());
        if records == 0 && !log.must_checkpoint {
            return Ok(Prepared { bytes: Vec::new(), is_checkpoint: false, records, freed });
        }
        // A record takes a byte at least: not worth trying.
        if !log.must_checkpoint && records as u64 <= LOG {
            let bytes = stored::batch(log.epoch, log.number, &inner.queue)?;
            let len = bytes.len() as u64;
            let healthy = log.members.iter().filter(|(member, _)| inner.state.is_healthy(**member));
            if len <= LOG && healthy.clone().all(|(_, member)| member.at + len <= member.end) {
                return Ok(Prepared { bytes, is_checkpoint: false, records, freed });
            }
        }
        // An attempt that fails may have reached some members: its epoch does not come again.
        log.epoch += 1;
        let bytes = stored::checkpoint(log.epoch, &inner.state)?;
        Ok(Prepared { bytes, is_checkpoint: true, records, freed })
    }

    fn store(&self, log: &mut Log, prepared: &Prepared) -> std::result::Result<(), Failure> {
        let disks = self.healthy_disks();
        for (member, disk) in &disks {
            disk.flush().map_err(on(*member))?;
        }
        if prepared.is_checkpoint {
            self.write_checkpoint(log, &disks, &prepared.bytes)?;
            (log.number, log.must_checkpoint) = (0, false);
        } else if !prepared.bytes.is_empty() {
            write_batch(log, &disks, &prepared.bytes)?;
            log.number += 1;
        }
        Ok(())
    }

    fn write_checkpoint(
        &self,
        log: &mut Log,
        disks: &Disks,
        bytes: &[u8],
    ) -> std::result::Result<(), Failure> {
        let epoch = log.epoch;
        for (member, disk) in disks {
            let Some(own) = log.members.get_mut(member) else { continue };
            self.make_area(*member, &**disk, own, bytes.len() as u64).map_err(on(*member))?;
            let area = own.areas[usize::from(!own.second)];
            let at = u64::from(area.start) * self.chunk;
            disk.write_bytes(at, bytes).and_then(|()| disk.flush()).map_err(on(*member))?;
        }
        for (member, disk) in disks {
            let Some(own) = log.members.get_mut(member) else { continue };
            let second = !own.second;
            let area = own.areas[usize::from(second)];
            let root = Root { epoch, areas: own.areas, second, checkpoint: bytes.len() as u64 };
            let written = stored::write_root(&**disk, &root, !own.second_slot);
            written.and_then(|()| disk.flush()).map_err(on(*member))?;
            // From here on this root is the one that must stay, whatever becomes of the other members.
            (own.second, own.second_slot) = (second, !own.second_slot);
            own.at = u64::from(area.start) * self.chunk + bytes.len() as u64;
            own.end = u64::from(area.end()) * self.chunk;
        }
        Ok(())
    }

    /// Sees to it that the area which does not count is large enough for the next checkpoint.
    fn make_area(
        &self,
        member: MemberId,
        disk: &dyn BlockBackend,
        own: &mut MemberLog,
        len: u64,
    ) -> Result<()> {
        let mut inner = self.inner.write();
        let chunks: u64 = inner.state.members.values().map(|member| u64::from(member.chunks)).sum();
        let needed = stored::area_size(chunks).max(len + LOG).div_ceil(self.chunk) as u32;
        let area = own.areas[usize::from(!own.second)];
        if area.chunks >= needed {
            return Ok(());
        }
        let start = inner.space.take_run(member, needed).ok_or_else(|| {
            let text =
                format!("Member {} has no {needed} chunks in a row left for metadata", self.name_of(member));
            Error::new(ErrorKind::StorageFull, text)
        })?;
        for chunk in area.start..area.end() {
            inner.space.give_back(Place { member, chunk });
        }
        drop(inner);
        own.areas[usize::from(!own.second)] = Area { start, chunks: needed };
        write_zeros(disk, u64::from(start) * self.chunk, u64::from(needed) * self.chunk)
    }

    /// Frees what durable records freed.
    fn settle(&self, prepared: &Prepared) {
        let freed: Vec<Place> = {
            let mut inner = self.inner.write();
            inner.queue.drain(..prepared.records);
            inner.freed.drain(..prepared.freed).collect()
        };
        for place in &freed {
            let healthy = self.inner.read().state.is_healthy(place.member);
            // Only advice: space that cannot be given back to the host is used again by the pool.
            drop(
                self.disk(place.member)
                    .ok()
                    .filter(|_| healthy)
                    .map(|disk| disk.discard(self.offset(*place), self.chunk)),
            );
        }
        let mut inner = self.inner.write();
        freed.into_iter().for_each(|place| inner.space.give_back(place));
    }

    /// Gives up a member after an error, if the pool can be without it.
    pub(super) fn fail_member(&self, member: MemberId, error: Error) -> Result<()> {
        let mut inner = self.inner.write();
        let others = inner.state.members.iter().any(|(other, found)| *other != member && !found.failed);
        if !others || is_full(&error) {
            return Err(error);
        }
        if inner.state.is_healthy(member) {
            inner.space.set_closed(member, true);
            let unflushed = inner.unflushed_on(member);
            inner.change(vec![Record::MemberFailed { member }])?;
            inner.change(unflushed)?;
            let dirty = inner.state.dirty.clone();
            drop(inner);
            self.regions.lock().doubt(dirty);
        }
        Ok(())
    }

    /// Whether something is on this member and on no other that works.
    fn is_needed(&self, member: MemberId) -> bool {
        let inner = self.inner.read();
        let mut slots = inner.state.layers.values().flat_map(|layer| layer.map.values());
        slots.any(|slot| {
            slot.places().iter().any(|place| place.member == member)
                && !slot.places().iter().any(|place| inner.state.is_healthy(place.member))
        })
    }
}

impl Inner {
    /// Records that forget copies on a member which were made since the last commit, where there are others: nobody knows
    /// whether the member has them.
    fn unflushed_on(&self, member: MemberId) -> Vec<Record> {
        let mapped = self.queue.iter().filter_map(|record| match record {
            Record::Mapped { slot, .. } => slot.places().iter().find(|place| place.member == member),
            _ => None,
        });
        let recent: BTreeSet<Place> = mapped.copied().collect();
        if recent.is_empty() {
            return Vec::new();
        }
        let mut records = Vec::new();
        for (id, layer) in &self.state.layers {
            for (chunk, slot) in &layer.map {
                let Slot::Data { copies, filled } = *slot else { continue };
                let others = copies.filter(|place| place.member != member);
                let known = others.is_some_and(|others| self.state.healthy(&others).is_some());
                if let Some(copies) = others.filter(|_| known)
                    && slot.places().iter().any(|place| recent.contains(place))
                {
                    let slot = Slot::Data { copies, filled };
                    records.push(Record::Mapped { layer: *id, chunk: *chunk, slot });
                }
            }
        }
        records
    }
}

fn write_batch(log: &mut Log, disks: &Disks, bytes: &[u8]) -> std::result::Result<(), Failure> {
    for (member, disk) in disks {
        if let Some(own) = log.members.get(member) {
            disk.write_bytes(own.at, bytes).map_err(on(*member))?;
        }
    }
    for (member, disk) in disks {
        disk.flush().map_err(on(*member))?;
    }
    for (member, _) in disks {
        if let Some(own) = log.members.get_mut(member) {
            own.at += bytes.len() as u64;
        }
    }
    Ok(())
}

/// Writes zeros as data, so that a file takes the space now and not in the middle of a commit.
pub(super) fn write_zeros(disk: &dyn BlockBackend, mut at: u64, len: u64) -> Result<()> {
    let zeros = vec![0; len.clamp(BLOCK, 1 << 20) as usize];
    let end = at + len;
    while at < end {
        let part = zeros.get(..(end - at).min(zeros.len() as u64) as usize).unwrap_or(&zeros);
        disk.write_bytes(at, part)?;
        at += part.len() as u64;
    }
    Ok(())
}
