//! Keyboard controller: an 8042 without keyboard and mouse, for its reset line, its self-test and the A20 gate.
//!
//! The A20 gate is kept and read back, but addresses are never masked.

mod bits;
#[cfg(test)]
mod datasheet;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use state::I8042State;

use crate::acpi_pm::PowerEvents;
use ::device::{Device, Record, SaveError};
use device::Registers;
use parking_lot::Mutex;
use state::{KIND, VERSION};
use std::sync::Arc;

/// First port and number of ports of the windows: data, command and status, fast A20 and reset.
pub const WINDOWS: [(u64, u64); 3] = [(0x60, 1), (0x64, 1), (0x92, 1)];

/// The keyboard controller. Windows: see [`WINDOWS`].
pub struct I8042 {
    registers: Mutex<Registers>,
    power: Arc<dyn PowerEvents>,
}

impl I8042 {
    /// A controller after reset; `power` hears of resets.
    pub fn new(power: Arc<dyn PowerEvents>) -> Arc<Self> {
        Arc::new(I8042 { registers: Mutex::new(Registers::new()), power })
    }
}

impl Device for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn read(&self, window: usize, _offset: u64, data: &mut [u8]) {
        let mut registers = self.registers.lock();
        data.fill(0xff);
        if let Some(byte) = data.first_mut() {
            *byte = match window {
                0 => registers.read_data(),
                1 => registers.status(),
                2 => registers.fast_a20(),
                _ => 0xff,
            };
        }
    }

    fn write(&self, window: usize, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let mut registers = self.registers.lock();
        let request = match window {
            0 => registers.write_data(value),
            1 => registers.write_command(value),
            2 => registers.write_fast(value),
            _ => None,
        };
        drop(registers);
        if request.is_some() {
            self.power.reset();
        }
    }

    fn reset(&self) {
        *self.registers.lock() = Registers::new();
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Result<Record, SaveError> {
        let state = self.registers.lock().save();
        Record::new(self.name(), KIND, VERSION, &state)
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let state: I8042State = record.open(KIND, VERSION)?;
        let restored = Registers::restored(&state)
            .ok_or_else(|| record.malformed(format!("it has {} bytes of RAM", state.ram.len())))?;
        *self.registers.lock() = restored;
        Ok(())
    }
}
