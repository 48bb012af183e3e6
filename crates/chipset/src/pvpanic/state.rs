//! Saved state: none, but a record all the same, so that the machine can tell that the port is there.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "pvpanic";
/// Its version.
pub const VERSION: u32 = 1;

/// Nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PvPanicState {}
