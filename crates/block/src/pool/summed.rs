//! Reading and writing chunks that have checksums ([`super::sums`]).

use super::Pool;
use super::commit::COMMIT_EVERY;
use super::holds::Hold;
use super::record::{Copies, Filled, LayerId, Record, Slot, Stored, VolumeId};
use super::request::{COPY, Content};
use super::sums::{BLOCK, Mend, Part};
use crate::buffers::{len, part_mut};
use std::io::{Error, ErrorKind, IoSliceMut, Result};
use std::ops::Range;

/// Bytes of a chunk that are held together: checksums fit to the data when nobody writes there.
pub(super) const STRIPE: u64 = 64 << 10;

/// Parts of a range that are whole blocks or lie in one, none larger than [`COPY`].
fn parts(at: u64, len: u64) -> impl Iterator<Item = Range<u64>> {
    let end = at + len;
    let mut next = at;
    std::iter::from_fn(move || {
        let start = next;
        let first = start / BLOCK * BLOCK;
        next = if start > first || end - start < BLOCK {
            end.min(first + BLOCK)
        } else {
            ((start / COPY + 1) * COPY).min(end / BLOCK * BLOCK)
        };
        (start < end).then_some(start..next)
    })
}

/// The blocks that a range touches.
fn blocks_around(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK * BLOCK..range.end.next_multiple_of(BLOCK)
}

