//! Saved state of the I/O APIC.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "ioapic";
/// Version of [`IoApicState`].
pub const VERSION: u32 = 1;

/// What an I/O APIC remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// The selected register.
    pub select: u8,
    /// The identification register.
    pub id: u32,
    /// Levels of the inputs, one bit each.
    pub pins: u32,
    /// Redirection entries.
    pub entries: Vec<u64>,
}
