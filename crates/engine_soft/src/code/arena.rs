//! Where decoded blocks live: a ring of memory that is filled in the order of decoding, and an index by key.
//!
//! ```text
//!   part 0            part 1            part 2 …
//!   [block insns…][block insns…]  | [block insns…]·free·  | [oldest blocks…]
//!                                                ^ next block
//! ```
//!
//! The ring is cut into parts. When a block does not fit behind the last one, the next part is emptied for
//! it: what was decoded longest ago goes first, and nothing else with it. A block is one allocation, its header
//! followed by its instructions. The index is a table of chains through the headers.
//!
//! # Invariants
//! * Every chain holds blocks of the ring only; emptying a part takes its blocks out of their chains.
//! * Between the start and the end of a part lie whole blocks.
#![expect(unsafe_code, reason = "lays out blocks of different lengths in one allocation")]

use crate::insn::Insn;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Parts of the ring.
const PARTS: usize = 8;
/// Bytes of a part.
const PART_BYTES: usize = 512 << 10;
/// Chains of the index, as a power of two: about as many as there are blocks of usual length.
const CHAINS_LOG2: u32 = 14;
/// What blocks are made of: everything in them is aligned to this.
type Word = u64;
const WORD: usize = size_of::<Word>();
const PART_WORDS: usize = PART_BYTES / WORD;

/// A place in the ring, in words, plus one; zero is none.
type Place = u32;

/// What the header of a block holds about its origin.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    /// What the block is looked up by: physical address and code size.
    pub key: u64,
    /// Where the generations of its pages are counted, and the counts at decoding.
    pub generations: [(*const AtomicU32, u32); 2],
    /// Page of the last byte, if that is another.
    pub second: Option<u64>,
    /// Length in bytes.
    pub bytes: u16,
}

/// Straight-line decoded code: the header of its instructions.
#[repr(C)]
pub(crate) struct Block {
    generations: [*const AtomicU32; 2],
    decoded: [u32; 2],
    key: u64,
    second: u64,
    /// The next block of the chain.
    next: Place,
    bytes: u16,
    count: u16,
}

/// No page has this address.
const NO_PAGE: u64 = u64::MAX;
const HEADER_WORDS: usize = size_of::<Block>() / WORD;
const INSN_WORDS: usize = size_of::<Insn>() / WORD;

const _: () = assert!(size_of::<Block>().is_multiple_of(WORD) && align_of::<Block>() == WORD);
const _: () = assert!(size_of::<Insn>().is_multiple_of(WORD) && align_of::<Insn>() == WORD);

impl Block {
    /// Whether its pages are as they were at decoding.
    #[inline(always)]
    pub fn is_current(&self) -> bool {
        self.generations.iter().zip(self.decoded).all(|(&cell, decoded)| {
            // SAFETY: points into the tracker of a region that `Cpu::memory` keeps alive, or to a static.
            unsafe { (*cell).load(Ordering::Relaxed) == decoded }
        })
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.bytes)
    }

    /// Page of the last byte, if that is another.
    pub fn second(&self) -> Option<u64> {
        (self.second != NO_PAGE).then_some(self.second)
    }

    /// Its instructions; never empty.
    ///
    /// # Safety
    /// `block` is from [`Arena::find`] or [`Arena::insert`], and no block was inserted since then, nor will be
    /// while the result lives.
    #[inline(always)]
    pub unsafe fn insns<'a>(block: *const Block) -> &'a [Insn] {
        // SAFETY: `insert` has written `count` instructions behind the header.
        unsafe { std::slice::from_raw_parts(block.add(1).cast::<Insn>(), usize::from((*block).count)) }
    }
}

/// All blocks of one processor.
pub(super) struct Arena {
    /// `PARTS * PART_WORDS` words, owned. The system gives memory for those that were used.
    ring: *mut MaybeUninit<Word>,
    /// Words used of each part.
    used: [usize; PARTS],
    /// The part that is being filled.
    current: usize,
    chains: Box<[Place]>,
}

impl Arena {
    pub fn new() -> Self {
        let ring: Box<[MaybeUninit<Word>]> = Box::new_uninit_slice(PARTS * PART_WORDS);
        let chains = vec![0; 1 << CHAINS_LOG2].into_boxed_slice();
        Arena { ring: Box::into_raw(ring).cast(), used: [0; PARTS], current: 0, chains }
    }

    /// Forgets all blocks: no pointer to one is valid afterwards.
    pub fn clear(&mut self) {
        self.used = [0; PARTS];
        self.current = 0;
        self.chains.fill(0);
    }

