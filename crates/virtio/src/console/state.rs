//! What is saved of a console.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "virtio-console";
/// Version of its layout.
pub const VERSION: u32 = 1;

/// The state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Input that the guest has not got yet, in order.
    pub input: Vec<u8>,
    /// The guest reads the port.
    pub open: bool,
    /// Columns of the terminal, 0 if unknown.
    pub columns: u16,
    /// Rows of the terminal, 0 if unknown.
    pub rows: u16,
    /// Control messages to be sent, as bits of their events.
    pub announcements: u16,
}
