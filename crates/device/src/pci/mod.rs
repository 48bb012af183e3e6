//! PCI functions: configuration space and what the root complex asks of a function.

mod config_space;

pub use config_space::{Bar, BarKind, ConfigSpace, PciIdentity};

use crate::Device;

/// A function on the PCI bus. Its BARs are windows of the [`Device`]: window `n` is BAR `n`.
pub trait PciFunction: Device {
    /// Reads 1, 2 or 4 bytes of configuration space at a naturally aligned offset below 4096.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// Writes 1, 2 or 4 bytes of configuration space.
    fn config_write(&self, offset: u16, data: &[u8]);
    /// The BARs that decode now: (BAR number, kind, address, size). Asked after each configuration write; the root
    /// complex maps what is new and unmaps what is gone.
    fn decoded_bars(&self) -> Vec<Bar>;
    /// Tells which of them are in the address spaces now: those it decodes, without what overlaps something else. Called
    /// after each change there, with the root complex locked.
    fn bars_mapped(&self, bars: &[Bar]);
}
