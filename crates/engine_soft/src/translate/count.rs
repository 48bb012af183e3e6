//! Counting what translated code executes, where somebody wants to know.
//!
//! Counters are added to where a block is entered and behind each conditional branch in it, for the instructions up to
//! the next one, so that a branch that is taken counts for nothing behind it. Where an interpreted instruction is the
//! last before the processor looks around, the instructions behind it are taken off again; accesses are not. Without a
//! wish for it nothing is emitted.

use super::asm::S1;
use super::block::Builder;
use super::shared::{ACCESSES_RUN, BLOCKS_RUN, INSNS_RUN, JUMPS_TAKEN, RETURNS_TAKEN};
use iced_x86::FlowControl;

/// What translated code adds to.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Counted {
    /// Blocks entered.
    pub blocks: u64,
    /// Instructions of stretches entered.
    pub insns: u64,
    /// Operands in memory among them.
    pub accesses: u64,
    /// Jumps that found their target in the jump cache.
    pub jumps: u64,
    /// Returns that led behind their calls.
    pub returns: u64,
}

impl Builder<'_> {
    fn add(&mut self, counter: usize, by: i32) {
        // Without the flags, which may be the guest's here.
        self.asm.load_gs(S1, counter);
        self.asm.lea(S1, S1, by);
        self.asm.store_gs(counter, S1);
    }

    /// Counts a block that is entered.
    pub fn count_block(&mut self) {
        if self.context.counted {
            self.add(BLOCKS_RUN, 1);
            self.count_stretch(0);
        }
    }

    /// Counts the instructions from one up to the next conditional branch, which come now.
    pub fn count_stretch(&mut self, from: usize) {
        let rest = self.instructions.get(from..).unwrap_or_default();
        if !self.context.counted || rest.is_empty() {
            return;
        }
        let branch = rest.iter().position(|i| i.flow_control() == FlowControl::ConditionalBranch);
        let stretch = &rest[..branch.map_or(rest.len(), |at| at + 1)];
        let (insns, accesses) = (stretch.len() as i32, stretch.iter().map(super::dead::accesses).sum());
        self.add(INSNS_RUN, insns);
        if accesses > 0 {
            self.add(ACCESSES_RUN, accesses);
        }
    }

    /// Instructions that were counted with the current one and come after it.
    pub fn rest_of_stretch(&self) -> u8 {
        let rest = self.instructions.get(self.index..).unwrap_or_default();
        let branch = rest.iter().position(|i| i.flow_control() == FlowControl::ConditionalBranch);
        let last = branch.unwrap_or(rest.len().saturating_sub(1));
        u8::try_from(last).ok().filter(|_| self.context.counted).unwrap_or(0)
    }

    /// Counts a return that was predicted; [`S1`] is free.
    pub fn count_return(&mut self) {
        if self.context.counted {
            self.add(RETURNS_TAKEN, 1);
        }
    }

    /// Counts a hit of the jump cache; [`S1`] is free.
    pub fn count_jump(&mut self) {
        if self.context.counted {
            self.add(JUMPS_TAKEN, 1);
        }
    }
}
