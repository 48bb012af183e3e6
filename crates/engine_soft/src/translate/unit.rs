//! [`Unit`]: the translations of one guest-physical page of code at one generation.
//!
//! Blocks of a unit jump to each other directly: what makes one stale makes all stale. Everything else goes
//! through the jump cache, whose targets check their unit's generation. So nothing has to be unlinked.

use super::flags::FlagHome;
use crate::insn::Insn;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a page.
pub(super) const PAGE: usize = 0x1000;

/// Where a block can be entered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entries {
    /// From anywhere, flags saved: looks at events and at the generation first.
    pub outer: u64,
    /// From the same page, flags saved.
    pub saved: u64,
    /// From the same page, flags in RFLAGS.
    pub live: u64,
    /// Which of the latter two is the shorter way.
    pub prefers_live: bool,
}

impl Entries {
    /// The entry for a jump that has flags in the given home.
    pub fn inner(&self, flags: FlagHome) -> u64 {
        match flags {
            FlagHome::Live => self.live,
            FlagHome::Both if self.prefers_live => self.live,
            FlagHome::Both | FlagHome::Saved => self.saved,
        }
    }
}

/// Where execution goes after an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// To this address relative to the page.
    InPage(i64),
    /// To the linear address in `Shared::spare`.
    Spare,
}

/// An instruction that may be interpreted.
pub(super) struct Site {
    pub unit: u32,
    /// Address in the page.
    pub offset: u16,
    pub next: Next,
    pub insn: Option<Box<Insn>>,
    /// Times interpreted.
    pub count: u64,
}

/// A direct jump in a page.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub unit: u32,
    /// Target's address in the page.
    pub target: u16,
    /// Address of the displacement to change.
    pub at: u64,
    /// Where flags are there.
    pub flags: FlagHome,
}

/// The translations of a page.
pub(super) struct Unit {
    pub code_size: u8,
    generation: (*const AtomicU32, u32),
    pub bytes: Box<[u8; PAGE]>,
    pub blocks: HashMap<u16, Entries>,
}

impl Unit {
    pub fn new(code_size: u8, generation: (*const AtomicU32, u32), bytes: Box<[u8; PAGE]>) -> Self {
        Unit { code_size, generation, bytes, blocks: HashMap::new() }
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
