//! The system part of [`CpuState`].

use crate::cpu::Cpu;
use crate::msr;
use engine::EngineError;
use std::sync::atomic::Ordering;
use x86::{CpuState, msr as number};

use super::event;

impl Cpu {
    /// Saves MSRs, local APIC and events.
    pub fn save_system(&self, state: &mut CpuState) {
        let now = self.system.now_ns();
        let mut msrs = self.system.msrs.clone();
        for index in msr::stored() {
            if let Some(value) = msrs.read(index) {
                state.set_msr(index, value);
            }
        }
        state.set_msr(number::TSC, self.system.tsc());
        state.set_msr(number::TSC_ADJUST, self.system.msrs.tsc_adjust);
        if let Some(lapic) = &self.system.lapic {
            state.apic_base = lapic.base();
            state.cr8 = lapic.cr8();
            state.lapic = lapic.save(now);
            state.set_msr(number::TSC_DEADLINE, lapic.tsc_deadline());
        }
        state.events.nmi_masked = self.system.nmi_blocked;
        state.events.nmi_pending = self.events.load(Ordering::SeqCst) & event::NMI != 0;
    }

    /// Loads them.
    pub fn load_system(&mut self, state: &CpuState) -> Result<(), EngineError> {
        for index in msr::stored() {
            if let Some(value) = state.msr(index) {
                self.system.msrs.write(index, value);
            }
        }
        let now = self.system.now_ns();
        if let Some(lapic) = &mut self.system.lapic {
            lapic.load(&state.lapic, state.apic_base, now);
        }
        if let Some(value) = state.msr(number::TSC) {
            self.set_tsc(value);
        }
        if let Some(value) = state.msr(number::TSC_ADJUST) {
            self.system.msrs.tsc_adjust = value;
        }
        if let Some(value) = state.msr(number::TSC_DEADLINE) {
            self.set_tsc_deadline(value);
        }
        self.system.nmi_blocked = state.events.nmi_masked;
        self.reset_monitor();
        if state.events.nmi_pending {
            self.events.fetch_or(event::NMI, Ordering::SeqCst);
        }
        if let Some(interrupt) = state.events.interrupt {
            return Err(EngineError::InvalidState {
                reason: format!("Interrupt {:#x} is half delivered", interrupt.vector),
            });
        }
        Ok(())
    }
}
