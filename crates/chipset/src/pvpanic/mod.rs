//! pvpanic: the port by which a guest's kernel tells that it panics.
//!
//! QEMU's `docs/specs/pvpanic`: one port, ACPI device `QEMU0001`. A read says which events the board understands; a
//! write tells of events. Linux has a driver (`pvpanic-mmio`), and so have Windows and the BSDs.

mod bits;
mod state;
#[cfg(test)]
mod tests;

pub use bits::{CRASH_LOADED, PANICKED, PORT, PORTS};
pub use state::PvPanicState;

use crate::access;
use ::device::{Device, Record, SaveError};
use state::{KIND, VERSION};
use std::sync::Arc;

/// The port. Window 0: [`PORTS`] port, [`PORT`].
pub struct PvPanic {
    panicked: Box<dyn Fn() + Send + Sync>,
}

impl PvPanic {
    /// A port that calls `panicked`, on the vCPU's thread, when the guest's kernel has panicked and is lost.
    ///
    /// A guest with a crash kernel tells of it with another event, [`CRASH_LOADED`]: it goes on, to write its dump,
    /// and nobody is called.
    pub fn new(panicked: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(PvPanic { panicked })
    }
}

impl Device for PvPanic {
    fn name(&self) -> &str {
        "pvpanic"
    }

    fn read(&self, _window: usize, _offset: u64, data: &mut [u8]) {
        access::store(data, u64::from(PANICKED | CRASH_LOADED));
    }

    fn write(&self, _window: usize, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|events| events & PANICKED != 0) {
            (self.panicked)();
        }
    }

    fn reset(&self) {}

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Result<Record, SaveError> {
        Record::new(self.name(), KIND, VERSION, &PvPanicState {})
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        record.open(KIND, VERSION).map(|PvPanicState {}| ())
    }
}
