//! Checksums of chunks: the tables of the members that hold them, and the parts of chunks that they are of.
//!
//! A chunk with checksums has a CRC-32C for every 4 KiB of each of its copies. They are beside the data, in a table on
//! the same member: a chunk that holds those of 1024 chunks, taken when the first of these gets checksums. Data and
//! checksums are written one after the other into a region that is durably dirty ([`super::regions`]); after a power loss
//! or a killed process, what does not fit in such a region gets new checksums, unless another copy fits.

use super::Pool;
use super::record::{Copies, Filled, MemberId, Place, Record, Slot, VolumeId};
use super::state::{Contradiction, State, contradiction};
use crate::BlockBackend;
use crate::crc32c::crc32c;
use std::io::{Error, ErrorKind, Result};
use std::sync::LazyLock;

/// Bytes that have a checksum together.
pub(super) const BLOCK: u64 = 4096;
/// Chunks of a member whose checksums are in one chunk.
const GROUP: u32 = (BLOCK / 4) as u32;

/// Of a block of zeros.
static ZERO: LazyLock<u32> = LazyLock::new(|| crc32c(&[0; BLOCK as usize]));

impl State {
    pub(super) fn set_checksums(
        &mut self,
        volume: VolumeId,
        on: bool,
    ) -> std::result::Result<Vec<Place>, Contradiction> {
        self.volume(volume)?.checksums = on;
        if !on {
            let own = self.layers.values_mut().filter(|layer| layer.volume == volume);
            for slot in own.flat_map(|layer| layer.map.values_mut()) {
                if let Slot::Data { filled, .. } = slot
                    && *filled == Filled::Summed
                {
                    *filled = Filled::Plain;
                }
            }
        }
        Ok(Vec::new())
    }

    pub(super) fn add_table(
        &mut self,
        member: MemberId,
        group: u32,
        chunk: u32,
    ) -> std::result::Result<Vec<Place>, Contradiction> {
        if self.tables.contains_key(&(member, group)) {
            return Err(contradiction(format!("Member {member} has the checksums {group} already")));
        }
        self.claim_table(member, group, chunk)?;
        self.tables.insert((member, group), chunk);
        Ok(Vec::new())
    }

    /// Notes that a chunk is a table's.
    pub(super) fn claim_table(
        &mut self,
        member: MemberId,
        group: u32,
        chunk: u32,
    ) -> std::result::Result<(), Contradiction> {
        self.check_place(Place { member, chunk })?;
        let chunks = self.members.get(&member).map_or(0, |member| member.chunks);
        if u64::from(group) * u64::from(GROUP) >= u64::from(chunks) {
            return Err(contradiction(format!("Member {member} has no chunks for the checksums {group}")));
        }
        if !self.used.entry(member).or_default().insert(chunk) {
            return Err(contradiction(format!("Chunk {chunk} of member {member} has two owners")));
        }
        Ok(())
    }
}

/// A part of a chunk, whole blocks, and the checksums that it should have.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub bytes: Vec<u8>,
    pub sums: Vec<u32>,
}

impl Part {
    /// A part with the checksums it has.
    pub fn of(bytes: Vec<u8>) -> Self {
        let sums = bytes.chunks(BLOCK as usize).map(crc32c).collect();
        Part { bytes, sums }
    }

    /// Blocks with their checksums.
    pub fn blocks(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.bytes.chunks(BLOCK as usize).zip(self.sums.iter().copied())
    }

    /// Numbers of the blocks that do not have the checksum they should.
    pub fn bad(&self) -> Vec<usize> {
        let wrong = self.blocks().enumerate().filter(|(_, (block, sum))| crc32c(block) != *sum);
        wrong.map(|(number, _)| number).collect()
    }

