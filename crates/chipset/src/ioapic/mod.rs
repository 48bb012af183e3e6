//! I/O APIC: compatible with the 82093AA, with the EOI register of its successors.
//!
//! Inputs come from the interrupt router; outputs are messages to the local APICs. Level-triggered inputs wait for
//! the end of interrupt, so processors must know which vectors to report.

mod bits;
#[cfg(test)]
mod datasheet;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use state::IoApicState;

use crate::access;
use ::device::{Device, Msi, MsiSink, Record, SaveError};
use device::Registers;
use parking_lot::Mutex;
use state::{KIND, VERSION};
use std::sync::Arc;

/// Address of the window.
pub const ADDRESS: u64 = 0xfec0_0000;
/// Size of the window in bytes.
pub const SIZE: u64 = 0x1000;
/// Inputs.
pub const PINS: u8 = bits::PINS as u8;

/// Is told, for each vector, whether it is level-triggered.
pub type LevelVectors = Box<dyn Fn(&[bool; 256]) + Send + Sync>;

/// An I/O APIC. Window 0: its memory-mapped registers.
pub struct IoApic {
    registers: Mutex<Registers>,
    msi: Arc<dyn MsiSink>,
    level_vectors: LevelVectors,
    /// The vectors told last. Locked during the call, so that no message with a new level-triggered vector overtakes
    /// the news; the engine that is told never calls back.
    told: Mutex<[bool; 256]>,
}

impl IoApic {
    /// After reset. `level_vectors` is told which vectors are level-triggered whenever that changes.
    pub fn new(msi: Arc<dyn MsiSink>, level_vectors: LevelVectors) -> Arc<Self> {
        let (registers, told) = (Mutex::new(Registers::new()), Mutex::new([false; 256]));
        Arc::new(IoApic { registers, msi, level_vectors, told })
    }

    /// Sets the level of an input (asserted or not, whatever the polarity); inputs past the last are ignored.
    pub fn set_irq(&self, pin: u8, level: bool) {
        let message = self.registers.lock().set_irq(pin, level);
        self.signal(message);
    }

    /// A processor's end of interrupt.
    pub fn end_of_interrupt(&self, vector: u8) {
        let messages = self.registers.lock().end_of_interrupt(vector);
        self.signal(messages);
    }

    fn signal(&self, messages: impl IntoIterator<Item = Msi>) {
        messages.into_iter().for_each(|message| self.msi.signal(message));
    }

    fn tell_level_vectors(&self, always: bool) {
        let mut told = self.told.lock();
        let vectors = self.registers.lock().level_vectors();
        if always || *told != vectors {
            (self.level_vectors)(&vectors);
            *told = vectors;
        }
    }
}

impl Device for IoApic {
    fn name(&self) -> &str {
        "ioapic"
    }

    fn read(&self, _window: usize, offset: u64, data: &mut [u8]) {
        access::store(data, self.registers.lock().read(offset).into());
    }

    fn write(&self, _window: usize, offset: u64, data: &[u8]) {
        let messages = self.registers.lock().write(offset, access::load(data) as u32);
        if offset == bits::IOWIN {
            self.tell_level_vectors(false);
        }
        self.signal(messages);
    }

    fn reset(&self) {
        self.registers.lock().reset();
        self.tell_level_vectors(true);
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Result<Record, SaveError> {
        let state = self.registers.lock().save();
        Record::new(self.name(), KIND, VERSION, &state)
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let state: IoApicState = record.open(KIND, VERSION)?;
        let registers = Registers::restored(&state)
            .ok_or_else(|| record.malformed(format!("it has {} entries", state.entries.len())))?;
        *self.registers.lock() = registers;
        self.tell_level_vectors(true);
        Ok(())
    }
}
