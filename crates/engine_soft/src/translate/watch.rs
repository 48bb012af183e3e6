//! When the tracker bytes of shared stores are looked at: see [`share`](super::share).

use super::asm::S1;
use super::block::Builder;
use super::flags::{FlagHome, FlagUse, flag_use};
use super::shared::{SHARE_TRACKER, SHARES};
use iced_x86::OpKind;

impl Builder<'_> {
    /// Whether the current instruction cannot leave the block, so that the look at trackers can wait.
    fn is_quiet(&mut self) -> bool {
        let Some(i) = self.instructions.get(self.index).copied() else { return false };
        let covered = self.shares.is_covered(self.index, self.index);
        let size = super::stack::slot_size(i.code());
        if size.is_some() && i.op0_kind() != OpKind::Memory && size != Some(2) {
            return covered;
        }
        let memory = super::dead::has_access(&i);
        let system = self.context.system;
        let copied = super::copy::is_known(system, &i) && !super::copy::is_locked(&i)
            || super::vector::is_known(system, &i)
                && !super::vector::is_control(&i)
                && super::vector::level(&i) <= self.vector;
        copied && (covered || !memory)
    }

    /// Looks at the trackers of stores that were not looked at, unless the current instruction can go first.
    pub fn see_stores(&mut self) {
        if self.shares.unseen == 0 || self.is_quiet() {
            return;
        }
        self.see_all_stores();
    }

    /// As [`Builder::see_stores`], now.
    pub fn see_all_stores(&mut self) {
        for slot in 0..SHARES {
            if self.shares.unseen >> slot & 1 != 0 {
                self.see_store(slot);
            }
        }
        self.shares.unseen = 0;
    }

    /// Looks at the tracker of a slot; the last instruction is the one whose site is current.
    pub fn see_store(&mut self, slot: usize) {
        if self.flags == FlagHome::Live {
            self.remake = self.find_remake();
            if self.remake.is_some() {
                self.flags = FlagHome::Saved;
            }
        }
        self.save_unless_read(self.index);
        self.asm.load_gs(S1, SHARE_TRACKER + 16 * slot);
        self.look_at(S1);
    }

    /// Saves flags that are only in RFLAGS before a look at a tracker, unless the instruction at `next` reads them
    /// from there: whatever else comes next will want them saved. Uses [`S2`].
    pub fn save_unless_read(&mut self, next: usize) {
        if self.flags == FlagHome::Live
            && self
                .instructions
                .get(next)
                .is_none_or(|i| flag_use(i) == FlagUse::None && !i.is_jcc_short_or_near())
        {
            self.save_flags();
        }
    }
}
