//! The 8254 (data sheet, "Programming the 8254") and port 0x61 of PC boards.

/// The counters' clock in hertz.
pub const HZ: u64 = 1_193_182;
/// Control word register.
pub const CONTROL: u64 = 3;

/// Counter select: read-back command.
pub const SELECT_READ_BACK: u8 = 3;
/// Read-back: the count is *not* latched.
pub const READ_BACK_NO_COUNT: u8 = 1 << 5;
/// Read-back: the status is *not* latched.
pub const READ_BACK_NO_STATUS: u8 = 1 << 4;

// Bits 5–4 of the control word.
pub const ACCESS_LATCH: u8 = 0;
pub const ACCESS_LOW: u8 = 1;
pub const ACCESS_HIGH: u8 = 2;

pub const STATUS_OUT: u8 = 1 << 7;
pub const STATUS_NULL_COUNT: u8 = 1 << 6;

// Port 0x61.
pub const PORT_GATE2: u8 = 1 << 0;
/// Gate, speaker, and the two check enables can be read back.
pub const PORT_WRITABLE: u8 = 0x0f;
pub const PORT_REFRESH: u8 = 1 << 4;
pub const PORT_OUT2: u8 = 1 << 5;
/// The refresh bit toggles this often.
pub const REFRESH_NS: u64 = 15_085;

/// A periodic counter wakes the timer thread at most this often; ticks in between fall together.
pub const MIN_PERIOD_NS: u64 = 50_000;
