//! Saved state of the power management registers.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "acpi_pm";
/// Version of [`AcpiPmState`].
pub const VERSION: u32 = 1;

/// What the registers remember; the timer is guest time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmState {
    /// PM1 status.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control.
    pub control: u16,
    /// Changes of the timer's top bit that were turned into events.
    pub overflows_seen: u64,
}