impl Pool {
    fn hold_stripes(&self, volume: VolumeId, chunk: u32, range: &Range<u64>, alone: bool) -> Vec<Hold<'_>> {
        let family = self.inner.read().state.family(volume);
        let base = u64::from(chunk) * (self.chunk / STRIPE);
        // From the lowest on: nobody waits for one who waits for him.
        let stripes = base + range.start / STRIPE..base + range.end.div_ceil(STRIPE);
        let hold = |stripe| {
            if alone { self.stripes.alone(family, stripe) } else { self.stripes.share(family, stripe) }
        };
        stripes.map(hold).collect()
    }

    /// The error of a block that is right in no copy.
    fn rotten(&self, volume: VolumeId, chunk: u32, copies: &Copies, at: u64) -> Error {
        let name = self.settings(volume).map(|settings| settings.name).unwrap_or_default();
        let byte = u64::from(chunk) * self.chunk + at;
        let member = |place: &super::Place| {
            format!("byte {} of member {}", self.offset(*place) + at, self.name_of(place.member))
        };
        let members: Vec<String> = copies.places().iter().map(member).collect();
        let what =
            format!("The checksum of volume {name} at byte {byte} is wrong: {}", members.join(" and "));
        Error::new(ErrorKind::InvalidData, what)
    }

    pub(super) fn read_summed(
        &self,
        volume: VolumeId,
        chunk: u32,
        copies: &Copies,
        at: u64,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<()> {
        let end = at + len(buffers);
        let mut next = at;
        while next < end {
            let stop = ((next / COPY + 1) * COPY).min(end);
            let around = blocks_around(&(next..stop));
            let bytes = self.read_blocks(volume, chunk, copies, &around)?;
            let mut bytes = bytes.get((next - around.start) as usize..).unwrap_or_default();
            for buffer in &mut part_mut(buffers, next - at, stop - next) {
                let (now, rest) = bytes.split_at_checked(buffer.len()).ok_or(ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(now);
                bytes = rest;
            }
            next = stop;
        }
        Ok(())
    }

    /// Reads into memory that nobody else can change until the checksum is computed.
    fn read_blocks(
        &self,
        volume: VolumeId,
        chunk: u32,
        copies: &Copies,
        range: &Range<u64>,
    ) -> Result<Vec<u8>> {
        let (healthy, in_doubt) = self.readable(volume, chunk, copies)?;
        let (at, len) = (range.start, range.end - range.start);
        let places = healthy.places();
        let first = places.get(((at >> 20) as usize + chunk as usize) % places.len().max(1));
        if let Some(place) = first.filter(|_| !in_doubt) {
            let _stripes = self.hold_stripes(volume, chunk, range, false);
            if let Ok(part) = self.read_part(*place, at, len)
                && part.bad().is_empty()
            {
                return Ok(part.bytes);
            }
        }
        let _stripes = self.hold_stripes(volume, chunk, range, true);
        // A repair that fails is tried again by who reads next.
        let mended = self.mend(&healthy, at, len, if self.read_only { Mend::No } else { Mend::Repair })?;
        match mended.lost.first() {
            // A pool that was not closed and cannot be put in order: it may have been written to at the end.
            Some(block) if !in_doubt => Err(self.rotten(volume, chunk, &healthy, at + *block as u64 * BLOCK)),
            _ => Ok(mended.part.bytes),
        }
    }

    /// Writes to all copies where they are, and tells which have it. The region is dirty.
    pub(super) fn write_summed(
        &self,
        volume: VolumeId,
        chunk: u32,
        copies: &Copies,
        at: u64,
        content: &Content<'_>,
    ) -> Result<Copies> {
        for range in parts(at, content.len()) {
            let around = blocks_around(&range);
            let (start, len) = (around.start, around.end - around.start);
            let _stripes = self.hold_stripes(volume, chunk, &around, true);
            let whole = around == range;
            let written = if whole && matches!(content, Content::Zeros(_)) {
                self.zero_part(copies, start, len)
            } else {
                let mut bytes = vec![0; len as usize];
                if !whole {
                    let mended = self.mend(copies, start, len, Mend::Repair)?;
                    if !mended.lost.is_empty() {
                        return Err(self.rotten(volume, chunk, copies, start));
                    }
                    bytes = mended.part.bytes;
                }
                let target = bytes.get_mut((range.start - start) as usize..(range.end - start) as usize);
                content.copy_to(range.start - at, target.unwrap_or_default());
                self.write_part(copies, start, &Part::of(bytes))
            };
            match written {
                Ok(written) if written == *copies => {}
                Ok(written) => return Ok(written),
                Err(error) => {
                    // A part of it may be there. The error says that this write failed; what is beside it stays readable.
                    drop(self.sum_part(copies, start, len));
                    return Err(error);
                }
            }
        }
        Ok(*copies)
    }

    /// [`Pool::fill`] for a chunk that is to have checksums.
    pub(super) fn fill_summed(
        &self,
        volume: VolumeId,
        chunk: u32,
        target: &Copies,
        source: Option<&Stored>,
        at: u64,
        content: &Content<'_>,
    ) -> Result<Copies> {
        self.make_tables(target)?;
        let end = at + content.len();
        let mut target = *target;
        if source.is_none() {
            target = self.zero_part(&target, 0, self.chunk)?;
        }
        let range = if source.is_some() { 0..self.chunk } else { blocks_around(&(at..end)) };
        for range in parts(range.start, range.end - range.start) {
            let len = range.end - range.start;
            let (mut part, lost) = match source {
                Some(source) => self.copy_of(volume, chunk, source, &range)?,
                None => (Part::of(vec![0; len as usize]), Vec::new()),
            };
            let (from, until) = (at.clamp(range.start, range.end), end.clamp(range.start, range.end));
            if from < until {
                let in_part = |byte: u64| (byte - range.start) as usize;
                let touched = in_part(from) / BLOCK as usize..in_part(until).div_ceil(BLOCK as usize);
                // What is wrong may be overwritten, but not get a right checksum because something beside it changes.
                let begins = |block: usize| range.start + block as u64 * BLOCK;
                let partly = |block: &&usize| begins(**block) < from || begins(**block + 1) > until;
                if let Some(block) = lost.iter().filter(|block| touched.contains(block)).find(partly) {
                    let source = source.map_or(target, |source| source.copies);
                    return Err(self.rotten(volume, chunk, &source, begins(*block)));
                }
                let bytes = part.bytes.get_mut(in_part(from)..in_part(until));
                content.copy_to(from - at, bytes.unwrap_or_default());
                part.sum(touched);
            }
            target = self.write_part(&target, range.start, &part)?;
        }
        Ok(target)
    }

    /// A part of a chunk that is to be copied: blocks that are right in no copy are so in the new one, too. Tells which.
    fn copy_of(
        &self,
        volume: VolumeId,
        chunk: u32,
        source: &Stored,
        range: &Range<u64>,
    ) -> Result<(Part, Vec<usize>)> {
        let (at, len) = (range.start, range.end - range.start);
        if !source.summed {
            let mut bytes = vec![0; len as usize];
            self.read_copies(volume, chunk, &source.copies, at, &mut [IoSliceMut::new(&mut bytes)])?;
            return Ok((Part::of(bytes), Vec::new()));
        }
        let (healthy, _) = self.readable(volume, chunk, &source.copies)?;
        let mended = self.mend(&healthy, at, len, Mend::No)?;
        Ok((mended.part, mended.lost))
    }

    /// Gives a volume checksums, those of what it and its snapshots have already included, while it is used; or takes
    /// them away. Tells how many chunks got checksums; `progress` hears of every one.
    ///
    /// # Errors
    /// When chunks have copies on members that do not work, among others: all that could get checksums have them.
    pub fn set_checksums(&self, name: &str, on: bool, progress: &dyn Fn(u64)) -> Result<u64> {
        let volume = self.volume_id(name)?;
        {
            let gate = self.gate(volume);
            let _gate = gate.write();
            self.change(vec![Record::Summing { volume, on }])?;
        }
        self.commit()?;
        let mut summed = 0;
        let mut plain = if on { self.plain_slots(volume, true) } else { Vec::new() };
        while !plain.is_empty() {
            for (layer, chunk) in plain {
                if self.sum_chunk(volume, layer, chunk)? {
                    summed += 1;
                    progress(summed);
                    if summed % COMMIT_EVERY == 0 {
                        self.commit()?;
                    }
                }
            }
            plain = self.plain_slots(volume, true);
        }
        self.commit()?;
        match self.plain_slots(volume, false).len() {
            left if on && left > 0 => Err(Error::other(format!(
                "{left} chunks of volume {name} are on members that are missing or failed; rebuild the pool and turn \
                 checksums on again"
            ))),
            _ => Ok(summed),
        }
    }

    /// What of a volume has no checksums, whose copies all work or not. Layers may be joined while it is worked on.
    fn plain_slots(&self, volume: VolumeId, works: bool) -> Vec<(LayerId, u32)> {
        let state = &self.inner.read().state;
        let mut slots = Vec::new();
        for (id, layer) in state.layers.iter().filter(|(_, layer)| layer.volume == volume) {
            let plain = |slot: &&Slot| match slot {
                Slot::Data { copies, filled: Filled::Plain } => {
                    (state.healthy(copies) == Some(*copies)) == works
                }
                _ => false,
            };
            slots.extend(layer.map.iter().filter(|(_, slot)| plain(slot)).map(|(chunk, _)| (*id, *chunk)));
        }
        slots
    }

    fn sum_chunk(&self, volume: VolumeId, layer: LayerId, chunk: u32) -> Result<bool> {
        let gate = self.gate(volume);
        let _gate = gate.read();
        let _hold = self.alone(volume, chunk);
        let slot =
            self.inner.read().state.layers.get(&layer).and_then(|layer| layer.map.get(&chunk)).copied();
        let Some(Slot::Data { copies, filled: Filled::Plain }) = slot else { return Ok(false) };
        self.make_tables(&copies)?;
        for range in parts(0, self.chunk) {
            self.sum_part(&copies, range.start, range.end - range.start)?;
        }
        if self.inner.read().state.healthy(&copies) != Some(copies) {
            // One of them failed meanwhile and may not have them.
            return Ok(false);
        }
        self.change(vec![Record::Mapped {
            layer,
            chunk,
            slot: Slot::Data { copies, filled: Filled::Summed },
        }])?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Together they are the range, and each is within the limits.
    #[test]
    fn parts_cover_a_range() {
        let mut number = 5_u64;
        for _ in 0..2000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (at, len) = ((number >> 20) % (3 << 20), (number >> 41) % (3 << 20));
            let mut next = at;
            for part in parts(at, len) {
                assert!(part.start == next && part.end > part.start && part.end - part.start <= COPY);
                let whole = part.start % BLOCK == 0 && part.end % BLOCK == 0;
                assert!(whole || part.start / BLOCK == (part.end - 1) / BLOCK);
                next = part.end;
            }
            assert_eq!(next, at + len);
        }
    }
}