    fn chain(key: u64) -> usize {
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - CHAINS_LOG2)) as usize
    }

    /// The block at a word of the ring.
    fn at(&self, word: usize) -> *mut Block {
        debug_assert!(word < PARTS * PART_WORDS);
        // SAFETY: words that name blocks are inside the ring.
        unsafe { self.ring.add(word).cast() }
    }

    fn place(&self, place: Place) -> Option<*mut Block> {
        (place as usize).checked_sub(1).map(|word| self.at(word))
    }

    /// The block with a key. The pointer is valid until the next [`Arena::insert`].
    pub fn find(&self, key: u64) -> Option<*const Block> {
        let mut next = self.chains[Self::chain(key)];
        while let Some(block) = self.place(next) {
            // SAFETY: chains hold blocks of the ring.
            let header = unsafe { &*block };
            if header.key == key {
                return Some(block);
            }
            next = header.next;
        }
        None
    }

    /// Takes a block out of its chain, if it is in there.
    fn unlink(&mut self, block: *mut Block) {
        // SAFETY: the caller's block is in the ring.
        let (key, behind) = unsafe { ((*block).key, (*block).next) };
        let chain = Self::chain(key);
        let mut before: Option<*mut Block> = None;
        let mut next = self.chains[chain];
        while let Some(other) = self.place(next) {
            if other == block {
                match before {
                    // SAFETY: chains hold blocks of the ring, and no reference to one is alive here.
                    Some(before) => unsafe { (*before).next = behind },
                    None => self.chains[chain] = behind,
                }
                return;
            }
            before = Some(other);
            // SAFETY: as above.
            next = unsafe { (*other).next };
        }
    }

    /// Makes room for a block of that many instructions, at most [`LONGEST_BLOCK`](super::LONGEST_BLOCK). If blocks
    /// had to go for it, their addresses.
    pub fn make_room(&mut self, insns: usize) -> Option<Range<usize>> {
        let words = HEADER_WORDS + insns * INSN_WORDS;
        if self.used[self.current] + words <= PART_WORDS {
            return None;
        }
        self.current = (self.current + 1) % PARTS;
        let start = self.current * PART_WORDS;
        let end = start + std::mem::take(&mut self.used[self.current]);
        let mut word = start;
        while word < end {
            let block = self.at(word);
            self.unlink(block);
            // SAFETY: between `start` and `end` lie whole blocks.
            word += HEADER_WORDS + usize::from(unsafe { (*block).count }) * INSN_WORDS;
        }
        (start != end).then(|| self.at(start) as usize..self.at(start) as usize + (end - start) * WORD)
    }

    /// Adds a block, in place of one with the same key, after [`Arena::make_room`] for its instructions. The
    /// replaced one stays where it is, for those who still point at it.
    pub fn insert(&mut self, origin: &Origin, insns: &[Insn]) -> *const Block {
        let words = HEADER_WORDS + insns.len() * INSN_WORDS;
        let used = self.used[self.current];
        assert!(used + words <= PART_WORDS, "room was made for the block");
        if let Some(old) = self.find(origin.key) {
            self.unlink(old.cast_mut());
        }
        let word = self.current * PART_WORDS + used;
        let block = self.at(word);
        let chain = &mut self.chains[Self::chain(origin.key)];
        let [(first, decoded), (second, decoded_second)] = origin.generations;
        // SAFETY: the words are free, inside the ring and aligned.
        unsafe {
            block.write(Block {
                generations: [first, second],
                decoded: [decoded, decoded_second],
                key: origin.key,
                second: origin.second.unwrap_or(NO_PAGE),
                next: *chain,
                bytes: origin.bytes,
                count: insns.len() as u16,
            });
            std::ptr::copy_nonoverlapping(insns.as_ptr(), block.add(1).cast(), insns.len());
        }
        *chain = word as Place + 1;
        self.used[self.current] += words;
        block
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let ring = std::ptr::slice_from_raw_parts_mut(self.ring, PARTS * PART_WORDS);
        // SAFETY: made by `new`, dropped once; blocks need no drop.
        drop(unsafe { Box::from_raw(ring) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Decoded, decode};
    use crate::system::SystemState;
    use std::collections::HashMap;

    static GENERATION: AtomicU32 = AtomicU32::new(7);

    fn nops() -> Vec<Insn> {
        let Decoded::Insn { insn, .. } = decode(&SystemState::default(), &[0x90; 15], 64) else {
            panic!("NOP is an instruction")
        };
        vec![insn; 64]
    }

    fn origin(key: u64) -> Origin {
        Origin { key, generations: [(&raw const GENERATION, 7); 2], second: None, bytes: 1 }
    }

    /// A plain map of the blocks that must still be there is the oracle.
    #[test]
    fn keeps_the_youngest_blocks_and_finds_only_those() {
        let (mut arena, nops) = (Arena::new(), nops());
        let mut alive: HashMap<u64, (usize, usize)> = HashMap::new();
        let (mut random, mut emptied) = (1_u64, 0);
        for _ in 0..100_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (key, count) = (random >> 48, 1 + (random >> 33) as usize % 64);
            if let Some(gone) = arena.make_room(count) {
                emptied += 1;
                assert!(gone.len() > PART_BYTES - 48 - 64 * 32 && gone.len() <= PART_BYTES);
                alive.retain(|_, (_, address)| !gone.contains(address));
            }
            let block = arena.insert(&origin(key), &nops[..count]);
            alive.insert(key, (count, block as usize));
        }
        assert!(emptied > 2 * PARTS, "{emptied}");
        for key in 0..1 << 16 {
            let found = arena.find(key).map(|found| {
                // SAFETY: nothing is inserted any more.
                (unsafe { Block::insns(found) }.len(), found as usize)
            });
            assert_eq!(found, alive.get(&key).copied(), "{key}");
        }
    }

    #[test]
    fn a_block_is_current_until_a_generation_changes() {
        let (mut arena, nops) = (Arena::new(), nops());
        let generation = AtomicU32::new(3);
        let own = [(&raw const generation, 3), (&raw const GENERATION, 7)];
        let block = arena.insert(&Origin { generations: own, ..origin(1) }, &nops[..1]);
        // SAFETY: nothing is inserted any more.
        let block = unsafe { &*block };
        assert!(block.is_current());
        generation.store(4, Ordering::Relaxed);
        assert!(!block.is_current());
    }
}
