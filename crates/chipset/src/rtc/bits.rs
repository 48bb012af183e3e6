//! Registers of the MC146818 (data sheet, "Registers" and figure 14) and of PC CMOS memory.

pub const SECONDS: usize = 0x00;
pub const SECONDS_ALARM: usize = 0x01;
pub const MINUTES: usize = 0x02;
pub const MINUTES_ALARM: usize = 0x03;
pub const HOURS: usize = 0x04;
pub const HOURS_ALARM: usize = 0x05;
pub const DAY_OF_WEEK: usize = 0x06;
pub const DAY: usize = 0x07;
pub const MONTH: usize = 0x08;
pub const YEAR: usize = 0x09;
pub const REGISTER_A: usize = 0x0a;
pub const REGISTER_B: usize = 0x0b;
pub const REGISTER_C: usize = 0x0c;
pub const REGISTER_D: usize = 0x0d;
/// Where the FADT's CENTURY field points.
pub const CENTURY: usize = 0x32;
/// Bytes of CMOS memory, registers included.
pub const SIZE: usize = 128;

/// Update in progress.
pub const A_UIP: u8 = 1 << 7;
pub const A_RATE: u8 = 0x0f;
pub const A_DIVIDER: u8 = 0x70;
/// The divider that counts a 32,768 Hz crystal.
pub const A_DIVIDER_32K: u8 = 0x20;

/// The time stands still while it is set.
pub const B_SET: u8 = 1 << 7;
pub const B_PERIODIC: u8 = 1 << 6;
pub const B_ALARM: u8 = 1 << 5;
pub const B_UPDATE: u8 = 1 << 4;
pub const B_SQUARE_WAVE: u8 = 1 << 3;
pub const B_BINARY: u8 = 1 << 2;
pub const B_24_HOURS: u8 = 1 << 1;

/// The same bits as in register B.
pub const C_SOURCES: u8 = B_PERIODIC | B_ALARM | B_UPDATE;
pub const C_IRQ: u8 = 1 << 7;

/// RAM and time are valid.
pub const D_VALID: u8 = 1 << 7;

/// Alarm bytes with both of these match everything.
pub const ALARM_ANY: u8 = 0xc0;
pub const HOURS_PM: u8 = 1 << 7;

/// The crystal in hertz.
pub const CRYSTAL_HZ: u64 = 32_768;
/// The update bit is up this long before the time changes.
pub const UIP_NS: u32 = 244_000;

/// Port 0x70: the mask of NMIs.
pub const INDEX_NMI: u8 = 1 << 7;
