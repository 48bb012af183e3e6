//! Rare ways of a block (slow accesses, reports, ways out), which are collected while it is translated and emitted behind
//! it.

use super::asm::{Label, Refers, S1, S2};
use super::block::{Builder, Undo};
use super::dead::Remake;
use super::flags::FlagHome;
use super::hints::Compared;
use super::memory::{GuestAddress, StackCheck};
use super::share::Share;
use super::thunks::Exit;
use super::transfer::{Callee, Target};

/// Code for behind the block.
pub(super) enum Cold {
    /// Interprets an instruction, and those of more sites, and goes on at `back` with flags in the given home.
    Slow {
        from: Label,
        site: usize,
        more: Vec<usize>,
        back: Label,
        flags: FlagHome,
        x87: Option<u16>,
        remake: Option<Remake>,
    },
    /// Leaves at the outer entry.
    Leave { from: Label, start: u16, exit: Exit },
    /// Reports a store; the tracker pointer is in the register.
    Note {
        from: Label,
        site: usize,
        back: Label,
        flags: FlagHome,
        tracker: u8,
        call: Option<Callee>,
        x87: Option<u16>,
        remake: Option<Remake>,
    },
    /// The check of a group failed.
    Share {
        from: Label,
        retry: Label,
        start: GuestAddress,
        share: Share,
        x87: Option<u16>,
        remake: Option<Remake>,
    },
    /// A hint was not the right one.
    Hint { from: Label, elsewhere: Label, back: Label, compared: Compared },
    /// A range was not found in the stack's page; flags are saved, or will be made again on a way further aside.
    Stack { from: Label, back: Label, wanted: StackCheck },
    /// Loads the vector registers.
    Vector { from: Label, back: Label, site: usize, level: u8, x87: Option<u16> },
    /// Loads the x87 registers.
    X87 { from: Label, back: Label, site: usize },
    /// A direct jump back in the page.
    Back { from: Label, to: Target, flags: FlagHome, remake: Option<Remake> },
    /// The way out of a link whose displacement is at `at`.
    Link { from: Label, at: u64, target: u16, flags: FlagHome },
    /// A direct jump out of the page.
    Far { from: Label, to: Target, flags: FlagHome },
    /// The host's stack is full of frames.
    Deep { from: Label, back: Label },
    /// A return from another page, behind a call in the page.
    FarReturn { from: Label, back: Label },
    /// A return to another address than behind the call, at whose landing it arrived.
    Landing { other: Label, next: u16 },
    /// A jump cache miss: the linear address is in [`S1`], or in the entry that [`S2`] points to.
    Miss { from: Label, reload: Label, bad: Label, undo: Option<Undo> },
}

impl Builder<'_> {
    /// Emits what was collected.
    pub fn emit_cold(&mut self) {
        // More may be added on the way.
        while let Some(cold) = self.cold.pop() {
            match cold {
                Cold::Leave { from, start, exit } => {
                    self.asm.bind(from);
                    self.leave_at(start, exit);
                }
                Cold::Slow { from, site, more, back, flags, x87, remake } => {
                    self.asm.bind(from);
                    self.tell_on_side_way(x87);
                    if let Some(remake) = remake {
                        self.emit_remake(&remake);
                    }
                    self.swap_aside();
                    for site in std::iter::once(site).chain(more) {
                        self.asm.mov_number(S2, site as u32, Refers::Site);
                        self.asm.call_to(self.context.thunks.call_site);
                    }
                    self.swap_aside();
                    self.back_to(back, flags);
                }
                Cold::Note { .. } => self.emit_note(cold),
                Cold::Share { from, retry, start, share, x87, remake } => {
                    self.asm.bind(from);
                    self.tell_on_side_way(x87);
                    if let Some(remake) = remake {
                        self.emit_remake(&remake);
                    }
                    self.emit_share(retry, &start, share);
                }
                Cold::Stack { from, back, wanted } => self.emit_stack(from, back, &wanted),
                Cold::Hint { from, elsewhere, back, compared } => {
                    self.emit_hint([from, elsewhere], back, compared);
                }
                Cold::X87 { from, back, site } => self.emit_want_x87(from, back, site),
                Cold::Vector { from, back, site, level, x87 } => {
                    self.asm.bind(from);
                    self.tell_on_side_way(x87);
                    self.asm.mov_number(S2, site as u32, Refers::Site);
                    self.asm.mov_imm32(S1, u32::from(level));
                    self.call_out(self.context.thunks.call_vector);
                    self.asm.jmp(back);
                }
                Cold::Back { from, to, flags, remake } => {
                    self.asm.bind(from);
                    self.swap();
                    self.flags = flags;
                    self.jump_back(to, remake);
                }
                Cold::Link { from, at, target, flags } => {
                    self.asm.bind(from);
                    let at = if self.swaps.is_empty() { at } else { self.jump_exchanged() };
                    self.leave_by_link(at, target, flags);
                }
                Cold::Far { from, to, flags } => {
                    self.asm.bind(from);
                    self.swap();
                    self.flags = flags;
                    self.jump_out(to);
                }
                Cold::Deep { from, back } => self.emit_too_deep(from, back),
                Cold::FarReturn { from, back } => self.emit_far_return(from, back),
                Cold::Landing { other, next } => self.emit_other_return(other, next),
                Cold::Miss { from, reload, bad, undo } => self.emit_miss(from, reload, bad, undo),
            }
        }
    }

    /// Reports a store.
    fn emit_note(&mut self, note: Cold) {
        let Cold::Note { from, site, back, flags, tracker, call, x87, remake } = note else { return };
        self.asm.bind(from);
        self.asm.mov(S1, tracker);
        match remake {
            Some(remake) => self.emit_remake(&remake),
            None if flags == FlagHome::Live => self.emit_save(),
            None => {}
        }
        self.asm.mov(S2, S1);
        self.tell_on_side_way(x87);
        if let Some(callee) = call {
            self.put_callee(callee);
            self.asm.store_gs(super::shared::SPARE, S1);
        }
        self.asm.mov_number(S1, site as u32, Refers::Site);
        self.call_out(self.context.thunks.call_note);
        self.back_to(back, flags);
    }

    /// Puts registers back before a link; gives its displacement's address.
    fn jump_exchanged(&mut self) -> u64 {
        self.swap();
        let next = self.asm.label();
        let at = self.asm.jmp(next);
        self.asm.bind(next);
        at
    }

    fn tell_on_side_way(&mut self, x87: Option<u16>) {
        if let Some(offset) = x87 {
            self.emit_x87_pointer(offset);
        }
    }

    /// Goes back into the block, where flags are expected in `flags`; they are saved now.
    fn back_to(&mut self, back: Label, flags: FlagHome) {
        if flags != FlagHome::Saved {
            self.emit_restore();
        }
        self.asm.jmp(back);
    }

    /// Leaves for `exit` at an address in the page; flags are saved.
    pub fn leave_at(&mut self, start: u16, exit: Exit) {
        self.asm.mov_imm32(S2, u32::from(start));
        self.asm.jmp_to(self.context.thunks.leave(exit));
    }
}
