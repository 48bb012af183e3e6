//! Saved state of the interval timer.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "pit8254";
/// Version of [`PitState`].
pub const VERSION: u32 = 1;

/// One counter. Times are in ticks of 1.193182 MHz since guest time 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterState {
    /// Mode 0–5.
    pub mode: u8,
    /// Counts in BCD.
    pub bcd: bool,
    /// Bytes read and written: 1 low, 2 high, 3 both.
    pub access: u8,
    /// The count in force, 1–65536.
    pub reload: u32,
    /// The count written that is not in force yet.
    pub next: Option<u32>,
    /// A count was written since the control word.
    pub loaded: bool,
    /// Counting began (in modes 1 and 5: was triggered).
    pub started: bool,
    /// When counting began.
    pub start: u64,
    /// Ticks counted when the gate stopped it.
    pub frozen: Option<u64>,
    /// The gate input.
    pub gate: bool,
    /// The low byte, while the high one is awaited.
    pub low_written: Option<u8>,
    /// The next read gives the high byte.
    pub read_high: bool,
    /// Latched count.
    pub latched_count: Option<u16>,
    /// Latched status.
    pub latched_status: Option<u8>,
    /// Rising edges of the output since `start` that were seen.
    pub edges_seen: u64,
    /// A rising edge before `start` was not seen yet.
    pub missed_edge: bool,
}

/// The timer and port 0x61.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// The counters.
    pub counters: [CounterState; 3],
    /// Writable bits of port 0x61.
    pub port: u8,
    /// Counter 0 reaches interrupt 0.
    pub connected: bool,
    /// The level of interrupt 0.
    pub irq: bool,
}
