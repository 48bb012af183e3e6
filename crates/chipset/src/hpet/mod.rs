//! High precision event timers: a 64-bit counter of 100 MHz and three comparators, one-shot or periodic, with edge-
//! or level-triggered interrupts and legacy replacement. There is no FSB delivery.

mod bits;
#[cfg(test)]
mod datasheet;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use state::{HpetState, TimerState};

use crate::access;
use crate::alarm::Alarm;
use ::device::{Device, InterruptSink, IrqLine, Record, SaveError, Wire};
use device::Registers;
use guest_clock::{TimerHandler, TimerQueue};
use parking_lot::Mutex;
use state::{KIND, VERSION};
use std::sync::{Arc, Weak};

/// Address of the window.
pub const ADDRESS: u64 = 0xfed0_0000;
/// Size of the window in bytes.
pub const SIZE: u64 = 0x400;
/// ACPI HPET table: the event timer block's ID, which is the low half of the capabilities.
pub const BLOCK_ID: u32 = bits::CAPABILITIES_VALUE as u32;

/// Global system interrupts that a timer may be routed to.
const GSIS: [u32; 6] = [bits::LEGACY_GSIS[0], bits::LEGACY_GSIS[1], 20, 21, 22, 23];

/// The event timers. Window 0: the memory-mapped registers.
pub struct Hpet {
    registers: Mutex<Registers>,
    wires: [(u32, Wire); GSIS.len()],
    legacy: Wire,
    alarm: Alarm,
}

impl Hpet {
    /// Timers after reset. `legacy` is told when timers 0 and 1 begin and cease to replace the PIT and the RTC, whose
    /// interrupts it takes off and connects again.
    pub fn new(
        interrupts: Arc<dyn InterruptSink>,
        legacy: Box<dyn Fn(bool) + Send + Sync>,
        timers: Arc<TimerQueue>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<Self>| Hpet {
            registers: Mutex::new(Registers::new()),
            wires: GSIS.map(|gsi| (gsi, IrqLine::new(Arc::clone(&interrupts), gsi).into())),
            legacy: Wire::new(legacy),
            alarm: Alarm::new(timers, weak.clone()),
        })
    }

    fn with<R>(&self, act: impl FnOnce(&mut Registers, u64) -> R) -> R {
        let mut registers = self.registers.lock();
        let now = self.alarm.now();
        let edges = registers.update(now);
        // Edges go where they were routed when they happened.
        self.stage(&registers, edges);
        let result = act(&mut registers, now);
        self.stage(&registers, 0);
        self.alarm.set(registers.next_event(now));
        drop(registers);
        // The PIT and the RTC let go of their interrupts before the timers use them.
        self.legacy.deliver();
        self.wires.iter().for_each(|(_, wire)| wire.deliver());
        result
    }

    /// Notes the levels of all wires, and the edges of some timers; the lock is held.
    fn stage(&self, registers: &Registers, edges: u64) {
        self.legacy.stage(registers.legacy());
        for (gsi, wire) in &self.wires {
            let timers = || (0..bits::COUNT).filter(|&index| registers.gsi(index) == Some(*gsi));
            if timers().any(|index| edges & 1 << index != 0) {
                wire.stage(false);
                wire.stage(true);
            }
            wire.stage(timers().any(|index| registers.level(index)));
        }
    }
}

impl TimerHandler for Hpet {
    fn expired(&self) {
        self.with(|_, _| self.alarm.expired());
    }
}

impl Device for Hpet {
    fn name(&self) -> &str {
        "hpet"
    }

    fn read(&self, _window: usize, offset: u64, data: &mut [u8]) {
        let value = self.with(|registers, now| registers.read(offset & !7, now));
        access::store(data, value >> (offset % 8 * 8));
    }

    fn write(&self, _window: usize, offset: u64, data: &[u8]) {
        let shift = offset % 8 * 8;
        let width = (data.len() as u64).clamp(1, 8) * 8;
        let mask = (u64::MAX >> (64 - width)) << shift;
        let value = access::load(data) << shift;
        self.with(|registers, now| registers.write(offset & !7, value, mask, now));
    }

    fn reset(&self) {
        self.with(|registers, _| *registers = Registers::new());
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Result<Record, SaveError> {
        let state = self.registers.lock().save();
        Record::new(self.name(), KIND, VERSION, &state)
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let state: HpetState = record.open(KIND, VERSION)?;
        let mut registers = self.registers.lock();
        *registers = Registers::restored(state);
        self.legacy.preset(registers.legacy());
        for (gsi, wire) in &self.wires {
            let mut timers = (0..bits::COUNT).filter(|&index| registers.gsi(index) == Some(*gsi));
            wire.preset(timers.any(|index| registers.level(index)));
        }
        self.alarm.set(registers.next_event(self.alarm.now()));
        Ok(())
    }
}
