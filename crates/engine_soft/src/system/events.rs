//! What happens between instructions (SDM 3A 6.9, table 6-2): the run loop asks [`Cpu::service_events`] when the
//! event word has a bit that matters, and when the processor does not run.
//!
//! Bits are hints, set after the fact they tell of: the service clears a bit first and looks at the fact then.

use super::deliver::Delivery;
use super::event;
use crate::cpu::{Cpu, Stop, seg};
use engine::VmExit;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use x86::{CpuState, Cr0, Efer, MpState, RFlags, Vector};

/// Interrupts that IF holds back.
pub(crate) const MASKABLE: u32 = event::INTR | event::PIC | event::EXT_INT;

impl Cpu {
    /// Recomputes which events matter: after changes of IF, NMI blocking and activity.
    pub fn update_event_mask(&mut self) {
        let always = event::KICK | event::INIT | event::TICK | event::DEBUG;
        self.event_mask = match self.mp_state {
            MpState::Uninitialized => always,
            MpState::InitReceived => always | event::SIPI,
            MpState::Runnable if self.holds_interrupts() => always | event::APIC_ERROR,
            MpState::Runnable | MpState::Halted => {
                let nmi = if self.system.nmi_blocked { 0 } else { event::NMI };
                let heard = self.has_flag(RFlags::IF) || self.breaks_on_masked();
                let maskable = if heard { MASKABLE } else { 0 };
                always | event::APIC_ERROR | nmi | maskable
            }
        };
    }

    /// Looks at the clock.
    pub fn tick(&mut self) {
        let now = self.system.now_ns();
        if let Some(lapic) = &mut self.system.lapic {
            let due = lapic.advance(now);
            self.set_deadline(due, now);
        }
    }

