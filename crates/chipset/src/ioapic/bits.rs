//! Registers of the 82093AA (data sheet, chapter 3) and of its successors with version 0x20.

/// Selects a register (3.1.1).
pub const IOREGSEL: u64 = 0x00;
/// The selected register (3.1.2).
pub const IOWIN: u64 = 0x10;
/// A vector written here ends its interrupt (version 0x20).
pub const EOI: u64 = 0x40;

/// Identification (3.2.1): bits 27–24.
pub const ID: u8 = 0x00;
/// Version and number of the last entry (3.2.2).
pub const VERSION_REGISTER: u8 = 0x01;
/// Arbitration (3.2.3).
pub const ARBITRATION: u8 = 0x02;
/// First of the redirection entries, two registers each (3.2.4).
pub const REDIRECTION: u8 = 0x10;

pub const ID_MASK: u32 = 0x0f00_0000;
/// Inputs.
pub const PINS: usize = 24;
/// With an EOI register, 24 entries.
pub const VERSION_VALUE: u32 = 0x20 | (PINS as u32 - 1) << 16;

pub const ENTRY_REMOTE_IRR: u64 = 1 << 14;
pub const ENTRY_LEVEL: u64 = 1 << 15;
pub const ENTRY_MASKED: u64 = 1 << 16;
/// All but delivery status and remote IRR: vector, delivery mode, destination mode, polarity, trigger mode, mask, destination.
pub const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

// Message address and data (SDM 3A, 10.11).
pub const MSI_ADDRESS: u64 = 0xfee0_0000;
pub const MSI_LOGICAL: u64 = 1 << 2;
pub const MSI_ASSERT: u32 = 1 << 14;
pub const MSI_LEVEL: u32 = 1 << 15;