    /// Takes a block of another one.
    fn take(&mut self, block: usize, from: &Part) {
        let range = block * BLOCK as usize..(block + 1) * BLOCK as usize;
        if let Some((own, its)) = self.bytes.get_mut(range.clone()).zip(from.bytes.get(range)) {
            own.copy_from_slice(its);
        }
        if let Some((own, its)) = self.sums.get_mut(block).zip(from.sums.get(block)) {
            *own = *its;
        }
    }

    /// Gives these blocks the checksums they have.
    pub fn sum(&mut self, blocks: impl IntoIterator<Item = usize>) {
        for block in blocks {
            let bytes = self.bytes.chunks(BLOCK as usize).nth(block);
            if let Some((sum, bytes)) = self.sums.get_mut(block).zip(bytes) {
                *sum = crc32c(bytes);
            }
        }
    }
}

/// What becomes of copies that are not as they should be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mend {
    /// They stay.
    No,
    /// They are written anew from one that is right.
    Repair,
    /// The same, and where none is right the first counts: it may have been written to when the power went.
    Accept,
}

/// What [`Pool::mend`] found.
pub(super) struct Mended {
    /// The right content.
    pub part: Part,
    /// Blocks that are right in no copy.
    pub lost: Vec<usize>,
    /// A copy is wrong by its checksum, or could not be read; or two that are right differ.
    pub rotten: bool,
    pub unreadable: bool,
    pub differs: bool,
    /// What is wrong was written anew, or why not.
    pub repaired: Result<bool>,
}

impl Pool {
    pub(super) fn has_checksums(&self, volume: VolumeId) -> bool {
        self.inner.read().state.volumes.get(&volume).is_some_and(|volume| volume.checksums)
    }

    /// Whether anything in the pool has checksums, or had.
    pub(super) fn has_tables(&self) -> bool {
        !self.inner.read().state.tables.is_empty()
    }

