//! Configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2), ECAM (PCI Express Base 5.0, 7.2.2), the reset control
//! register of PC boards, and the registers that assign resources (PCI Local Bus 3.0, 6.2.5).

/// CONFIG_ADDRESS within the window of ports.
pub const CONFIG_ADDRESS: u64 = 0;
/// The reset control register (0xcf9): a byte inside of CONFIG_ADDRESS, which takes only double words.
pub const RESET_CONTROL: u64 = 1;
/// CONFIG_DATA.
pub const CONFIG_DATA: u64 = 4;

pub const ADDRESS_ENABLE: u32 = 1 << 31;
/// Reserved bits read as zero.
pub const ADDRESS_MASK: u32 = 0x80ff_fffc;

/// Resets when set; reads back as zero.
pub const RESET_CPU: u8 = 1 << 2;
/// Kind of reset and full reset: only kept.
pub const RESET_KEPT: u8 = 1 << 1 | 1 << 3;

pub const REGISTER_COMMAND: u16 = 0x04;
pub const REGISTER_BAR0: u16 = 0x10;
/// First register after the BARs.
pub const REGISTER_BARS_END: u16 = 0x28;
pub const REGISTER_INTERRUPT_LINE: u16 = 0x3c;
pub const REGISTER_INTERRUPT_PIN: u16 = 0x3d;
/// The interrupt line register's value for a function that is not connected (PCI 3.0, 6.2.4).
pub const NO_INTERRUPT_LINE: u8 = 0xff;

pub const BAR_IO: u32 = 1 << 0;
/// Bits 2–1: 64-bit memory.
pub const BAR_64: u32 = 1 << 2;

/// Devices on a bus.
pub const DEVICES: u8 = 32;
