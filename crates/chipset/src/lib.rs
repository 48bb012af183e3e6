//! The legacy chips of a PC board.
//!
//! Each folder is one chip: `mod.rs` is its public type (locks, wires, timers), `device.rs` its registers without
//! any of these, `bits.rs` the register numbers with the section of the data sheet, `state.rs` what is saved.
//!
//! A chip computes under its lock what it wants to tell others and tells them after: wires through
//! [`device::Wire`], everything else as a returned action.

mod access;
pub mod acpi_pm;
mod alarm;
pub mod debug_exit;
pub mod exercise;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod pvpanic;
pub mod routing;
pub mod rtc;
pub mod serial;
