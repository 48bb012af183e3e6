//! The I/O APIC's registers: every operation answers the messages it causes.

use super::bits::*;
use super::state::IoApicState;
use ::device::Msi;

/// The registers.
#[derive(Clone, Debug)]
pub struct Registers {
    select: u8,
    id: u32,
    pins: u32,
    entries: [u64; PINS],
}

impl Registers {
    /// After reset: all inputs masked.
    pub fn new() -> Self {
        Registers { select: 0, id: 0, pins: 0, entries: [ENTRY_MASKED; PINS] }
    }

    /// Power-on state; the levels of the inputs are others' business and stay.
    pub fn reset(&mut self) {
        *self = Registers { pins: self.pins, ..Registers::new() };
    }

    /// Reads the register at an offset of the window.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            IOREGSEL => u32::from(self.select),
            IOWIN => self.read_selected(),
            _ => 0,
        }
    }

    /// Writes the register at an offset of the window.
    pub fn write(&mut self, offset: u64, value: u32) -> Vec<Msi> {
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN => return self.write_selected(value).into_iter().collect(),
            EOI => return self.end_of_interrupt(value as u8),
            _ => {}
        }
        Vec::new()
    }

    /// Sets the level of an input.
    pub fn set_irq(&mut self, pin: u8, level: bool) -> Option<Msi> {
        let entry = *self.entries.get(usize::from(pin))?;
        let bit = 1_u32 << pin;
        let rising = level && self.pins & bit == 0;
        self.pins = if level { self.pins | bit } else { self.pins & !bit };
        if entry & ENTRY_LEVEL != 0 {
            return self.service_level(pin.into());
        }
        // An edge at a masked input is lost (3.2.4, bit 16).
        (rising && entry & ENTRY_MASKED == 0).then(|| message(entry))
    }

    /// A processor ended the interrupt of a vector: inputs that are still high interrupt again.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Vec<Msi> {
        let mut messages = Vec::new();
        for pin in 0..PINS {
            if let Some(entry) = self.entries.get_mut(pin)
                && *entry as u8 == vector
                && *entry & ENTRY_REMOTE_IRR != 0
            {
                *entry &= !ENTRY_REMOTE_IRR;
                messages.extend(self.service_level(pin));
            }
        }
        messages
    }

    /// The vectors whose end of interrupt must be told.
    pub fn level_vectors(&self) -> [bool; 256] {
        let mut vectors = [false; 256];
        for entry in self.entries.iter().filter(|&entry| entry & ENTRY_LEVEL != 0) {
            if let Some(vector) = vectors.get_mut(usize::from(*entry as u8)) {
                *vector = true;
            }
        }
        vectors
    }

    /// What is saved.
    pub fn save(&self) -> IoApicState {
        let Registers { select, id, pins, entries } = self;
        IoApicState { select: *select, id: *id, pins: *pins, entries: entries.to_vec() }
    }

    /// Saved registers; `None` if the number of entries is another.
    pub fn restored(state: &IoApicState) -> Option<Self> {
        let IoApicState { select, id, pins, entries } = state;
        let mut entries: [u64; PINS] = entries.as_slice().try_into().ok()?;
        for entry in &mut entries {
            *entry &= ENTRY_WRITABLE | ENTRY_REMOTE_IRR;
        }
        Some(Registers { select: *select, id: id & ID_MASK, pins: *pins, entries })
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION_REGISTER => VERSION_VALUE,
            select => {
                let (pin, shift) = entry_of(select);
                pin.and_then(|pin| self.entries.get(pin)).map_or(0, |entry| (entry >> shift) as u32)
            }
        }
    }

    fn write_selected(&mut self, value: u32) -> Option<Msi> {
        if self.select == ID {
            self.id = value & ID_MASK;
            return None;
        }
        let (pin, shift) = entry_of(self.select);
        let entry = self.entries.get_mut(pin?)?;
        let writable = ENTRY_WRITABLE & 0xffff_ffff << shift;
        *entry = *entry & !writable | u64::from(value) << shift & writable;
        if *entry & ENTRY_LEVEL == 0 {
            // Remote IRR means nothing for edges; system software clears it by switching to edge and back.
            *entry &= !ENTRY_REMOTE_IRR;
        }
        self.service_level(pin?)
    }

    /// Interrupts if a level-triggered input is high, open, and not in service already.
    fn service_level(&mut self, pin: usize) -> Option<Msi> {
        let high = self.pins & 1 << pin != 0;
        let entry = self.entries.get_mut(pin)?;
        let ready = *entry & (ENTRY_LEVEL | ENTRY_MASKED | ENTRY_REMOTE_IRR) == ENTRY_LEVEL;
        (high && ready).then(|| {
            *entry |= ENTRY_REMOTE_IRR;
            message(*entry)
        })
    }
}

/// Input and shift that a redirection register stands for.
fn entry_of(select: u8) -> (Option<usize>, u32) {
    let pin = select.checked_sub(REDIRECTION).map(|index| usize::from(index / 2));
    (pin, u32::from(select & 1) * 32)
}

/// The message of an entry: its low bits have the places of a message's data already.
fn message(entry: u64) -> Msi {
    let logical = if entry & 1 << 11 != 0 { MSI_LOGICAL } else { 0 };
    let trigger = if entry & ENTRY_LEVEL != 0 { MSI_LEVEL | MSI_ASSERT } else { 0 };
    Msi { address: MSI_ADDRESS | (entry >> 56) << 12 | logical, data: entry as u32 & 0x7ff | trigger }
}
