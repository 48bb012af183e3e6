//! Interrupt controllers: two cascaded 8259A and the edge/level control registers.
//!
//! Inputs come from the interrupt router, the INTR output goes to LINT0 of processor 0, which asks back with
//! [`Pic::acknowledge`].

mod bits;
#[cfg(test)]
mod datasheet;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use state::{ChipState, PicState};

use ::device::{Device, Record, SaveError, Wire};
use device::Cascade;
use parking_lot::Mutex;
use state::{KIND, VERSION};
use std::sync::Arc;

/// First port and number of ports of the windows: master, slave, edge/level control.
pub const WINDOWS: [(u64, u64); 3] = [(0x20, 2), (0xa0, 2), (0x4d0, 2)];

/// Window of the edge/level control registers.
const EDGE_LEVEL_WINDOW: usize = 2;

/// The pair of controllers. Windows: see [`WINDOWS`].
pub struct Pic {
    chips: Mutex<Cascade>,
    intr: Wire,
}

impl Pic {
    /// Controllers before initialization; `intr` is told the level of INTR.
    pub fn new(intr: Box<dyn Fn(bool) + Send + Sync>) -> Arc<Self> {
        Arc::new(Pic { chips: Mutex::new(Cascade::new()), intr: Wire::new(intr) })
    }

    /// The processor's INTA cycle: answers the vector of the most urgent interrupt.
    pub fn acknowledge(&self) -> u8 {
        self.with(Cascade::acknowledge)
    }

    /// Sets the level of input 0–15.
    pub fn set_irq(&self, line: u8, level: bool) {
        self.with(|chips| chips.set_irq(line, level));
    }

    /// Makes these inputs level-triggered and all others edge-triggered, as firmware does in the edge/level registers
    /// for PCI's wires. A reset forgets it.
    pub fn set_level_triggered(&self, inputs: &[u8]) {
        let bits = inputs.iter().fold(0, |bits, &input| bits | 1_u16.checked_shl(input.into()).unwrap_or(0));
        let [low, high] = bits.to_le_bytes();
        self.with(|chips| {
            chips.write(EDGE_LEVEL_WINDOW, 0, low);
            chips.write(EDGE_LEVEL_WINDOW, 1, high);
        });
    }

    fn with<R>(&self, act: impl FnOnce(&mut Cascade) -> R) -> R {
        let mut chips = self.chips.lock();
        let result = act(&mut chips);
        self.intr.stage(chips.interrupt());
        drop(chips);
        self.intr.deliver();
        result
    }
}

impl Device for Pic {
    fn name(&self) -> &str {
        "pic"
    }

    fn read(&self, window: usize, offset: u64, data: &mut [u8]) {
        self.with(|chips| {
            for (register, byte) in (offset..).zip(data) {
                *byte = if register < 2 { chips.read(window, register) } else { 0xff };
            }
        });
    }

    fn write(&self, window: usize, offset: u64, data: &[u8]) {
        self.with(|chips| {
            for (register, &value) in (offset..2).zip(data) {
                chips.write(window, register, value);
            }
        });
    }

    fn reset(&self) {
        self.with(Cascade::reset);
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Result<Record, SaveError> {
        let state = self.chips.lock().save();
        Record::new(self.name(), KIND, VERSION, &state)
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let state: PicState = record.open(KIND, VERSION)?;
        let mut chips = self.chips.lock();
        *chips = Cascade::restored(&state);
        // The processor may have forgotten the line.
        self.intr.restate(chips.interrupt());
        drop(chips);
        self.intr.deliver();
        Ok(())
    }
}
