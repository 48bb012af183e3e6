//! The saved form of a local APIC.

use serde::{Deserialize, Serialize};

/// Local APIC registers in the layout of the xAPIC register page (SDM 3A 10.4.1, table 10-1): register at
/// byte offset `n * 16` is `registers[n]`. In x2APIC mode the ID register holds the 32-bit x2APIC ID, and
/// the high half of the ICR stays in register 0x31.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// Sixty-four 32-bit registers.
    pub registers: Vec<u32>,
    /// Nanoseconds of guest time since the current timer count was started, if the timer counts.
    pub timer_elapsed_ns: u64,
    /// Errors that were noted since the error status register was last written; its next write shows them.
    #[serde(default)]
    pub errors: u32,
    /// Whether the error interrupt for them is still to be raised.
    #[serde(default)]
    pub errors_unreported: bool,
}

impl Default for LapicState {
    fn default() -> Self {
        LapicState { registers: vec![0; 64], timer_elapsed_ns: 0, errors: 0, errors_unreported: false }
    }
}
