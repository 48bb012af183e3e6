//! The 8042 keyboard controller of PC/AT boards (IBM PC/AT Technical Reference, "Keyboard Controller"), with the
//! auxiliary port of the PS/2, and port 0x92.

// Status (port 0x64, read).
pub const STATUS_OUTPUT_FULL: u8 = 1 << 0;
pub const STATUS_SYSTEM: u8 = 1 << 2;
pub const STATUS_COMMAND: u8 = 1 << 3;
/// The keyboard lock is open.
pub const STATUS_UNLOCKED: u8 = 1 << 4;
/// The byte in the output buffer is the auxiliary device's (PS/2).
pub const STATUS_AUX_OUTPUT: u8 = 1 << 5;

// Commands (port 0x64, write).
pub const READ_RAM: std::ops::RangeInclusive<u8> = 0x20..=0x3f;
pub const WRITE_RAM: std::ops::RangeInclusive<u8> = 0x60..=0x7f;
pub const DISABLE_AUX: u8 = 0xa7;
pub const ENABLE_AUX: u8 = 0xa8;
pub const TEST_AUX: u8 = 0xa9;
pub const SELF_TEST: u8 = 0xaa;
pub const TEST_KEYBOARD: u8 = 0xab;
pub const DISABLE_KEYBOARD: u8 = 0xad;
pub const ENABLE_KEYBOARD: u8 = 0xae;
pub const READ_INPUT: u8 = 0xc0;
pub const READ_OUTPUT: u8 = 0xd0;
pub const WRITE_OUTPUT: u8 = 0xd1;
pub const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
pub const WRITE_AUX_BUFFER: u8 = 0xd3;
pub const WRITE_AUX: u8 = 0xd4;
/// Pulses the output lines whose bits 3–0 are zero; line 0 is the reset.
pub const PULSE: std::ops::RangeInclusive<u8> = 0xf0..=0xff;

pub const SELF_TEST_PASSED: u8 = 0x55;
/// Interface test: the clock line is stuck low, that is, nothing is plugged in.
pub const INTERFACE_STUCK: u8 = 0x01;

/// Command byte after reset: both interfaces disabled, system flag.
pub const COMMAND_BYTE: u8 = 0x34;
pub const COMMAND_SYSTEM: u8 = 1 << 2;
pub const COMMAND_KEYBOARD_OFF: u8 = 1 << 4;
pub const COMMAND_AUX_OFF: u8 = 1 << 5;

// Output port.
pub const OUTPUT_NOT_RESET: u8 = 1 << 0;
pub const OUTPUT_A20: u8 = 1 << 1;
/// The output buffer is full, by the keyboard's or the controller's byte (PS/2: the keyboard's interrupt).
pub const OUTPUT_FULL: u8 = 1 << 4;
/// The output buffer is full, by the auxiliary device's byte (PS/2: its interrupt).
pub const OUTPUT_AUX_FULL: u8 = 1 << 5;

// Port 0x92.
pub const FAST_RESET: u8 = 1 << 0;
pub const FAST_A20: u8 = 1 << 1;
