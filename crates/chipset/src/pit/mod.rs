//! Interval timer: an 8254 with counter 0 on interrupt 0, counter 2 behind port 0x61.

mod bits;
mod counter;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use state::{CounterState, PitState};

use crate::alarm::Alarm;
use ::device::{Device, IrqLine, Record, SaveError, Wire};
use device::Registers;
use guest_clock::{TimerHandler, TimerQueue};
use parking_lot::Mutex;
use state::{KIND, VERSION};
use std::sync::{Arc, Weak};

/// First port and number of ports of the windows: the timer, port 0x61.
pub const WINDOWS: [(u64, u64); 2] = [(0x40, 4), (0x61, 1)];

/// The interval timer. Windows: see [`WINDOWS`].
pub struct Pit {
    registers: Mutex<Registers>,
    irq: Wire,
    alarm: Alarm,
}

impl Pit {
    /// A timer before programming.
    pub fn new(irq0: IrqLine, timers: Arc<TimerQueue>) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<Self>| Pit {
            registers: Mutex::new(Registers::new()),
            irq: irq0.into(),
            alarm: Alarm::new(timers, weak.clone()),
        })
    }

    /// Connects counter 0 to interrupt 0, or takes it off while the HPET replaces it.
    pub fn set_irq_connected(&self, connected: bool) {
        self.with(|registers, now| registers.set_connected(connected, now));
    }

    fn with<R>(&self, act: impl FnOnce(&mut Registers, u64) -> R) -> R {
        let mut registers = self.registers.lock();
        let now = self.alarm.now();
        let result = act(&mut registers, now);
        self.stage(&mut registers, now);
        drop(registers);
        self.irq.deliver();
        result
    }

    /// Notes the wire's level and the next deadline; the lock is held.
    fn stage(&self, registers: &mut Registers, now: u64) {
        if registers.take_edge(now) {
            self.irq.stage(false);
            self.irq.stage(true);
        }
        self.irq.stage(registers.interrupt(now));
        self.alarm.set(registers.next_edge(now));
    }
}

impl TimerHandler for Pit {
    fn expired(&self) {
        self.with(|_, _| self.alarm.expired());
    }
}

impl Device for Pit {
    fn name(&self) -> &str {
        "pit"
    }

    fn read(&self, window: usize, offset: u64, data: &mut [u8]) {
        self.with(|registers, now| {
            for (register, byte) in (offset..).zip(data) {
                *byte = match window {
                    0 => registers.read(register, now),
                    1 if register == 0 => registers.read_port(now),
                    _ => 0xff,
                };
            }
        });
    }

    fn write(&self, window: usize, offset: u64, data: &[u8]) {
        self.with(|registers, now| {
            for (register, &value) in (offset..).zip(data) {
                match window {
                    0 => registers.write(register, value, now),
                    1 if register == 0 => registers.write_port(value, now),
                    _ => {}
                }
            }
        });
    }

    fn reset(&self) {
        self.with(|registers, _| *registers = Registers::new());
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Result<Record, SaveError> {
        let registers = self.registers.lock();
        Record::new(self.name(), KIND, VERSION, &registers.save(self.irq.level()))
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let state: PitState = record.open(KIND, VERSION)?;
        let mut registers = self.registers.lock();
        self.irq.preset(state.irq);
        *registers = Registers::restored(state);
        self.alarm.set(registers.next_edge(self.alarm.now()));
        Ok(())
    }
}