    /// Where on its member a place has the checksum of the block at a byte.
    fn sums_at(&self, place: Place, at: u64) -> Result<u64> {
        let table = self.inner.read().state.tables.get(&(place.member, place.chunk / GROUP)).copied();
        let table = table.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("Member {} has no checksums", self.name_of(place.member)))
        })?;
        let each = self.chunk / BLOCK * 4;
        Ok(u64::from(table) * self.chunk + u64::from(place.chunk % GROUP) * each + at / BLOCK * 4)
    }

    fn write_sums(&self, disk: &dyn BlockBackend, place: Place, at: u64, sums: &[u32]) -> Result<()> {
        let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        disk.write_bytes(self.sums_at(place, at)?, &bytes)
    }

    /// Sees to it that the members of these copies have tables for them.
    pub(super) fn make_tables(&self, copies: &Copies) -> Result<()> {
        for place in copies.places() {
            let (member, group) = (place.member, place.chunk / GROUP);
            let is_there = || self.inner.read().state.tables.contains_key(&(member, group));
            if is_there() {
                continue;
            }
            let _making = self.making_table.lock();
            if is_there() {
                continue;
            }
            let disk = self.disk(member)?;
            let table = self.take_place(&[member])?;
            // As data, so that a file takes the space now and not in the middle of a write.
            let made = super::commit::write_zeros(&*disk, self.offset(table), self.chunk)
                .and_then(|()| self.change(vec![Record::TableMade { member, group, chunk: table.chunk }]));
            if let Err(error) = made {
                self.give_back(&[table]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Reads a part of one copy.
    pub(super) fn read_part(&self, place: Place, at: u64, len: u64) -> Result<Part> {
        let disk = self.disk(place.member)?;
        let mut bytes = vec![0; len as usize];
        disk.read_bytes(self.offset(place) + at, &mut bytes)?;
        let mut sums = vec![0; (len / BLOCK * 4) as usize];
        disk.read_bytes(self.sums_at(place, at)?, &mut sums)?;
        Ok(Part { bytes, sums: sums.as_chunks().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect() })
    }

    /// Writes a part and its checksums to all copies ([`Pool::write_copies`]).
    pub(super) fn write_part(&self, copies: &Copies, at: u64, part: &Part) -> Result<Copies> {
        self.write_copies(copies, |disk, place| self.put_part(disk, place, at, part))
    }

    pub(super) fn put_part(&self, disk: &dyn BlockBackend, place: Place, at: u64, part: &Part) -> Result<()> {
        disk.write_bytes(self.offset(place) + at, &part.bytes)?;
        self.write_sums(disk, place, at, &part.sums)
    }

    /// Makes a part of all copies zeros, whole blocks.
    pub(super) fn zero_part(&self, copies: &Copies, at: u64, len: u64) -> Result<Copies> {
        let sums = vec![*ZERO; (len / BLOCK) as usize];
        self.write_copies(copies, |disk, place| {
            disk.write_zeroes(self.offset(place) + at, len, true)?;
            self.write_sums(disk, place, at, &sums)
        })
    }

    /// Writes the checksums of a chunk that is all zeros.
    pub(super) fn write_zero_sums(&self, copies: &Copies) -> Result<Copies> {
        self.make_tables(copies)?;
        let sums = vec![*ZERO; (self.chunk / BLOCK) as usize];
        self.write_copies(copies, |disk, place| self.write_sums(disk, place, 0, &sums))
    }

    /// Gives a part of every copy the checksums it has, as far as that is possible.
    pub(super) fn sum_part(&self, copies: &Copies, at: u64, len: u64) -> Result<()> {
        let mut result = Ok(());
        for place in copies.places() {
            let sum = || {
                let disk = self.disk(place.member)?;
                let mut bytes = vec![0; len as usize];
                disk.read_bytes(self.offset(*place) + at, &mut bytes)?;
                self.write_sums(&*disk, *place, at, &Part::of(bytes).sums)
            };
            result = result.and(sum());
        }
        result
    }

    /// Reads a part of all copies and finds out which are right, block by block. Nobody else uses the part meanwhile.
    ///
    /// # Errors
    /// When no copy can be read.
    pub(super) fn mend(&self, copies: &Copies, at: u64, len: u64, how: Mend) -> Result<Mended> {
        if how != Mend::No {
            // A member may have been away when the others got theirs. Without one, its copy counts as unreadable.
            drop(self.make_tables(copies));
        }
        let parts: Vec<(Place, Result<Part>)> =
            copies.places().iter().map(|place| (*place, self.read_part(*place, at, len))).collect();
        let readable: Vec<(&Part, Vec<usize>)> =
            parts.iter().filter_map(|(_, part)| part.as_ref().ok()).map(|part| (part, part.bad())).collect();
        let Some((first, _)) = readable.first() else {
            let error = parts.into_iter().find_map(|(_, part)| part.err());
            return Err(error.unwrap_or_else(|| Error::other("The chunk has no copy")));
        };
        let mut right = (*first).clone();
        let mut lost = Vec::new();
        for block in 0..right.sums.len() {
            match readable.iter().find(|(_, bad)| !bad.contains(&block)) {
                Some((part, _)) => right.take(block, part),
                None => lost.push(block),
            }
        }
        let rotten = readable.iter().any(|(_, bad)| !bad.is_empty());
        let unreadable = readable.len() < parts.len();
        if how == Mend::Accept {
            right.sum(std::mem::take(&mut lost));
        }
        let mut differs = false;
        let mut repaired = Ok(false);
        for (place, part) in &parts {
            let mut wanted = right.clone();
            if let Ok(part) = part {
                // Whoever can tell what is right in there may still want it.
                lost.iter().for_each(|block| wanted.take(*block, part));
                if wanted == *part {
                    continue;
                }
                differs |= part.bad().is_empty();
            }
            if how != Mend::No {
                let put = self.disk(place.member).and_then(|disk| self.put_part(&*disk, *place, at, &wanted));
                repaired = repaired.and(put.map(|()| true));
            }
        }
        Ok(Mended { part: right, lost, rotten, unreadable, differs, repaired })
    }
}
