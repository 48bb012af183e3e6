//! [`Unit`]: the translations of one guest-physical page of code at one generation, for one kind of code.
//!
//! Blocks of a unit jump to each other directly: what makes one stale makes all stale. Everything else goes
//! through the jump cache, whose targets check their unit's generation. So nothing has to be unlinked.

use super::flags::FlagHome;
use super::kind::CodeKind;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a page.
pub(super) const PAGE: usize = 0x1000;

/// log2 of the longest rest, in interpreted blocks.
const LONGEST_REST: u32 = 12;

/// Where a block can be entered, from the start of code memory.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Entries {
    /// From anywhere, flags saved: looks at events and at the generation first.
    pub outer: u32,
    /// From the same page, flags saved.
    pub saved: u32,
    /// From the same page, flags in RFLAGS.
    pub live: u32,
    /// Which of the latter two is the shorter way.
    pub prefers_live: bool,
}

impl Entries {
    /// The entry for a jump that has flags in the given home.
    pub fn inner(&self, flags: FlagHome) -> u32 {
        match flags {
            FlagHome::Live => self.live,
            FlagHome::Both if self.prefers_live => self.live,
            FlagHome::Both | FlagHome::Saved => self.saved,
        }
    }
}

/// Where execution goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Next {
    /// To the instruction behind it, this far from it.
    Behind(u8),
    /// To the linear address in `Shared::spare`.
    Spare,
}

/// An instruction that may be interpreted.
#[derive(Clone, Copy)]
pub(super) struct Site {
    pub unit: u32,
    /// Times interpreted.
    pub count: u32,
    /// Address in the page.
    pub offset: u16,
    pub next: Next,
    /// Whether another instruction of the block follows.
    pub inside: bool,
    /// Instructions that were counted with this one and come after it.
    pub rest: u8,
}

/// A direct jump in a page.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub unit: u32,
    /// The displacement to change, from the start of code memory.
    pub at: u32,
    /// Target's address in the page.
    pub target: u16,
    /// Where flags are there.
    pub flags: FlagHome,
}

/// The translations of a page, while its bytes are those of one generation.
pub(super) struct Unit {
    /// Guest-physical address.
    pub page: u64,
    pub kind: CodeKind,
    generation: (*const AtomicU32, u32),
}

impl Unit {
    pub fn new(page: u64, kind: CodeKind, generation: (*const AtomicU32, u32)) -> Self {
        Unit { page, kind, generation }
    }

    /// Where the page's generation is counted, and the one of this unit.
    pub fn generation(&self) -> (u64, u32) {
        (self.generation.0 as u64, self.generation.1)
    }

    pub fn is_current(&self) -> bool {
        #![expect(unsafe_code, reason = "reads the generation counter")]
        // SAFETY: points into the tracker of a region that `Cpu::memory` keeps alive.
        unsafe { (*self.generation.0).load(Ordering::Relaxed) == self.generation.1 }
    }
}

/// A page of code, over all its generations. One that changes again and again is not worth translating: it
/// rests, which means that it is interpreted for a while, the longer the more often it changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct CodePage {
    /// Its latest unit.
    pub unit: u32,
    stale: u32,
    rest: u32,
}

impl CodePage {
    pub fn new(unit: u32) -> Self {
        CodePage { unit, stale: 0, rest: 0 }
    }

    /// The latest unit became stale: it is to be forgotten. After `calm` times the page rests.
    pub fn became_stale(&mut self, calm: u32) {
        self.unit = u32::MAX;
        self.stale = self.stale.saturating_add(1);
        self.rest = match self.stale.checked_sub(calm) {
            Some(often) => 1 << often.min(LONGEST_REST),
            None => 0,
        };
    }

    /// Whether a block of the page shall be interpreted, which is counted.
    pub fn rests(&mut self) -> bool {
        let rests = self.rest > 0;
        self.rest = self.rest.saturating_sub(1);
        rests
    }
}
