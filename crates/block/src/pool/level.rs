//! Making copies equal when what should be written to one of them has no room there.
//!
//! A write that fails because a member is full fails as a whole, but other copies may have it, or a part of it. Nobody
//! was told what the disk holds there now, so any of the contents will do, as long as all copies have the same: the one
//! is taken that can be written to all others, block by block. A full member still takes what it has space for.

use super::Pool;
use super::record::{Copies, LayerId, Place, Stored, VolumeId};
use super::sums::{BLOCK, Part};
use std::ops::Range;

impl Pool {
    /// Makes the copies of a range equal in which a write has just failed. When that cannot be, the region stays
    /// dirty, durably: it is tried again by a scrub that repairs, a rebuild, and whoever opens the pool next. The caller
    /// does not hold the chunk, but the region.
    pub(super) fn level_after(
        &self,
        volume: VolumeId,
        layer: LayerId,
        chunk: u32,
        stored: &Stored,
        range: Range<u64>,
    ) {
        if stored.copies.places().len() < 2 {
            return;
        }
        let _hold = self.alone(volume, chunk);
        // What was moved meanwhile was copied from one copy to all.
        if self.in_place(layer, chunk).as_ref() != Some(stored) {
            return;
        }
        if !self.level(&stored.copies, stored.summed, range) {
            let region = self.inner.read().state.region_of(chunk);
            self.regions.lock().doubt([(volume, region)]);
        }
    }

    /// Makes the copies of a range equal, and tells whether they are. Nobody else uses the chunk meanwhile.
    pub(super) fn level(&self, copies: &Copies, summed: bool, range: Range<u64>) -> bool {
        let start = range.start / BLOCK * BLOCK;
        let blocks = (start..range.end).step_by(BLOCK as usize);
        // All of them, even when one cannot be made equal.
        blocks.filter(|at| !self.level_block(copies, summed, *at)).count() == 0
    }

    /// What the copies have of a block.
    fn contents(&self, places: &[Place], summed: bool, at: u64) -> Vec<Option<Part>> {
        let read = |place: &Place| {
            if summed {
                return self.read_part(*place, at, BLOCK).ok();
            }
            let mut bytes = vec![0; BLOCK as usize];
            let disk = self.disk(place.member).ok()?;
            disk.read_bytes(self.offset(*place) + at, &mut bytes).ok().map(|()| Part::of(bytes))
        };
        places.iter().map(read).collect()
    }

    fn level_block(&self, copies: &Copies, summed: bool, at: u64) -> bool {
        let places = copies.places();
        let contents = self.contents(places, summed, at);
        if are_equal(&contents) {
            return true;
        }
        let mut touched = vec![false; places.len()];
        let right = contents.iter().flatten().filter(|content| content.bad().is_empty());
        for candidate in right {
            let mut others = places.iter().zip(&contents).zip(&mut touched);
            let written = others.all(|((place, content), touched)| {
                if content.as_ref() == Some(candidate) && !*touched {
                    return true;
                }
                *touched = true;
                self.put_block(*place, at, candidate, summed)
            });
            if written {
                return true;
            }
        }
        if summed {
            // What was written in part stays readable.
            drop(self.sum_part(copies, at, BLOCK));
        }
        are_equal(&self.contents(places, summed, at))
    }

    fn put_block(&self, place: Place, at: u64, part: &Part, summed: bool) -> bool {
        let put = self.disk(place.member).and_then(|disk| {
            if summed {
                self.put_part(&*disk, place, at, part)
            } else {
                disk.write_bytes(self.offset(place) + at, &part.bytes)
            }
        });
        put.is_ok()
    }
}

fn are_equal(contents: &[Option<Part>]) -> bool {
    contents.iter().all(Option::is_some) && contents.windows(2).all(|pair| pair.first() == pair.last())
}
