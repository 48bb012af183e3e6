//! Saving and loading.

use super::registers::{SVR_WRITABLE, register as r};
use super::timer::TimerMode;
use super::{Lapic, Mode, lvt};
use crate::system::event;
use std::sync::atomic::Ordering;
use x86::LapicState;

impl Lapic {
    /// Saves the registers and the timer's progress.
    pub fn save(&self, now_ns: u64) -> LapicState {
        let registers = (0..64).map(|register| self.read(register, now_ns).unwrap_or(0)).collect();
        let errors = self.port.errors.load(Ordering::SeqCst);
        LapicState {
            registers,
            timer_elapsed_ns: self.timer.elapsed_ns(now_ns).unwrap_or(0),
            errors,
            errors_unreported: errors != 0
                && self.port.events.load(Ordering::SeqCst) & event::APIC_ERROR != 0,
        }
    }

    /// Loads a state; a TSC deadline is set by its MSR afterwards. A state whose version register is zero is no
    /// local APIC's: it stands for the one after reset.
    pub fn load(&mut self, state: &LapicState, base: u64, now_ns: u64) {
        self.base = base;
        let word = |register: u32| state.registers.get(register as usize).copied().unwrap_or(0);
        if word(r::VERSION) == 0 {
            self.power_up();
            return;
        }
        self.id = if self.mode() == Mode::X2apic { self.index as u8 } else { (word(r::ID) >> 24) as u8 };
        self.tpr = word(r::TPR) as u8;
        (self.ldr, self.dfr) = (word(r::LDR), word(r::DFR) | 0x0fff_ffff);
        (self.svr, self.esr) = (word(r::SVR) & SVR_WRITABLE, word(r::ESR));
        self.icr = u64::from(word(r::ICR_HIGH)) << 32 | u64::from(word(r::ICR));
        for at in 0..8_u32 {
            self.isr[at as usize] = word(r::ISR + at);
            self.port.tmr[at as usize].store(word(r::TMR + at), Ordering::SeqCst);
            self.port.irr[at as usize].store(word(r::IRR + at), Ordering::SeqCst);
        }
        for (entry, register) in (r::LVT_TIMER..).zip(0..self.lvt.len()) {
            self.lvt[register] = word(entry);
        }
        if self.mode() == Mode::X2apic {
            self.ldr = self.x2apic_logical();
        }
        self.timer = super::timer::Timer::default();
        self.timer.mode = TimerMode::of_entry(self.lvt[lvt::TIMER]);
        self.timer.divide = word(r::TIMER_DIVIDE) & 0xb;
        self.port.errors.store(state.errors, Ordering::SeqCst);
        if state.errors_unreported {
            self.port.events.fetch_or(event::APIC_ERROR, Ordering::SeqCst);
        }
        // A one-shot count that is over reads zero, and stays over; one that is over but has not fired yet still
        // tells for how long it has counted.
        let running = word(r::TIMER_CURRENT) != 0
            || state.timer_elapsed_ns != 0
            || self.timer.mode == TimerMode::Periodic;
        let initial = word(r::TIMER_INITIAL);
        if running {
            self.timer.start(initial, now_ns, state.timer_elapsed_ns);
        } else {
            self.timer.initial = initial;
        }
        self.publish();
        self.recheck();
    }
}
