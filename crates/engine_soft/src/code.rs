//! The cache of decoded code.
//!
//! A block is straight-line code inside one guest-physical page (or one instruction across two), found by
//! its physical address and code size. In front of the map stands a direct-mapped jump cache from linear
//! address and `fetch_key`, which names address space, privilege and code size, so that a change of any
//! translation misses. A block may run while the generations of its pages are those it was decoded at.
//!
//! Blocks are only freed by [`CodeCache::clear`], which only block lookup calls: the running block is alive.
#![expect(unsafe_code, reason = "keeps raw pointers to blocks and to page generations")]

use crate::cpu::{Cpu, Fault, seg};
use crate::decode::{self, Decoded};
use crate::insn::Insn;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use x86::Exception;

/// Instructions in a block, at most.
const LONGEST_BLOCK: usize = 64;
/// Decoded instructions after which everything is forgotten: about 10 MiB with their blocks, for each processor.
const CAPACITY: usize = 1 << 17;
const JUMP_SIZE: usize = 1 << 14;
/// Longest instruction in bytes (SDM 2A 2.3.11).
pub(crate) const LONGEST_INSN: usize = 15;

static NO_GENERATION: AtomicU32 = AtomicU32::new(0);

/// Straight-line decoded code.
pub(crate) struct Block {
    /// Its instructions; never empty.
    pub insns: Box<[Insn]>,
    /// Length in bytes.
    pub bytes: u32,
    generations: [(*const AtomicU32, u32); 2],
    /// Page of the last byte, if that is another.
    second: Option<u64>,
}

impl Block {
    #[inline(always)]
    fn is_current(&self) -> bool {
        self.generations.iter().all(|&(cell, decoded)| {
            // SAFETY: points into the tracker of a region that `Cpu::memory` keeps alive, or to a static.
            unsafe { (*cell).load(Ordering::Relaxed) == decoded }
        })
    }
}

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
    /// Times the cache was full.
    pub clears: u64,
}

/// All blocks of one processor.
pub(crate) struct CodeCache {
    jumps: Box<[JumpEntry]>,
    blocks: HashMap<u64, Box<Block>, BuildHasherDefault<AddressHasher>>,
    insns: usize,
    /// Blocks that were replaced while something may still point at them.
    #[expect(clippy::vec_box, reason = "blocks keep their addresses while others point at them")]
    retired: Vec<Box<Block>>,
    pub counts: CodeCounts,
}

impl CodeCache {
    pub fn new() -> Self {
        CodeCache {
            jumps: vec![NO_JUMP; JUMP_SIZE].into_boxed_slice(),
            blocks: HashMap::default(),
            insns: 0,
            retired: Vec::new(),
            counts: CodeCounts::default(),
        }
    }

    /// Forgets everything. Only between blocks.
    pub fn clear(&mut self) {
        self.jumps.fill(NO_JUMP);
        self.blocks.clear();
        self.retired.clear();
        self.insns = 0;
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
        self.check_fetch(0)?;
        let physical = self.fetch_physical(linear)?;
        let key = physical << 2 | u64::from(self.code_size >> 5);
        let found = self.code.blocks.get(&key).map(|block| (block.is_current(), block.second, block.bytes));
        let usable = match found {
            Some((true, second, bytes)) => self.same_second_page(second, bytes, linear)?,
            Some((false, ..)) => {
                self.code.counts.stale += 1;
                false
            }
            None => false,
        };
        let block: *const Block = match self.code.blocks.get(&key) {
            Some(block) if usable => &raw const **block,
            _ => self.make_block(key, linear, physical)?,
        };
        let key = self.mmu.fetch_key;
        self.code.jumps[CodeCache::jump_slot(linear)] = JumpEntry { linear, key, block };
        Ok(block)
    }

    fn same_second_page(&mut self, second: Option<u64>, bytes: u32, linear: u64) -> Result<bool, Fault> {
        let Some(second) = second else { return Ok(true) };
        let last = linear.wrapping_add(u64::from(bytes) - 1);
        self.check_fetch(u64::from(bytes) - 1)?;
        Ok(self.fetch_physical(last)? & !0xfff == second)
    }

    /// `#GP(0)` if the byte at a distance from RIP is behind the code segment's limit. That comes before its page.
    fn check_fetch(&mut self, distance: u64) -> Result<(), Fault> {
        let limit = u64::from(self.segments[usize::from(seg::CS)].limit);
        if !self.long64 && self.rip().wrapping_add(distance) > limit {
            return Err(self.gp(0));
        }
        Ok(())
    }

    fn make_block(&mut self, key: u64, linear: u64, physical: u64) -> Result<*const Block, Fault> {
        if self.code.insns > CAPACITY {
            self.code.counts.clears += 1;
            self.code.clear();
        }
        let block = Box::new(self.decode_block(linear, physical)?);
        self.code.counts.decoded += 1;
        self.code.insns += block.insns.len();
        let pointer: *const Block = &raw const *block;
        if let Some(old) = self.code.blocks.insert(key, block) {
            // The jump cache may still hold it.
            self.code.retired.push(old);
        }
        Ok(pointer)
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

    fn decode_block(&mut self, linear: u64, physical: u64) -> Result<Block, Fault> {
        let generation = self.mark_code(physical);
        let room = 0x1000 - (physical & 0xfff) as usize;
        let mut page = [0; 0x1000];
        let page = &mut page[..room.min(LONGEST_BLOCK * LONGEST_INSN)];
        self.read_physical(physical, page);
        let mut insns = Vec::with_capacity(16);
        let mut at = 0;
        while at < page.len() && insns.len() < LONGEST_BLOCK {
            match decode::decode(&self.system, &page[at..], self.code_size) {
                Decoded::Insn { insn, ends_block } => {
                    at += usize::from(insn.len);
                    insns.push(insn);
                    if ends_block {
                        break;
                    }
                }
                Decoded::NeedsMore => break,
                Decoded::TooLong => {
                    if insns.is_empty() {
                        return Err(self.raise(Exception::gp(0)));
                    }
                    break;
                }
            }
        }
        if insns.is_empty() {
            return self.decode_across(linear, &page[..room.min(LONGEST_INSN)], generation);
        }
        let nothing = (&raw const NO_GENERATION, 0);
        Ok(Block {
            insns: insns.into_boxed_slice(),
            bytes: at as u32,
            generations: [generation, nothing],
            second: None,
        })
    }

    /// One instruction whose bytes continue on the next page.
    fn decode_across(
        &mut self,
        linear: u64,
        head: &[u8],
        first: (*const AtomicU32, u32),
    ) -> Result<Block, Fault> {
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
            Decoded::Insn { insn, .. } => Ok(Block {
                insns: Box::new([insn]),
                bytes: u32::from(insn.len),
                generations: [first, second],
                second: Some(physical & !0xfff),
            }),
            _ => Err(self.raise(Exception::gp(0))),
        }
    }
}
