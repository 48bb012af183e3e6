//! Interrupt routing: from global system interrupts to the controllers' inputs.
//!
//! | GSI | PIC | IOAPIC |
//! |---|---|---|
//! | 0 (PIT, HPET) | 0 | 2, as the MADT's interrupt source override says |
//! | 1, 3–15 | the same | the same |
//! | 2 | — (cascade) | — (taken by GSI 0) |
//! | 16–19 (PCI's four wires) | 5, 10, 11, 14 | the same |
//! | 20–23 | — | the same |
//!
//! Operating systems use one controller and mask the other. A wire has one driver, or its drivers are combined
//! before they get here (PCI INTx). The PIC's inputs of PCI's wires are level-triggered; firmware says so in the
//! ELCR, and [`crate::pic::Pic::set_level_triggered`] does here.

use crate::ioapic::{self, IoApic};
use crate::pic::Pic;
use ::device::InterruptSink;
use std::sync::Arc;

/// Input of the IOAPIC that ISA interrupt 0 is wired to.
pub const TIMER_PIN: u8 = 2;
const PIC_INPUTS: u8 = 16;
/// The PIC's inputs of PCI's four wires, which no ISA device here uses.
pub const INTX_PIC_INPUTS: [u8; 4] = [5, 10, 11, 14];

/// The board's wires to both controllers. It has no state.
pub struct InterruptRouter {
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
}

impl InterruptRouter {
    /// Wires to these controllers.
    pub fn new(pic: Arc<Pic>, ioapic: Arc<IoApic>) -> Arc<Self> {
        Arc::new(InterruptRouter { pic, ioapic })
    }
}

/// PIC and IOAPIC input of a global system interrupt.
fn inputs_of(gsi: u32) -> (Option<u8>, Option<u8>) {
    match u8::try_from(gsi) {
        Ok(0) => (Some(0), Some(TIMER_PIN)),
        Ok(TIMER_PIN) | Err(_) => (None, None),
        Ok(gsi) if gsi < PIC_INPUTS => (Some(gsi), Some(gsi)),
        Ok(gsi) => {
            let wire = usize::from(gsi - PIC_INPUTS);
            (INTX_PIC_INPUTS.get(wire).copied(), Some(gsi).filter(|&gsi| gsi < ioapic::PINS))
        }
    }
}

impl InterruptSink for InterruptRouter {
    fn set_level(&self, gsi: u32, asserted: bool) {
        let (pic, ioapic) = inputs_of(gsi);
        if let Some(line) = pic {
            self.pic.set_irq(line, asserted);
        }
        if let Some(pin) = ioapic {
            self.ioapic.set_irq(pin, asserted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds() {
        assert_eq!(inputs_of(0), (Some(0), Some(2)));
        assert_eq!(inputs_of(2), (None, None));
        for gsi in [1, 3, 4, 8, 15] {
            assert_eq!(inputs_of(gsi.into()), (Some(gsi), Some(gsi)));
        }
        for (gsi, input) in [(16, 5), (17, 10), (18, 11), (19, 14)] {
            assert_eq!(inputs_of(gsi.into()), (Some(input), Some(gsi)));
        }
        for gsi in 20..24 {
            assert_eq!(inputs_of(gsi.into()), (None, Some(gsi)));
        }
        for gsi in [24, 255, 256, u32::MAX] {
            assert_eq!(inputs_of(gsi), (None, None));
        }
    }
}
