//! Saved state of the interrupt controllers.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "pic8259";
/// Version of [`PicState`].
pub const VERSION: u32 = 1;

/// One 8259A.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipState {
    /// Requests.
    pub irr: u8,
    /// Masks.
    pub imr: u8,
    /// In service.
    pub isr: u8,
    /// Levels of the inputs.
    pub lines: u8,
    /// Inputs that are level-triggered.
    pub elcr: u8,
    /// Vector of input 0.
    pub vector_base: u8,
    /// The initialization word expected next, 0 outside of initialization.
    pub expects: u8,
    /// ICW1 as written.
    pub icw1: u8,
    /// ICW4 as written.
    pub icw4: u8,
    /// The input of highest priority.
    pub first: u8,
    /// Reads answer the ISR.
    pub read_isr: bool,
    /// The next read polls.
    pub poll: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Rotate in automatic EOI mode.
    pub auto_rotate: bool,
}

/// The pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    /// Master.
    pub master: ChipState,
    /// Slave.
    pub slave: ChipState,
}
