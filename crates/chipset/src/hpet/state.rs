//! Saved state of the event timers.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "hpet";
/// Version of [`HpetState`].
pub const VERSION: u32 = 1;

/// One timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerState {
    /// The writable bits of the configuration.
    pub configuration: u64,
    /// Comparator.
    pub comparator: u64,
    /// What a periodic timer adds to it.
    pub period: u64,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HpetState {
    /// General configuration.
    pub configuration: u64,
    /// Interrupt status.
    pub status: u64,
    /// The counter when it was started, stopped or written last.
    pub base: u64,
    /// Guest time of that.
    pub base_ns: u64,
    /// The counter up to which comparators were checked.
    pub checked: u64,
    /// The timers.
    pub timers: [TimerState; 3],
}
