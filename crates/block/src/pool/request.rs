//! Reading and writing a part of a chunk.

use super::Pool;
use super::commit::is_full;
use super::record::{Copies, Filled, LayerId, MemberId, Place, Record, Slot, Stored, VolumeId};
use super::state::Found;
use crate::BlockBackend;
use crate::buffers::{len, part};
use std::io::{Error, IoSlice, IoSliceMut, Result};

/// What is written.
pub(super) enum Content<'a> {
    Bytes(&'a [IoSlice<'a>]),
    /// So many zeros.
    Zeros(u64),
}

impl Content<'_> {
    pub fn len(&self) -> u64 {
        match self {
            Content::Bytes(buffers) => len(buffers),
            Content::Zeros(len) => *len,
        }
    }

    /// Copies it from a byte on, as much as there is room for.
    pub fn copy_to(&self, skip: u64, target: &mut [u8]) {
        match self {
            Content::Zeros(_) => target.fill(0),
            Content::Bytes(buffers) => {
                let mut rest = target;
                for buffer in part(buffers, skip, rest.len() as u64) {
                    let Some((now, after)) = std::mem::take(&mut rest).split_at_mut_checked(buffer.len())
                    else {
                        return;
                    };
                    now.copy_from_slice(&buffer);
                    rest = after;
                }
            }
        }
    }

    fn write(&self, disk: &dyn BlockBackend, offset: u64) -> Result<()> {
        match self {
            Content::Bytes(buffers) => disk.write_at(offset, buffers),
            Content::Zeros(len) => disk.write_zeroes(offset, *len, true),
        }
    }
}

/// Bytes that are copied at once.
pub(super) const COPY: u64 = 1 << 20;

