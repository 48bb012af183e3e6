//! Debug ports: one ends the machine with a value, one prints.
//!
//! Test kernels write their result to the exit port; the process's exit status is `(value << 1) | 1`. The console
//! port takes characters and reads as its own number, by which guests find it (the Bochs convention).

mod state;
#[cfg(test)]
mod tests;

pub use state::DebugPortState;

use crate::access;
use crate::serial::SerialBackend;
use ::device::{Device, Record, SaveError};
use state::{CONSOLE_KIND, EXIT_KIND, VERSION};
use std::sync::Arc;

/// The usual first port of the exit device.
pub const DEFAULT_PORT: u16 = 0xf4;
/// Ports of the exit device.
pub const PORTS: u64 = 4;
/// The port of the console.
pub const CONSOLE_PORT: u16 = 0xe9;

/// The exit port. Window 0: [`PORTS`] ports, usually at [`DEFAULT_PORT`].
pub struct DebugExit {
    callback: Box<dyn Fn(u32) + Send + Sync>,
}

impl DebugExit {
    /// A port that hands each value written (1, 2 or 4 bytes) to `callback`, on the vCPU's thread.
    pub fn new(callback: Box<dyn Fn(u32) + Send + Sync>) -> Arc<Self> {
        Arc::new(DebugExit { callback })
    }
}

impl Device for DebugExit {
    fn name(&self) -> &str {
        "debug_exit"
    }

    fn read(&self, _window: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _window: usize, _offset: u64, data: &[u8]) {
        (self.callback)(access::load(data) as u32);
    }

    fn reset(&self) {}

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Result<Record, SaveError> {
        Record::new(self.name(), EXIT_KIND, VERSION, &DebugPortState {})
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        record.open(EXIT_KIND, VERSION).map(|DebugPortState {}| ())
    }
}

/// The console port. Window 0: one port, [`CONSOLE_PORT`].
pub struct DebugConsole {
    backend: Arc<dyn SerialBackend>,
}

impl DebugConsole {
    /// A port that prints to a back end.
    pub fn new(backend: Arc<dyn SerialBackend>) -> Arc<Self> {
        Arc::new(DebugConsole { backend })
    }
}

impl Device for DebugConsole {
    fn name(&self) -> &str {
        "debug_console"
    }

    fn read(&self, _window: usize, _offset: u64, data: &mut [u8]) {
        data.fill(CONSOLE_PORT as u8);
    }

    fn write(&self, _window: usize, _offset: u64, data: &[u8]) {
        self.backend.write(data);
    }

    fn reset(&self) {}

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Result<Record, SaveError> {
        Record::new(self.name(), CONSOLE_KIND, VERSION, &DebugPortState {})
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        record.open(CONSOLE_KIND, VERSION).map(|DebugPortState {}| ())
    }
}
