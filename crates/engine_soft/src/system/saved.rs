//! The system part of [`CpuState`].

use crate::cpu::Cpu;
use crate::lapic::base;
use crate::msr;
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
        let waiting = self.events.load(Ordering::SeqCst);
        state.events.nmi_pending = waiting & event::NMI != 0;
        state.events.ext_int = waiting & event::EXT_INT != 0;
        state.events.init = waiting & event::INIT != 0;
        if waiting & event::SIPI != 0 {
            state.events.start_up = self.system.lapic.as_ref().map(|lapic| lapic.start_vector());
        }
        state.events.interrupt = self.pending_interrupt;
    }

    /// Loads them.
    pub fn load_system(&mut self, state: &CpuState) {
        for index in msr::stored() {
            if let Some(value) = state.msr(index) {
                self.system.msrs.write(index, value);
            }
        }
        let now = self.system.now_ns();
        if let Some(lapic) = &mut self.system.lapic {
            lapic.load(&state.lapic, state.apic_base, now);
        }
        let apic_base = state.apic_base;
        let elsewhere =
            self.system.lapic.is_none() && apic_base & (base::ENABLE | base::X2APIC) == base::ENABLE;
        self.system.foreign_apic = elsewhere.then_some(apic_base & base::ADDRESS);
        if let Some(value) = state.msr(number::TSC) {
            self.place_tsc(value);
        }
        if let Some(value) = state.msr(number::TSC_ADJUST) {
            self.system.msrs.tsc_adjust = value;
        }
        if let Some(value) = state.msr(number::TSC_DEADLINE) {
            self.place_tsc_deadline(value);
        }
        self.system.nmi_blocked = state.events.nmi_masked;
        self.reset_monitor();
        self.load_events(state);
    }

    /// The event word's bits that are state; the others are hints, which loading the local APIC has set anew.
    fn load_events(&mut self, state: &CpuState) {
        let events = &state.events;
        let mut waiting = 0;
        for (waits, bit) in [
            (events.nmi_pending, event::NMI),
            (events.ext_int, event::EXT_INT),
            (events.init, event::INIT),
            (events.start_up.is_some(), event::SIPI),
        ] {
            waiting |= if waits { bit } else { 0 };
        }
        if let (Some(vector), Some(lapic)) = (events.start_up, &self.system.lapic) {
            lapic.port().set_start_vector(vector);
        }
        let held = event::NMI | event::EXT_INT | event::INIT | event::SIPI;
        self.events.fetch_and(!held, Ordering::SeqCst);
        self.events.fetch_or(waiting, Ordering::SeqCst);
        // An INT n that was under way is executed again: RIP is still at it.
        self.pending_interrupt = events.interrupt.filter(|interrupt| !interrupt.software);
    }
}
