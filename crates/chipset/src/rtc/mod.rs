//! Real-time clock: an MC146818 with 128 bytes of CMOS memory and a century byte.
//!
//! It shows the machine's wall time in UTC, moved by what the guest sets; its interrupts run on guest time.

mod bits;
mod calendar;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use state::RtcState;

use crate::alarm::Alarm;
use ::device::{Device, IrqLine, Record, SaveError, Wire};
use device::{Now, Registers};
use guest_clock::{TimerHandler, TimerQueue};
use parking_lot::Mutex;
use state::{KIND, VERSION};
use std::sync::{Arc, Weak};

/// First port and number of ports of window 0.
pub const PORTS: (u64, u64) = (0x70, 2);
/// FADT: CENTURY.
pub const CENTURY_INDEX: u8 = bits::CENTURY as u8;

/// How much RAM the CMOS memory tells of, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemorySize {
    /// From 0 to below 4 GiB.
    pub below_4g: u64,
    /// From 4 GiB.
    pub above_4g: u64,
}

/// The real-time clock. Window 0: [`PORTS`].
pub struct Rtc {
    registers: Mutex<Registers>,
    irq: Wire,
    alarm: Alarm,
}

impl Rtc {
    /// A clock that runs at the machine's wall time.
    pub fn new(irq8: IrqLine, memory: MemorySize, timers: Arc<TimerQueue>) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<Self>| {
            let alarm = Alarm::new(timers, weak.clone());
            Rtc { registers: Mutex::new(Registers::new(memory, now(&alarm))), irq: irq8.into(), alarm }
        })
    }

    /// Connects interrupt 8, or takes it off while the HPET replaces it.
    pub fn set_irq_connected(&self, connected: bool) {
        self.with(|registers, _| registers.set_connected(connected));
    }

    fn with<R>(&self, act: impl FnOnce(&mut Registers, Now) -> R) -> R {
        let mut registers = self.registers.lock();
        let now = now(&self.alarm);
        let result = act(&mut registers, now);
        self.irq.stage(registers.interrupt());
        self.alarm.set(registers.next_event(now));
        drop(registers);
        self.irq.deliver();
        result
    }
}

fn now(alarm: &Alarm) -> Now {
    let (wall, wall_ns) = alarm.wall_time();
    Now { guest_ns: alarm.now(), wall, wall_ns }
}

impl TimerHandler for Rtc {
    fn expired(&self) {
        self.with(|registers, now| {
            self.alarm.expired();
            registers.update(now);
        });
    }
}

impl Device for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }

    fn read(&self, _window: usize, offset: u64, data: &mut [u8]) {
        self.with(|registers, now| {
            for (port, byte) in (offset..).zip(data) {
                *byte = match port {
                    0 => registers.index(),
                    1 => registers.read(now),
                    _ => 0xff,
                };
            }
        });
    }

    fn write(&self, _window: usize, offset: u64, data: &[u8]) {
        self.with(|registers, now| {
            for (port, &value) in (offset..).zip(data) {
                match port {
                    0 => registers.set_index(value),
                    1 => registers.write(value, now),
                    _ => {}
                }
            }
        });
    }

    fn reset(&self) {
        self.with(|registers, _| registers.reset());
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Result<Record, SaveError> {
        let state = self.registers.lock().save();
        Record::new(self.name(), KIND, VERSION, &state)
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let state: RtcState = record.open(KIND, VERSION)?;
        let restored = Registers::restored(&state)
            .ok_or_else(|| record.malformed(format!("it has {} bytes of memory", state.memory.len())))?;
        let mut registers = self.registers.lock();
        *registers = restored;
        self.irq.preset(registers.interrupt());
        self.alarm.set(registers.next_event(now(&self.alarm)));
        Ok(())
    }
}
