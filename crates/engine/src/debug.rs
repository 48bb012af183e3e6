//! What a debugger asks of processors.

use std::fmt;

/// Which accesses a watchpoint tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    /// Stores.
    Write,
    /// Loads.
    Read,
    /// Both.
    Access,
}

impl WatchKind {
    /// Whether it tells of stores (`store`), or of loads.
    pub fn covers(self, store: bool) -> bool {
        match self {
            WatchKind::Write => store,
            WatchKind::Read => !store,
            WatchKind::Access => true,
        }
    }
}

/// Data whose accesses stop a processor, behind the instruction that made them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// First linear address.
    pub address: u64,
    /// Bytes, at least one.
    pub len: u64,
    /// Which accesses.
    pub kind: WatchKind,
}

impl Watchpoint {
    /// Whether `len` bytes at a linear address have one in common with it. Both may wrap around the top.
    pub fn overlaps(&self, linear: u64, len: u64) -> bool {
        linear.wrapping_sub(self.address) < self.len || self.address.wrapping_sub(linear) < len
    }
}

/// Where a processor is to stop for the debugger. The guest sees nothing of it: its memory and its debug registers
/// are its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugStops {
    /// Linear addresses of instructions to stop before.
    pub breakpoints: Vec<u64>,
    /// Data to watch.
    pub watchpoints: Vec<Watchpoint>,
    /// Stop behind the next instruction, or before the first of the handler that it leads to.
    pub single_step: bool,
    /// A single step of a processor that executes is not led away by interrupts: they wait.
    pub hold_interrupts: bool,
}

impl DebugStops {
    /// Nothing stops the processor.
    pub fn is_empty(&self) -> bool {
        self.breakpoints.is_empty() && self.watchpoints.is_empty() && !self.single_step
    }
}

/// Why a processor stopped for the debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// It stands before an instruction with a breakpoint.
    Breakpoint,
    /// It made its single step.
    Step,
    /// It stands behind an instruction that accessed watched data.
    Watchpoint(Watchpoint),
}

impl fmt::Display for DebugStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DebugStop::Breakpoint => f.write_str("breakpoint"),
            DebugStop::Step => f.write_str("single step"),
            DebugStop::Watchpoint(watch) => write!(f, "watchpoint at {:#x}", watch.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_the_common_bytes() {
        let watch = Watchpoint { address: 0x1004, len: 4, kind: WatchKind::Write };
        for (linear, len, wanted) in [
            (0x1004, 1, true),
            (0x1007, 1, true),
            (0x1008, 8, false),
            (0x1003, 1, false),
            (0x1000, 4, false),
            (0x1000, 5, true),
            (0xfff, 64, true),
        ] {
            assert_eq!(watch.overlaps(linear, len), wanted, "{linear:#x} {len}");
        }
        let top = Watchpoint { address: u64::MAX, len: 2, kind: WatchKind::Access };
        assert!(top.overlaps(0, 1) && top.overlaps(u64::MAX, 1) && !top.overlaps(1, 1));
    }
}
