//! INTx wires: four pins a device, rotated over four global system interrupts and wired together there.

use super::bits::DEVICES;
use ::device::{InterruptSink, IrqLine, Wire};
use parking_lot::Mutex;
use std::sync::Arc;

/// The first of the four global system interrupts.
pub const FIRST_GSI: u32 = 16;
const PINS: u8 = 4;

/// The global system interrupt of a device's pin (1 is INTA): for the `_PRT` and the interrupt line register.
pub fn gsi_of(device: u8, pin: u8) -> u32 {
    FIRST_GSI + u32::from(wire_of(device, pin))
}

fn wire_of(device: u8, pin: u8) -> u8 {
    device.wrapping_add(pin.wrapping_sub(1)) % PINS
}

/// The four shared wires, and which pins hold them up.
pub struct IntxWires {
    asserted: Mutex<[u8; DEVICES as usize]>,
    wires: [Wire; PINS as usize],
}

impl IntxWires {
    pub fn new(sink: &Arc<dyn InterruptSink>) -> Self {
        let wire = |index| Wire::from(IrqLine::new(Arc::clone(sink), FIRST_GSI + index));
        IntxWires { asserted: Mutex::default(), wires: [wire(0), wire(1), wire(2), wire(3)] }
    }

    fn set(&self, device: u8, pin: u8, level: bool) {
        let mut asserted = self.asserted.lock();
        let (Some(pins), Some(wire)) =
            (asserted.get_mut(usize::from(device)), self.wires.get(usize::from(wire_of(device, pin))))
        else {
            return;
        };
        let bit = 1_u8 << (pin.wrapping_sub(1) % PINS);
        *pins = if level { *pins | bit } else { *pins & !bit };
        wire.stage(is_high(&*asserted, wire_of(device, pin)));
        drop(asserted);
        wire.deliver();
    }

    pub fn save(&self) -> Vec<u8> {
        self.asserted.lock().to_vec()
    }

    /// Takes over saved levels silently; false if the number of devices is another.
    pub fn restore(&self, saved: &[u8]) -> bool {
        let Ok(saved) = <[u8; DEVICES as usize]>::try_from(saved) else {
            return false;
        };
        let mut asserted = self.asserted.lock();
        *asserted = saved;
        for (index, wire) in (0..).zip(&self.wires) {
            wire.preset(is_high(&*asserted, index));
        }
        true
    }
}

/// Whether any pin holds a wire up.
fn is_high(asserted: &[u8], wire: u8) -> bool {
    let pins_up = |(device, pins): (u8, &u8)| {
        (1..=PINS).any(|pin| pins & 1 << (pin - 1) != 0 && wire_of(device, pin) == wire)
    };
    (0..).zip(asserted).any(pins_up)
}

/// One pin of one device.
pub struct IntxPin {
    pub wires: Arc<IntxWires>,
    pub device: u8,
    pub pin: u8,
}

impl InterruptSink for IntxPin {
    fn set_level(&self, _gsi: u32, asserted: bool) {
        self.wires.set(self.device, self.pin, asserted);
    }
}
