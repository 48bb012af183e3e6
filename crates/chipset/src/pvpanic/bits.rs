//! Port and bits of QEMU's `docs/specs/pvpanic`, "ISA Interface" and "Bit Definition".

/// The port.
pub const PORT: u16 = 0x505;
/// How many ports.
pub const PORTS: u64 = 1;
/// The guest has panicked and wants its host to handle it.
pub const PANICKED: u8 = 1 << 0;
/// The guest has panicked and handles it itself, with its crash kernel.
pub const CRASH_LOADED: u8 = 1 << 1;
