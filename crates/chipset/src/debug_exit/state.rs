//! Saved state of the debug ports: none, but a record all the same, so that the machine can tell that it is there.

use serde::{Deserialize, Serialize};

/// Kind of the exit port's record.
pub const EXIT_KIND: &str = "debug_exit";
/// Kind of the console port's record.
pub const CONSOLE_KIND: &str = "debug_console";
/// Version of both.
pub const VERSION: u32 = 1;

/// Nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugPortState {}
