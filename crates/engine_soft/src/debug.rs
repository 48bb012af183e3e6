//! What stops the processor for a debugger: [`engine::DebugStops`] on this engine.
//!
//! # Breakpoints
//! An instruction with a breakpoint is always the first of its block: decoding and translation end a block before any
//! instruction that has the same address in its page as a breakpoint (a block does not know its linear address), and
//! such blocks are neither translated nor in the jump cache. So the look-up that everything takes at last compares
//! linear addresses, and code without breakpoints costs nothing. Such addresses stay cut until the debugger has no
//! breakpoint at all; gdb takes all of them out at each stop, so code is decoded and translated anew after one.
//!
//! # Watchpoints
//! The page of watched data is not put into the TLB, so that all its accesses take the slow path, also those of
//! translated code; there they are compared.

use crate::cpu::Cpu;
use crate::mmu::{Access, OFFSET};
use crate::system::event;
use engine::{DebugStop, DebugStops, VmExit, Watchpoint};
use std::sync::atomic::Ordering;

/// A set of addresses in a page.
#[derive(Clone)]
pub(crate) struct PageOffsets([u64; 64]);

impl Default for PageOffsets {
    fn default() -> Self {
        PageOffsets([0; 64])
    }
}

impl PageOffsets {
    /// Whether an address has one of them.
    pub fn has(&self, address: u64) -> bool {
        let offset = (address & OFFSET) as usize;
        self.0[offset / 64] >> (offset % 64) & 1 != 0
    }

    /// Adds an address; whether it is new.
    fn add(&mut self, address: u64) -> bool {
        let offset = (address & OFFSET) as usize;
        let before = self.0[offset / 64];
        self.0[offset / 64] |= 1 << (offset % 64);
        self.0[offset / 64] != before
    }
}

/// The debugger's part of a processor that it stops somewhere.
pub(crate) struct Debug {
    stops: DebugStops,
    /// Where blocks end.
    cuts: PageOffsets,
    /// Why the processor is to stop behind the running instruction.
    hit: Option<DebugStop>,
}

impl Cpu {
    /// Replaces what stops the processor.
    pub(crate) fn set_debug_stops(&mut self, stops: &DebugStops) {
        let old = self.debug.take();
        let watched = |debug: &Debug| debug.stops.watchpoints.clone();
        let old_watched = old.as_deref().map(watched).unwrap_or_default();
        let (had_cuts, hit) = (old.is_some(), old.as_ref().and_then(|debug| debug.hit));
        let mut cuts = old.filter(|_| !stops.breakpoints.is_empty()).map(|debug| debug.cuts);
        let dropped = had_cuts && cuts.is_none();
        let all = cuts.get_or_insert_default();
        let added = stops.breakpoints.iter().fold(false, |added, &address| all.add(address) | added);
        if added || dropped {
            self.forget_code();
        }
        if old_watched != stops.watchpoints {
            self.flush_tlb(false);
        }
        if !stops.is_empty() {
            // What was hit and is still watched is told of.
            let hit = hit.filter(|hit| match hit {
                DebugStop::Watchpoint(watch) => stops.watchpoints.contains(watch),
                DebugStop::Breakpoint | DebugStop::Step => false,
            });
            let cuts = cuts.unwrap_or_default();
            self.debug = Some(Box::new(Debug { stops: stops.clone(), cuts, hit }));
        }
        self.update_event_mask();
    }

    /// Where blocks end before their natural ends.
    pub(crate) fn cuts(&self) -> Option<&PageOffsets> {
        self.debug.as_ref().map(|debug| &debug.cuts)
    }

    /// Whether the block at a linear address must be looked up at each entry.
    pub(crate) fn is_cut(&self, linear: u64) -> bool {
        self.debug.as_ref().is_some_and(|debug| debug.cuts.has(linear))
    }

    /// Whether a breakpoint is at a linear address; then [`Cpu::exit`] says so.
    pub(crate) fn meets_breakpoint(&mut self, linear: u64) -> bool {
        let debug = self.debug.as_ref().filter(|debug| debug.cuts.has(linear));
        let met = debug.is_some_and(|debug| debug.stops.breakpoints.contains(&linear));
        if met {
            self.exit = Some(VmExit::Debug(DebugStop::Breakpoint));
        }
        met
    }

    /// Whether one instruction at a time is to be run.
    pub(crate) fn is_single_stepped(&self) -> bool {
        self.debug.as_ref().is_some_and(|debug| debug.stops.single_step)
    }

    /// Whether interrupts wait because a step must not be led away.
    pub(crate) fn holds_interrupts(&self) -> bool {
        self.debug.as_ref().is_some_and(|debug| debug.stops.single_step && debug.stops.hold_interrupts)
    }

    /// An instruction is complete, or led to a handler.
    pub(crate) fn stepped(&mut self) {
        if let Some(debug) = self.debug.as_mut().filter(|debug| debug.stops.single_step) {
            debug.hit.get_or_insert(DebugStop::Step);
        }
    }

    /// The running instruction fails: what it has hit, it will hit again.
    pub(crate) fn forget_hit(&mut self) {
        if let Some(debug) = &mut self.debug {
            debug.hit = None;
        }
    }

    /// Turns a hit into an exit.
    pub(crate) fn stops_for_debugger(&mut self) -> bool {
        let Some(hit) = self.debug.as_mut().and_then(|debug| debug.hit.take()) else { return false };
        self.events.fetch_and(!event::DEBUG, Ordering::SeqCst);
        self.exit = Some(VmExit::Debug(hit));
        true
    }

    /// Whether data in the page of a linear address are watched.
    pub(crate) fn is_watched_page(&self, linear: u64) -> bool {
        let watches = |watch: &Watchpoint| watch.overlaps(linear & !OFFSET, OFFSET + 1);
        self.debug.as_ref().is_some_and(|debug| debug.stops.watchpoints.iter().any(watches))
    }

    /// Notes a hit of watched data. The block ends behind the instruction, and the loops look up.
    pub(crate) fn note_watched(&mut self, linear: u64, len: u64, access: Access) {
        // What is rehearsed will be executed, too.
        let Some(debug) = self.debug.as_mut().filter(|_| self.store_log.is_none()) else { return };
        let hits =
            |watch: &&Watchpoint| watch.kind.covers(access == Access::Write) && watch.overlaps(linear, len);
        if let Some(&watch) = debug.stops.watchpoints.iter().find(hits) {
            debug.hit = Some(DebugStop::Watchpoint(watch));
            self.block_end = 0;
            self.events.fetch_or(event::DEBUG, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests;
