//! Saved state of the root complex and its host bridge.

use device::pci::ConfigSpace;
use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "pci_root";
/// Version of [`RootComplexState`].
pub const VERSION: u32 = 1;

/// What the root complex remembers; functions save themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootComplexState {
    /// CONFIG_ADDRESS.
    pub address: u32,
    /// Reset control.
    pub reset_control: u8,
    /// The host bridge's configuration space.
    pub bridge: ConfigSpace,
    /// For each device, the INTx pins it asserts (bit 0 is INTA).
    pub intx: Vec<u8>,
}
