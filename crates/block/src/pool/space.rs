//! Which chunks of the members are taken.

use super::record::{MemberId, Place};
use std::collections::BTreeMap;

const PAGE: u32 = 512;

/// A set of chunk numbers; what it costs depends on what is in it, not on how large numbers may be.
#[derive(Clone, Debug, Default)]
pub(super) struct Bits {
    pages: BTreeMap<u32, [u64; PAGE as usize / 64]>,
    count: u64,
}

impl Bits {
    fn word(&mut self, number: u32) -> Option<&mut u64> {
        self.pages.entry(number / PAGE).or_default().get_mut((number % PAGE / 64) as usize)
    }

    pub fn get(&self, number: u32) -> bool {
        let word = self.pages.get(&(number / PAGE)).and_then(|page| page.get((number % PAGE / 64) as usize));
        word.is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// False when it is there already.
    pub fn insert(&mut self, number: u32) -> bool {
        let new = !self.get(number);
        if new && let Some(word) = self.word(number) {
            *word |= 1 << (number % 64);
            self.count += 1;
        }
        new
    }

    /// False when it is not there.
    pub fn remove(&mut self, number: u32) -> bool {
        let there = self.get(number);
        if there && let Some(word) = self.word(number) {
            *word &= !(1 << (number % 64));
            self.count -= 1;
        }
        there
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The first number from `from` on, below `end`, that is not there.
    fn first_missing(&self, from: u32, end: u32) -> Option<u32> {
        let mut number = from;
        while number < end {
            let Some(page) = self.pages.get(&(number / PAGE)) else { return Some(number) };
            let word = page.get((number % PAGE / 64) as usize)?;
            let missing = !word >> (number % 64);
            if missing != 0 {
                return Some(number + missing.trailing_zeros()).filter(|found| *found < end);
            }
            number = number.checked_add(64 - number % 64)?;
        }
        None
    }
}

#[derive(Debug)]
struct MemberSpace {
    chunks: u32,
    taken: Bits,
    /// All below is taken.
    hint: u32,
    /// Nothing is taken from it any more: it failed or is about to leave.
    closed: bool,
}

/// The free chunks of all members. Taken are what the layers own, the metadata's areas, what was freed by records
/// that are not durable yet, and what is being filled.
#[derive(Debug, Default)]
pub(super) struct Space(BTreeMap<MemberId, MemberSpace>);

impl Space {
    pub fn add(&mut self, member: MemberId, chunks: u32, closed: bool) {
        let mut taken = Bits::default();
        taken.insert(0);
        self.0.insert(member, MemberSpace { chunks, taken, hint: 1, closed });
    }

    pub fn remove(&mut self, member: MemberId) {
        self.0.remove(&member);
    }

    pub fn set_closed(&mut self, member: MemberId, closed: bool) {
        if let Some(space) = self.0.get_mut(&member) {
            space.closed = closed;
        }
    }

    /// Marks a place as taken; false when it was.
    pub fn claim(&mut self, place: Place) -> bool {
        self.0
            .get_mut(&place.member)
            .is_some_and(|space| place.chunk < space.chunks && space.taken.insert(place.chunk))
    }

    pub fn give_back(&mut self, place: Place) {
        if let Some(space) = self.0.get_mut(&place.member)
            && space.taken.remove(place.chunk)
        {
            space.hint = space.hint.min(place.chunk);
        }
    }

    /// Takes the first free chunk of a member.
    pub fn take(&mut self, member: MemberId) -> Option<Place> {
        let space = self.0.get_mut(&member).filter(|space| !space.closed)?;
        let found = space.taken.first_missing(space.hint, space.chunks);
        space.hint = found.map_or(space.chunks, |chunk| chunk + 1);
        space.taken.insert(found?);
        Some(Place { member, chunk: found? })
    }

    /// Takes a run of free chunks, as near to the member's end as there is one.
    pub fn take_run(&mut self, member: MemberId, len: u32) -> Option<u32> {
        let space = self.0.get_mut(&member)?;
        let mut free = 0;
        for chunk in (1..space.chunks).rev() {
            free = if space.taken.get(chunk) { 0 } else { free + 1 };
            if free == len {
                (chunk..chunk + len).for_each(|chunk| {
                    space.taken.insert(chunk);
                });
                return Some(chunk);
            }
        }
        None
    }

    /// Free chunks of a member, whether or not it is closed.
    pub fn free(&self, member: MemberId) -> u64 {
        self.0.get(&member).map_or(0, |space| u64::from(space.chunks).saturating_sub(space.taken.count()))
    }

    /// Free chunks that may be taken.
    pub fn available(&self, member: MemberId) -> u64 {
        if self.0.get(&member).is_some_and(|space| !space.closed) { self.free(member) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Against the standard library's set.
    #[test]
    fn bits_are_a_set() {
        let (mut bits, mut set) = (Bits::default(), BTreeSet::new());
        let mut number = 7_u32;
        for round in 0..4000 {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let chunk = (number >> 8) % 1500;
            if round % 3 == 0 {
                assert_eq!(bits.remove(chunk), set.remove(&chunk));
            } else {
                assert_eq!(bits.insert(chunk), set.insert(chunk));
            }
            assert_eq!(bits.count(), set.len() as u64);
            let from = (number >> 3) % 1500;
            assert_eq!(bits.first_missing(from, 1500), (from..1500).find(|chunk| !set.contains(chunk)));
        }
        assert!(bits.insert(u32::MAX) && bits.get(u32::MAX));
    }

    #[test]
    fn runs_are_taken_from_the_end_and_chunks_from_the_start() {
        let mut space = Space::default();
        space.add(3, 10, false);
        assert_eq!(space.take_run(3, 4), Some(6));
        assert_eq!(space.take(3), Some(Place { member: 3, chunk: 1 }));
        assert!(!space.claim(Place { member: 3, chunk: 7 }) && !space.claim(Place { member: 3, chunk: 10 }));
        assert_eq!(space.take_run(3, 5), None);
        assert_eq!(space.free(3), 4);
        space.set_closed(3, true);
        assert_eq!((space.take(3), space.available(3)), (None, 0));
    }
}
