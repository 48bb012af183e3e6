//! MONITOR and MWAIT (SDM 2B; 3A 9.10).
//!
//! MONITOR keeps a copy of the line that it is given; MWAIT stops the processor until the line differs from the copy, or
//! an interrupt, an NMI, INIT or a kick comes. What would not be seen is a store that leaves the line as it was. But MWAIT
//! may end for reasons of its own (SDM 2B, MWAIT, "false wake-ups"), and software must look at what it waits for in any
//! case: so here it ends after a millisecond at the latest, which no store can fall behind. The line is looked
//! at every [`LOOK`].
//!
//! Neither the copy nor the wait is part of a saved state: a processor that is stopped leaves MWAIT, and an MWAIT without
//! MONITOR before it does nothing.

use crate::cpu::{Cpu, Fault, Flow, Stop, gpr};
use crate::insn::Insn;
use crate::msr;
use std::sync::atomic::Ordering;
use std::time::Duration;
use x86::MpState;

/// Bytes of a monitored line (CPUID leaf 5).
const LINE: usize = 64;
/// Longest sleep between two looks at the line.
const LOOK: Duration = Duration::from_micros(100);
/// Looks after which MWAIT ends by itself.
const LOOKS: u32 = 10;
/// ECX of MWAIT: an interrupt ends it even if IF is clear.
const BREAK_ON_MASKED: u64 = 1;

/// A line that MONITOR was given.
#[derive(Clone, Copy, Debug)]
struct Line {
    physical: u64,
    content: [u8; LINE],
}

/// A processor in MWAIT.
#[derive(Clone, Copy, Debug)]
struct Wait {
    line: Line,
    break_on_masked: bool,
    looks: u32,
}

/// The monitor of a processor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Monitor {
    armed: Option<Line>,
    wait: Option<Wait>,
}

/// `#UD` where the instructions are not there: outside of ring 0, in virtual-8086 mode (which is ring 3), and when
/// IA32_MISC_ENABLE has switched them off. That the model has them was checked when they were decoded.
fn require(cpu: &mut Cpu) -> Result<(), Fault> {
    let enabled = cpu.system.msrs.misc_enable() & msr::ENABLE_MONITOR != 0;
    if cpu.cpl != 0 || !enabled { Err(cpu.ud()) } else { Ok(()) }
}

/// RCX in 64-bit mode, else ECX.
fn extensions(cpu: &Cpu) -> u64 {
    if cpu.long64 { cpu.reg::<u64>(gpr::RCX) } else { u64::from(cpu.reg::<u32>(gpr::RCX)) }
}

/// MONITOR: faults as the load of a byte does.
pub fn monitor(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require(cpu)?;
    if extensions(cpu) != 0 {
        return Err(cpu.gp(0).into());
    }
    let offset = cpu.reg::<u64>(gpr::RAX) & insn.address_mask();
    let linear = cpu.linear_of(insn.segment, offset, 1, false)?;
    cpu.load::<u8>(insn.segment, offset)?;
    cpu.system.monitor.armed = cpu.translate(linear).and_then(|physical| cpu.read_line(physical));
    Ok(())
}

/// MWAIT.
pub fn mwait(cpu: &mut Cpu, _: &Insn) -> Flow {
    require(cpu)?;
    let extensions = extensions(cpu);
    if extensions & !BREAK_ON_MASKED != 0 {
        return Err(cpu.gp(0).into());
    }
    let Some(line) = cpu.system.monitor.armed.take() else { return Ok(()) };
    let break_on_masked = extensions & BREAK_ON_MASKED != 0;
    cpu.system.monitor.wait = Some(Wait { line, break_on_masked, looks: LOOKS });
    cpu.mp_state = MpState::Halted;
    Err(Stop::Done)
}

impl Cpu {
    /// The line around an address; `None` if it is not RAM, where no store is seen and MWAIT never waits.
    fn read_line(&self, physical: u64) -> Option<Line> {
        let physical = physical & !(LINE as u64 - 1);
        let mut content = [0; LINE];
        self.memory.read(physical, &mut content).ok()?;
        Some(Line { physical, content })
    }

    /// Whether the processor is in MWAIT, rather than in HLT.
    pub(super) fn is_in_mwait(&self) -> bool {
        self.system.monitor.wait.is_some()
    }

    /// Whether interrupts end the waiting although IF is clear.
    pub(super) fn breaks_on_masked(&self) -> bool {
        self.system.monitor.wait.is_some_and(|wait| wait.break_on_masked)
    }

    /// Leaves MWAIT, if the processor is in it.
    pub(super) fn end_mwait(&mut self) {
        if self.system.monitor.wait.take().is_some() && self.mp_state == MpState::Halted {
            self.mp_state = MpState::Runnable;
        }
    }

    /// Forgets the monitored line, and that the processor waits.
    pub(super) fn reset_monitor(&mut self) {
        self.system.monitor = Monitor::default();
    }

    /// Waits a little for a store to the line or an event, or ends the waiting.
    pub(super) fn wait_for_store(&mut self) {
        let Some(mut wait) = self.system.monitor.wait else { return };
        let masked = super::event::INTR | super::event::PIC | super::event::EXT_INT;
        let interrupted = wait.break_on_masked && self.events.load(Ordering::SeqCst) & masked != 0;
        let stored = self.read_line(wait.line.physical).is_none_or(|now| now.content != wait.line.content);
        // A step-limited run, and a processor that nobody can wake, do not wait.
        if interrupted || stored || wait.looks == 0 || self.step_end != u64::MAX {
            return self.end_mwait();
        }
        let now = self.system.now_ns();
        let Some(lapic) = &mut self.system.lapic else { return self.end_mwait() };
        let due = lapic.advance(now).map(|due| Duration::from_nanos(due.saturating_sub(now)));
        if self.event_waiting() {
            return;
        }
        let mask = self.event_mask;
        if let Some(lapic) = &self.system.lapic {
            lapic.port().sleep(mask, Some(due.map_or(LOOK, |due| due.min(LOOK))));
        }
        wait.looks -= 1;
        self.system.monitor.wait = Some(wait);
    }
}

#[cfg(test)]
mod tests;