    fn take_event(&self, bit: u32) -> bool {
        self.event_mask & bit != 0 && self.events.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// Handles everything that waits, in the order of priority; blocks while the processor does not run.
    pub fn service_events(&mut self) -> Result<(), Stop> {
        loop {
            self.update_event_mask();
            if self.take_event(event::KICK) {
                self.end_mwait();
                return self.leave(VmExit::Kicked);
            }
            if self.take_event(event::TICK) {
                if let Some(translator) = &mut self.translator {
                    translator.timer_fired();
                }
                self.tick();
                continue;
            }
            if self.take_event(event::DEBUG) {
                // The loops have looked up; what was hit is told of behind the instruction.
                continue;
            }
            if self.take_event(event::INIT) {
                self.init();
                continue;
            }
            if self.take_event(event::SIPI) {
                self.start_up();
                continue;
            }
            if matches!(self.mp_state, MpState::Runnable | MpState::Halted) && self.service_interrupts()? {
                return Ok(());
            }
            if self.mp_state == MpState::Runnable {
                return Ok(());
            }
            let since = Instant::now();
            if self.is_in_mwait() {
                self.wait_for_store();
            } else {
                self.sleep()?;
            }
            self.times.halted += since.elapsed();
        }
    }

    /// Ends HLT and MWAIT: a trap behind them comes at once.
    pub(crate) fn leave_halt(&mut self) {
        self.end_mwait();
        if self.mp_state == MpState::Halted {
            self.mp_state = MpState::Runnable;
        }
    }

    fn leave(&mut self, exit: VmExit) -> Result<(), Stop> {
        self.exit = Some(exit);
        Err(Stop::Exit)
    }

    /// Delivers one interrupt, if one can be.
    fn service_interrupts(&mut self) -> Result<bool, Stop> {
        if self.take_event(event::APIC_ERROR)
            && let Some(lapic) = &mut self.system.lapic
        {
            lapic.report_errors();
        }
        if self.take_event(event::NMI) {
            self.system.nmi_blocked = true;
            self.deliver_external(Vector::Nmi as u8)?;
            return Ok(true);
        }
        if !self.has_flag(RFlags::IF) {
            return Ok(false);
        }
        let from_message = self.take_event(event::EXT_INT);
        if self.take_event(event::PIC) || from_message {
            let heard = self.hears_pic();
            if heard || from_message {
                if let Some(vector) = self.io().map(|io| io.acknowledge_pic()) {
                    self.deliver_external(vector)?;
                    self.recheck_apic();
                    return Ok(true);
                }
            } else if let Some(lapic) = &mut self.system.lapic {
                lapic.pic_line_rose();
            }
        }
        if self.take_event(event::INTR)
            && let Some(vector) = self.system.lapic.as_mut().and_then(|lapic| lapic.acknowledge())
        {
            self.deliver_external(vector)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn hears_pic(&self) -> bool {
        self.system.lapic.as_ref().is_some_and(|lapic| lapic.bus().pic_line() && lapic.hears_pic())
    }

    fn recheck_apic(&mut self) {
        if let Some(lapic) = &self.system.lapic {
            lapic.recheck();
        }
    }

    pub(crate) fn deliver_external(&mut self, vector: u8) -> Result<(), Stop> {
        self.end_mwait();
        self.mp_state = MpState::Runnable;
        let delivered = self.interrupt(Delivery::external(vector));
        self.update_event_mask();
        match delivered {
            Ok(()) => Ok(()),
            Err(_) => {
                let exception = self.exception;
                self.deliver_exception(exception)
            }
        }
    }

    /// Waits for an event or the timer.
    fn sleep(&mut self) -> Result<(), Stop> {
        let now = self.system.now_ns();
        let Some(lapic) = &mut self.system.lapic else { return self.leave(VmExit::Halted) };
        let deadline = lapic.advance(now);
        if self.event_waiting() {
            return Ok(());
        }
        if self.step_end != u64::MAX {
            return self.leave(VmExit::Halted);
        }
        self.settle_tlb(now);
        let timeout = deadline.map(|due| Duration::from_nanos(due.saturating_sub(now)));
        let mask = self.event_mask;
        if let Some(lapic) = &self.system.lapic {
            lapic.port().sleep(mask, timeout);
        }
        Ok(())
    }

    /// INIT (SDM 3A 9.1.1, table 9-1): most MSRs, the FPU and CR0.CD/NW stay.
    fn init(&mut self) {
        let bootstrap = self.system.lapic.as_ref().is_some_and(|l| l.base() & crate::lapic::base::BSP != 0);
        let reset = CpuState::reset(bootstrap);
        let cache = self.cr0 & (Cr0::CD | Cr0::NW);
        self.regs[..16].copy_from_slice(&reset.gprs);
        self.regs[2] = u64::from(self.cpuid(1, 0)[0]);
        self.set_rip(reset.rip);
        let s = &reset.segments;
        self.segments = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldtr, s.tr];
        (self.gdtr, self.idtr) = (reset.gdtr, reset.idtr);
        self.cr0 = Cr0::ET | cache;
        (self.cr2, self.cr3) = (0, 0);
        self.cr4 = x86::Cr4::empty();
        self.efer = Efer::empty();
        (self.dr, self.dr6, self.dr7) = ([0; 4], reset.dr6, reset.dr7);
        (self.cpl, self.shadow) = (0, 0);
        self.pending_exception = None;
        self.pending_interrupt = None;
        // What had come before is void; what comes while the processor waits for a start-up IPI would be, too.
        let void = event::NMI | event::EXT_INT | event::APIC_ERROR | event::INTR;
        self.events.fetch_and(!void, Ordering::SeqCst);
        self.system.nmi_blocked = false;
        self.reset_monitor();
        self.mp_state = if bootstrap { MpState::Runnable } else { MpState::InitReceived };
        if let Some(lapic) = &mut self.system.lapic {
            lapic.reset();
        }
        self.set_rflags(2);
        self.flush_tlb(false);
        self.mode_changed();
    }

    /// Start-up IPI: real mode at `vector << 12`.
    fn start_up(&mut self) {
        let vector = self.system.lapic.as_ref().map_or(0, |lapic| lapic.start_vector());
        let cs = &mut self.segments[usize::from(seg::CS)];
        cs.selector = u16::from(vector) << 8;
        cs.base = u64::from(vector) << 12;
        self.set_rip(0);
        self.mp_state = MpState::Runnable;
        self.mode_changed();
    }
}
