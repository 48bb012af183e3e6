//! ACPI power management: the PM1a event and control blocks, the power management timer, an empty GPE0 block.
//!
//! The power button raises the system control interrupt; entering S5 tells [`PowerEvents`]. The reset register of
//! the FADT is port 0xcf9, which lives between the PCI configuration ports and is answered there.

mod bits;
#[cfg(test)]
mod datasheet;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use state::AcpiPmState;

use crate::alarm::Alarm;
use ::device::{Device, GuestViolations, IrqLine, Record, SaveError, Wire};
use device::{Registers, Sleep};
use guest_clock::{TimerHandler, TimerQueue};
use parking_lot::Mutex;
use state::{KIND, VERSION};
use std::sync::{Arc, Weak};

/// First port of the window.
pub const PORT_BASE: u64 = 0x600;
/// Ports of the window.
pub const PORT_COUNT: u64 = bits::LEN;
/// FADT: PM1a_EVT_BLK.
pub const PM1A_EVENT: u16 = (PORT_BASE + bits::STATUS) as u16;
/// FADT: PM1_EVT_LEN.
pub const PM1A_EVENT_LEN: u8 = 4;
/// FADT: PM1a_CNT_BLK.
pub const PM1A_CONTROL: u16 = (PORT_BASE + bits::CONTROL) as u16;
/// FADT: PM1_CNT_LEN.
pub const PM1A_CONTROL_LEN: u8 = 2;
/// FADT: PM_TMR_BLK. The timer has 32 bits: set TMR_VAL_EXT.
pub const PM_TIMER: u16 = (PORT_BASE + bits::TIMER) as u16;
/// FADT: PM_TMR_LEN.
pub const PM_TIMER_LEN: u8 = 4;
/// FADT: GPE0_BLK.
pub const GPE0: u16 = (PORT_BASE + bits::GPE0) as u16;
/// FADT: GPE0_BLK_LEN, status and enable together.
pub const GPE0_LEN: u8 = 8;
/// DSDT: the first two elements of `_S5`.
pub const SLP_TYP_S5: u8 = 5;
/// FADT: RESET_REG, a port of one byte.
pub const RESET_PORT: u16 = 0xcf9;
/// FADT: RESET_VALUE.
pub const RESET_VALUE: u8 = 6;
/// FADT: SCI_INT, level-triggered.
pub const SCI_GSI: u32 = 9;

/// What the guest wants of its machine. Called on vCPU threads without a lock held; the machine takes note and
/// stops its processors later.
pub trait PowerEvents: Send + Sync {
    /// The guest turned itself off (S5).
    fn power_off(&self);
    /// The guest reset itself.
    fn reset(&self);
}

/// The power management registers. Window 0: [`PORT_BASE`], [`PORT_COUNT`].
pub struct AcpiPm {
    registers: Mutex<Registers>,
    sci: Wire,
    power: Arc<dyn PowerEvents>,
    alarm: Alarm,
    violations: GuestViolations,
}

impl AcpiPm {
    /// Registers after power-on.
    pub fn new(sci: IrqLine, power: Arc<dyn PowerEvents>, timers: Arc<TimerQueue>) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<Self>| AcpiPm {
            registers: Mutex::new(Registers::new(timers.clock().now_ns())),
            sci: sci.into(),
            power,
            alarm: Alarm::new(timers, weak.clone()),
            violations: GuestViolations::default(),
        })
    }

    /// Presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&self) {
        self.with(|registers, _| registers.press_power_button());
    }

    fn with<R>(&self, act: impl FnOnce(&mut Registers, u64) -> R) -> R {
        let mut registers = self.registers.lock();
        let now = self.alarm.now();
        registers.update(now);
        let result = act(&mut registers, now);
        self.sci.stage(registers.interrupt());
        self.alarm.set(registers.next_event(now));
        drop(registers);
        self.sci.deliver();
        result
    }
}

impl TimerHandler for AcpiPm {
    fn expired(&self) {
        self.with(|_, _| self.alarm.expired());
    }
}

impl Device for AcpiPm {
    fn name(&self) -> &str {
        "acpi_pm"
    }

    fn read(&self, _window: usize, offset: u64, data: &mut [u8]) {
        self.with(|registers, now| {
            for (register, byte) in (offset..).zip(data) {
                *byte = registers.read(register, now);
            }
        });
    }

    fn write(&self, _window: usize, offset: u64, data: &[u8]) {
        let write = |registers: &mut Registers, _| {
            let bytes = (offset..).zip(data);
            bytes.filter_map(|(register, &value)| registers.write(register, value)).last()
        };
        match self.with(write) {
            Some(Sleep::Enter(SLP_TYP_S5)) => self.power.power_off(),
            Some(Sleep::Enter(other)) => {
                self.violations.report(self.name(), format_args!("sleep type {other} does not exist"));
            }
            None => {}
        }
    }

    fn reset(&self) {
        self.with(|registers, now| *registers = Registers::new(now));
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Result<Record, SaveError> {
        let state = self.registers.lock().save();
        Record::new(self.name(), KIND, VERSION, &state)
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let state: AcpiPmState = record.open(KIND, VERSION)?;
        let mut registers = self.registers.lock();
        *registers = Registers::restored(&state);
        self.sci.preset(registers.interrupt());
        self.alarm.set(registers.next_event(self.alarm.now()));
        Ok(())
    }
}
