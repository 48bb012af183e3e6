//! Saved state of the keyboard controller.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "i8042";
/// Version of [`I8042State`].
pub const VERSION: u32 = 1;

/// What the controller remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    /// The controller's 32 bytes of RAM; the first is the command byte.
    pub ram: Vec<u8>,
    /// The answer that waits to be read.
    pub output: Option<u8>,
    /// That answer is the auxiliary device's. Records from before this was told have none.
    #[serde(default)]
    pub from_aux: bool,
    /// The last byte read, which the port goes on showing.
    pub last: u8,
    /// The command that waits for its data.
    pub command: Option<u8>,
    /// The last write was a command.
    pub wrote_command: bool,
    /// The A20 gate.
    pub a20: bool,
}
