//! The cache of decoded code.
//!
//! A block is straight-line code inside one guest-physical page (or one instruction across two), found by
//! its physical address and code size. In front of the map stands a direct-mapped jump cache from linear
//! address and `fetch_key`, which names address space, privilege and code size, so that a change of any
//! translation misses. A block may run while the generations of its pages are those it was decoded at.
//!
//! Blocks are only forgotten by [`Arena::make_room`], which only block lookup calls: the running block is alive.
#![expect(unsafe_code, reason = "keeps raw pointers to blocks and to page generations")]

mod arena;

pub(crate) use arena::Block;

use crate::cpu::{Cpu, Fault, seg};
use crate::decode::{self, Decoded};
use crate::insn::Insn;
use arena::{Arena, Origin};
use std::hash::Hasher;
use std::sync::atomic::AtomicU32;
use x86::Exception;

/// Instructions in a block, at most.
const LONGEST_BLOCK: usize = 64;
const JUMP_SIZE: usize = 1 << 14;
/// Longest instruction in bytes (SDM 2A 2.3.11).
pub(crate) const LONGEST_INSN: usize = 15;

static NO_GENERATION: AtomicU32 = AtomicU32::new(0);

#[derive(Clone, Copy)]
struct JumpEntry {
    linear: u64,
    key: u64,
    block: *const Block,
}

const NO_JUMP: JumpEntry = JumpEntry { linear: 0, key: u64::MAX, block: std::ptr::null() };

/// Mixes an address; the keys are no attacker's choice that could hurt beyond its own processor's speed.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 29;
    }
}

/// Counters of the code cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct CodeCounts {
    /// Lookups that the jump cache could not answer.
    pub misses: u64,
    /// Blocks decoded.
    pub decoded: u64,
    /// Blocks that were stale.
    pub stale: u64,
    /// Times the oldest blocks were forgotten to make room.
    pub evictions: u64,
}

/// All blocks of one processor.
pub(crate) struct CodeCache {
    jumps: Box<[JumpEntry]>,
    arena: Arena,
    /// The instructions that are being decoded; kept for its memory.
    insns: Vec<Insn>,
    pub counts: CodeCounts,
}

impl CodeCache {
    pub fn new() -> Self {
        CodeCache {
            jumps: vec![NO_JUMP; JUMP_SIZE].into_boxed_slice(),
            arena: Arena::new(),
            insns: Vec::with_capacity(LONGEST_BLOCK),
            counts: CodeCounts::default(),
        }
    }

    /// Forgets all blocks. Only between blocks.
    pub fn clear(&mut self) {
        self.jumps.fill(NO_JUMP);
        self.arena.clear();
    }

    /// Keeps what was decoded. Only between blocks.
    fn insert(&mut self, origin: &Origin) -> *const Block {
        if let Some(gone) = self.arena.make_room(self.insns.len()) {
            self.counts.evictions += 1;
            for jump in self.jumps.iter_mut().filter(|jump| gone.contains(&(jump.block as usize))) {
                *jump = NO_JUMP;
            }
        }
        self.counts.decoded += 1;
        self.arena.insert(origin, &self.insns)
    }

    #[inline(always)]
    fn jump_slot(linear: u64) -> usize {
        (linear ^ linear >> 13) as usize % JUMP_SIZE
    }
}

impl Cpu {
    /// The block at the current RIP, decoded if need be. The pointer is valid until the next call.
    #[inline(always)]
    pub(crate) fn find_block(&mut self) -> Result<*const Block, Fault> {
        let linear = self.rip().wrapping_add(self.segment_base[usize::from(seg::CS)]);
        let slot = CodeCache::jump_slot(linear);
        // SAFETY: `jump_slot` is below the length.
        let entry = unsafe { *self.code.jumps.get_unchecked(slot) };
        if entry.linear == linear && entry.key == self.mmu.fetch_key {
            // SAFETY: entries are removed before blocks are freed.
            if unsafe { (*entry.block).is_current() } {
                return Ok(entry.block);
            }
        }
        self.find_block_slow(linear)
    }

