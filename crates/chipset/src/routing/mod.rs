//! Interrupt routing: from global system interrupts to the controllers' inputs.
//!
//! | GSI | PIC | IOAPIC |
//! |---|---|---|
//! | 0 (PIT, HPET) | 0 | 2, as the MADT's interrupt source override says |
//! | 1, 3–15 | the same | the same |
//! | 2 | — (cascade) | — (taken by GSI 0) |
//! | 16–23 (PCI) | — | the same |
//!
//! Operating systems use one controller and mask the other. A wire has one driver, or its drivers are combined
//! before they get here (PCI INTx).

use crate::ioapic::{self, IoApic};
use crate::pic::Pic;
use ::device::InterruptSink;
use std::sync::Arc;

/// Input of the IOAPIC that ISA interrupt 0 is wired to.
pub const TIMER_PIN: u8 = 2;
const PIC_INPUTS: u8 = 16;

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
        Ok(gsi) => (Some(gsi).filter(|&gsi| gsi < PIC_INPUTS), Some(gsi).filter(|&gsi| gsi < ioapic::PINS)),
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
        for gsi in 16..24 {
            assert_eq!(inputs_of(gsi.into()), (None, Some(gsi)));
        }
        for gsi in [24, 255, 256, u32::MAX] {
            assert_eq!(inputs_of(gsi), (None, None));
        }
    }
}
