//! What a device is.
//!
//! A [`Device`] answers reads and writes at an offset of one of its windows; the [`Bus`] finds it by address.
//! It raises interrupts through [`IrqLine`] (wires to PIC and IOAPIC) or [`MsiSink`], past the vCPUs' threads where
//! [`HostEvents`] can; its time comes from
//! `guest_clock`; its state leaves it as a [`save::Record`]. Devices are shared by all vCPU threads, so each
//! keeps its registers behind its own lock and never holds it while it calls out.
//!
//! A bad guest access reads all-ones, is counted and logged at a limited rate; it is never an error and never
//! a panic.

pub mod bus;
pub mod events;
pub mod exercise;
pub mod irq;
pub mod pci;
pub mod save;
pub mod violation;
pub mod wire;

pub use bus::{Bus, BusError, Device};
pub use events::{Doorbell, Event, EventCounts, HostEvents, MessageRoute};
pub use irq::{InterruptSink, IrqLine, Msi, MsiSink};
pub use save::{Record, SaveError};
pub use violation::GuestViolations;
pub use wire::Wire;