impl Pool {
    pub(super) fn read_piece(
        &self,
        volume: VolumeId,
        layer: LayerId,
        chunk: u32,
        at: u64,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<()> {
        let _hold = self.share(volume, chunk);
        let found = self.inner.read().state.find(layer, chunk);
        match found {
            Found::Zeros | Found::Reserved(_) => {
                buffers.iter_mut().for_each(|buffer| buffer.fill(0));
                Ok(())
            }
            Found::Own(stored) | Found::Inherited(stored) if stored.summed => {
                self.read_summed(volume, chunk, &stored.copies, at, buffers)
            }
            Found::Own(stored) | Found::Inherited(stored) => {
                self.read_copies(volume, chunk, &stored.copies, at, buffers)
            }
        }
    }

    /// Reads from one of the copies; neighbours read from different ones.
    pub(super) fn read_copies(
        &self,
        volume: VolumeId,
        chunk: u32,
        copies: &Copies,
        at: u64,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<()> {
        let (healthy, in_doubt) = self.readable(volume, chunk, copies)?;
        let places = healthy.places();
        // What cannot be made equal is read from the copy that would count.
        let first = if in_doubt { 0 } else { (at >> 20) as usize + chunk as usize };
        let mut result = Ok(());
        for number in 0..places.len() {
            let Some(place) = places.get((first + number) % places.len()) else { break };
            result = self.disk(place.member).and_then(|disk| disk.read_at(self.offset(*place) + at, buffers));
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// The copies of a chunk that can be reached, and whether they may differ: the pool was not closed, and is open for
    /// reading only.
    pub(super) fn readable(&self, volume: VolumeId, chunk: u32, copies: &Copies) -> Result<(Copies, bool)> {
        let (healthy, dirty) = {
            let state = &self.inner.read().state;
            (state.healthy(copies), state.dirty.contains(&(volume, state.region_of(chunk))))
        };
        let healthy = healthy.ok_or_else(|| self.lost(volume, chunk, copies))?;
        Ok((healthy, dirty && self.read_only))
    }

    /// The error of a chunk none of whose copies can be reached.
    fn lost(&self, volume: VolumeId, chunk: u32, copies: &Copies) -> Error {
        let names: Vec<String> = copies.places().iter().map(|place| self.name_of(place.member)).collect();
        let name = self.inner.read().state.volumes.get(&volume).map(|volume| volume.settings.name.clone());
        let text = format!(
            "Chunk {chunk} of volume {} is only on member {}, which is missing or failed",
            name.unwrap_or_default(),
            names.join(" and ")
        );
        Error::other(text)
    }

    pub(super) fn write_piece(
        &self,
        volume: VolumeId,
        layer: LayerId,
        chunk: u32,
        at: u64,
        content: &Content<'_>,
    ) -> Result<()> {
        loop {
            let hold = self.share(volume, chunk);
            if let Some(Stored { copies, summed }) = self.in_place(layer, chunk) {
                let may_differ = copies.places().len() > 1 || summed;
                let _region = if may_differ { Some(self.use_region(volume, chunk)?) } else { None };
                let written = if summed {
                    self.write_summed(volume, chunk, &copies, at, content)
                } else {
                    let write = |disk: &dyn BlockBackend, place| content.write(disk, self.offset(place) + at);
                    self.write_copies(&copies, write)
                };
                let written = match written {
                    Ok(written) => written,
                    Err(error) => {
                        drop(hold);
                        self.level_after(
                            volume,
                            layer,
                            chunk,
                            &Stored { copies, summed },
                            at..at + content.len(),
                        );
                        return Err(error);
                    }
                };
                if written == copies {
                    return Ok(());
                }
                // A copy missed it; before this is acknowledged, it must be forgotten.
            }
            drop(hold);
            let _hold = self.alone(volume, chunk);
            if self.in_place(layer, chunk).is_none() && self.place(volume, layer, chunk, at, content)? {
                return Ok(());
            }
        }
    }

    /// The copies of a chunk that can be written where they are: it is the top layer's own, and all of them work.
    pub(super) fn in_place(&self, layer: LayerId, chunk: u32) -> Option<Stored> {
        let state = &self.inner.read().state;
        match state.find(layer, chunk) {
            Found::Own(stored) if state.healthy(&stored.copies) == Some(stored.copies) => Some(stored),
            _ => None,
        }
    }

    /// Writes to all copies, and tells which of them have it. Members that fail are given up, if others have it.
    pub(super) fn write_copies(
        &self,
        copies: &Copies,
        write: impl Fn(&dyn BlockBackend, Place) -> Result<()>,
    ) -> Result<Copies> {
        let mut failed: Vec<(MemberId, Error)> = Vec::new();
        for place in copies.places() {
            let done = self.disk(place.member).and_then(|disk| write(&*disk, *place));
            failed.extend(done.err().map(|error| (place.member, error)));
        }
        let written = copies.filter(|place| failed.iter().all(|(member, _)| *member != place.member));
        let lost_some = !failed.is_empty();
        for (member, error) in failed {
            if written.is_none() || is_full(&error) {
                return Err(error);
            }
            self.fail_member(member, error)?;
        }
        if lost_some {
            // Nobody hears that the write is done while the log still trusts the copy that missed it.
            self.commit()?;
        }
        written.ok_or_else(|| Error::other("The chunk has no copy"))
    }

    /// Gives a chunk that cannot be written in place another one, or takes it into use. `Ok(false)`: it can be written
    /// in place now. The caller has the chunk alone.
    fn place(
        &self,
        volume: VolumeId,
        layer: LayerId,
        chunk: u32,
        at: u64,
        content: &Content<'_>,
    ) -> Result<bool> {
        let found = self.inner.read().state.find(layer, chunk);
        let (target, source) = match found {
            Found::Own(stored) => {
                self.forget_failed(volume, layer, chunk, stored.copies, Stored::filled(stored.summed))?;
                return Ok(false);
            }
            Found::Reserved(copies) => (self.forget_failed(volume, layer, chunk, copies, Filled::No)?, None),
            Found::Zeros if matches!(content, Content::Zeros(_)) => return Ok(true),
            Found::Zeros => (self.allocate(&self.settings(volume)?, chunk)?, None),
            Found::Inherited(stored) => (self.allocate(&self.settings(volume)?, chunk)?, Some(stored)),
        };
        // Who has checksums keeps them: without, rot would be taken for data.
        let summed = source.is_some_and(|source| source.summed) || self.has_checksums(volume);
        let target = Stored { copies: target, summed };
        // What was cleared may still be data in the log, with checksums and equal copies, until the next commit.
        let reserved = matches!(found, Found::Reserved(_));
        let may_differ = target.copies.places().len() > 1 || summed || self.has_tables();
        let _region = if reserved && may_differ { Some(self.use_region(volume, chunk)?) } else { None };
        let filled = self.fill(volume, chunk, &target, source.as_ref(), at, content);
        if reserved {
            let slot = Slot::Data { copies: filled?, filled: Stored::filled(summed) };
            self.change(vec![Record::Mapped { layer, chunk, slot }])?;
        } else {
            self.map_filled(layer, chunk, &target, filled)?;
        }
        Ok(true)
    }

    /// Records the copies of a new chunk that were filled, and gives back places that were taken for others.
    pub(super) fn map_filled(
        &self,
        layer: LayerId,
        chunk: u32,
        target: &Stored,
        filled: Result<Copies>,
    ) -> Result<()> {
        let recorded = filled.and_then(|copies| {
            let slot = Slot::Data { copies, filled: Stored::filled(target.summed) };
            self.change(vec![Record::Mapped { layer, chunk, slot }])?;
            Ok(copies)
        });
        let kept = recorded.as_ref().ok();
        let lost = target
            .copies
            .places()
            .iter()
            .filter(|place| kept.is_none_or(|kept| !kept.places().contains(place)));
        self.give_back(&lost.copied().collect::<Vec<_>>());
        recorded.map(drop)
    }

    /// Leaves only copies on members that work, durably, because they are about to differ from the others.
    fn forget_failed(
        &self,
        volume: VolumeId,
        layer: LayerId,
        chunk: u32,
        copies: Copies,
        filled: Filled,
    ) -> Result<Copies> {
        let (healthy, _) = self.readable(volume, chunk, &copies)?;
        if healthy != copies {
            self.change(vec![Record::Mapped { layer, chunk, slot: Slot::Data { copies: healthy, filled } }])?;
            self.commit()?;
        }
        Ok(healthy)
    }

    /// Writes a whole chunk: `content` at `at`, the rest from `source`, or zeros.
    pub(super) fn fill(
        &self,
        volume: VolumeId,
        chunk: u32,
        target: &Stored,
        source: Option<&Stored>,
        at: u64,
        content: &Content<'_>,
    ) -> Result<Copies> {
        if target.summed {
            return self.fill_summed(volume, chunk, &target.copies, source, at, content);
        }
        let mut target = target.copies;
        let end = at + content.len();
        for (start, stop) in [(0, at), (end, self.chunk)] {
            let Some(source) = source else {
                if start < stop {
                    target = self.write_copies(&target, |disk, place| {
                        disk.write_zeroes(self.offset(place) + start, stop - start, true)
                    })?;
                }
                continue;
            };
            let mut buffer = vec![0; (stop - start).min(COPY) as usize];
            let mut next = start;
            while next < stop {
                let len = (stop - next).min(COPY) as usize;
                let bytes = buffer.get_mut(..len).unwrap_or_default();
                self.read_copies(volume, chunk, &source.copies, next, &mut [IoSliceMut::new(bytes)])?;
                target = self.write_copies(&target, |disk, place| {
                    disk.write_bytes(self.offset(place) + next, bytes)
                })?;
                next += len as u64;
            }
        }
        self.write_copies(&target, |disk, place| content.write(disk, self.offset(place) + at))
    }

    /// A discard of a part of a chunk, or of all of it.
    pub(super) fn discard_piece(
        &self,
        volume: VolumeId,
        layer: LayerId,
        chunk: u32,
        whole: bool,
        at: u64,
        len: u64,
    ) -> Result<()> {
        if whole {
            return self.clear_chunk(volume, layer, chunk, false);
        }
        let is_own = self.in_place(layer, chunk).is_some();
        if is_own { self.write_piece(volume, layer, chunk, at, &Content::Zeros(len)) } else { Ok(()) }
    }

    /// Makes a chunk read as zeros. Its space is kept with `keep`, and by volumes that are thick.
    pub(super) fn clear_chunk(&self, volume: VolumeId, layer: LayerId, chunk: u32, keep: bool) -> Result<()> {
        let _hold = self.alone(volume, chunk);
        let mut inner = self.inner.write();
        let keep = keep || inner.state.is_thick(volume);
        match inner.state.find(layer, chunk) {
            Found::Zeros => Ok(()),
            Found::Reserved(_) if keep => Ok(()),
            _ => inner.change(vec![Record::Cleared { layer, chunk, keep }]),
        }
    }
}