    #[cold]
    #[inline(never)]
    fn find_block_slow(&mut self, linear: u64) -> Result<*const Block, Fault> {
        let linear = if self.long64 { linear } else { linear & 0xffff_ffff };
        self.code.counts.misses += 1;
        if self.meets_breakpoint(linear) {
            return Err(Fault::to_exit());
        }
        self.check_fetch(0)?;
        let physical = self.fetch_physical(linear)?;
        let key = physical << 2 | u64::from(self.code_size >> 5);
        let mut usable = None;
        if let Some(found) = self.code.arena.find(key) {
            // SAFETY: nothing is inserted before the last use.
            let block = unsafe { &*found };
            if !block.is_current() {
                self.code.counts.stale += 1;
            } else if self.same_second_page(block, linear)? {
                usable = Some(found);
            }
        }
        let block = match usable {
            Some(block) => block,
            None => {
                let origin = self.decode_block(key, linear, physical)?;
                self.code.insert(&origin)
            }
        };
        if !self.is_cut(linear) {
            let key = self.mmu.fetch_key;
            self.code.jumps[CodeCache::jump_slot(linear)] = JumpEntry { linear, key, block };
        }
        Ok(block)
    }

    fn same_second_page(&mut self, block: &Block, linear: u64) -> Result<bool, Fault> {
        let Some(second) = block.second() else { return Ok(true) };
        let distance = block.bytes() - 1;
        self.check_fetch(distance)?;
        Ok(self.fetch_physical(linear.wrapping_add(distance))? & !0xfff == second)
    }

    /// `#GP(0)` if the byte at a distance from RIP is behind the code segment's limit. That comes before its page.
    fn check_fetch(&mut self, distance: u64) -> Result<(), Fault> {
        let limit = u64::from(self.segments[usize::from(seg::CS)].limit);
        if !self.long64 && self.rip().wrapping_add(distance) > limit {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Marks the page as code and returns where its generation is counted, and the count.
    pub(crate) fn mark_code(&self, physical: u64) -> (*const AtomicU32, u32) {
        let marked = self.memory.find(physical).and_then(|region| {
            let page = ((physical - region.start()) >> 12) as usize;
            let now = region.tracker().mark_code(page)?;
            Some((&raw const *region.tracker().generation(page)?, now))
        });
        // Code outside RAM never counts as current, so that it is fetched anew each time.
        marked.unwrap_or((&raw const NO_GENERATION, u32::MAX))
    }

    /// Decodes to `code.insns`.
    fn decode_block(&mut self, key: u64, linear: u64, physical: u64) -> Result<Origin, Fault> {
        let generation = self.mark_code(physical);
        let room = 0x1000 - (physical & 0xfff) as usize;
        let mut page = [0; LONGEST_BLOCK * LONGEST_INSN];
        let longest = room.min(page.len());
        let page = &mut page[..longest];
        self.read_physical(physical, page);
        self.code.insns.clear();
        let mut at = 0;
        while at < page.len() && self.code.insns.len() < LONGEST_BLOCK {
            if at > 0 && self.is_cut(physical + at as u64) {
                break;
            }
            match decode::decode(&self.system, &page[at..], self.code_size) {
                Decoded::Insn { insn, ends_block } => {
                    at += usize::from(insn.len);
                    self.code.insns.push(insn);
                    if ends_block {
                        break;
                    }
                }
                Decoded::NeedsMore => break,
                Decoded::TooLong => {
                    if self.code.insns.is_empty() {
                        return Err(self.raise(Exception::gp(0)));
                    }
                    break;
                }
            }
        }
        if self.code.insns.is_empty() {
            return self.decode_across(key, linear, &page[..longest.min(LONGEST_INSN)], generation);
        }
        let nothing = (&raw const NO_GENERATION, 0);
        Ok(Origin { key, bytes: at as u16, generations: [generation, nothing], second: None })
    }

    /// One instruction whose bytes continue on the next page.
    fn decode_across(
        &mut self,
        key: u64,
        linear: u64,
        head: &[u8],
        first: (*const AtomicU32, u32),
    ) -> Result<Origin, Fault> {
        self.check_fetch(head.len() as u64)?;
        let mut next = linear.wrapping_add(head.len() as u64);
        if !self.long64 {
            next &= 0xffff_ffff;
        }
        let physical = self.fetch_physical(next)?;
        let second = self.mark_code(physical);
        let mut bytes = [0; LONGEST_INSN];
        let (low, high) = bytes.split_at_mut(head.len());
        low.copy_from_slice(head);
        self.read_physical(physical, high);
        match decode::decode(&self.system, &bytes, self.code_size) {
            Decoded::Insn { insn, .. } => {
                self.code.insns.push(insn);
                let bytes = u16::from(insn.len);
                Ok(Origin { key, bytes, generations: [first, second], second: Some(physical & !0xfff) })
            }
            _ => Err(self.raise(Exception::gp(0))),
        }
    }
}
