//! Saved state of the real-time clock.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "rtc146818";
/// Version of [`RtcState`].
pub const VERSION: u32 = 2;

/// What the clock remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Selected register, with the NMI mask.
    pub index: u8,
    /// CMOS memory. Its time registers count only while the time stands.
    pub memory: Vec<u8>,
    /// Seconds to add to wall time.
    pub offset: i64,
    /// Nanoseconds to add to wall time besides, less than a second: the divider's phase.
    pub phase_ns: u32,
    /// The last second, in the guest's time, whose update and alarm were noted.
    pub last_second: i64,
    /// Guest time at which the periodic rate was chosen.
    pub periodic_start: u64,
    /// Periods since then that were noted.
    pub periods_seen: u64,
    /// Interrupt 8 is connected.
    pub connected: bool,
}
