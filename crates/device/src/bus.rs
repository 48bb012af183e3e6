//! Address space of ports or MMIO, and the devices in it.

use crate::{Record, SaveError};
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// A device as the bus and the machine see it. No method has a default body: forgetting must not compile.
pub trait Device: Send + Sync {
    /// Unique in the machine, stable across versions: the identity of the saved state ("serial0").
    fn name(&self) -> &str;
    /// Reads 1, 2, 4 or 8 bytes at `offset` of window `window`.
    fn read(&self, window: usize, offset: u64, data: &mut [u8]);
    /// Writes 1, 2, 4 or 8 bytes at `offset` of window `window`.
    fn write(&self, window: usize, offset: u64, data: &[u8]);
    /// Back to the state after power-on.
    fn reset(&self);
    /// Stops background work; state stands still when this returns.
    fn pause(&self);
    /// Continues background work.
    fn resume(&self);
    /// The state of a paused device.
    fn save(&self) -> Result<Record, SaveError>;
    /// Takes over a state; the device is paused.
    fn restore(&self, record: &Record) -> Result<(), SaveError>;
}

/// A range of addresses that is taken.
#[derive(Debug, Error)]
#[error("Range {start:#x}+{len:#x} of {device} is empty or overlaps {other}")]
pub struct BusError {
    /// First address.
    pub start: u64,
    /// Length.
    pub len: u64,
    /// Who wants it.
    pub device: String,
    /// Who has it.
    pub other: String,
}

#[derive(Clone)]
struct Window {
    start: u64,
    len: u64,
    index: usize,
    device: Arc<dyn Device>,
}

/// One address space.
#[derive(Default)]
pub struct Bus {
    windows: RwLock<Vec<Window>>,
    unclaimed: AtomicU64,
}

impl Bus {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts window `index` of a device at `start`, `len` addresses long.
    pub fn insert(
        &self,
        start: u64,
        len: u64,
        device: Arc<dyn Device>,
        index: usize,
    ) -> Result<(), BusError> {
        let mut windows = self.windows.write();
        let at = windows.partition_point(|window| window.start < start);
        let before = at.checked_sub(1).and_then(|i| windows.get(i)).filter(|w| w.start + w.len > start);
        let after = windows.get(at).filter(|w| start.saturating_add(len) > w.start);
        let wraps = len == 0 || start.checked_add(len).is_none();
        if let Some(other) = before.or(after).map(|w| w.device.name()).or(wraps.then_some("its own end")) {
            let (device, other) = (device.name().to_owned(), other.to_owned());
            return Err(BusError { start, len, device, other });
        }
        windows.insert(at, Window { start, len, index, device });
        Ok(())
    }

    /// Takes the window that starts at `start` away. Does nothing if there is none.
    pub fn remove(&self, start: u64) {
        self.windows.write().retain(|window| window.start != start);
    }

    /// Takes all windows away, and with them what the address space holds of its devices: those that map their own
    /// windows hold the address space in turn, and neither would ever go.
    pub fn clear(&self) {
        // Devices go when nobody waits for the lock any more.
        let windows = std::mem::take(&mut *self.windows.write());
        drop(windows);
    }

    fn find(&self, address: u64) -> Option<Window> {
        let windows = self.windows.read();
        let at = windows.partition_point(|window| window.start <= address).checked_sub(1)?;
        windows.get(at).filter(|window| address - window.start < window.len).cloned()
    }

    /// Reads; all-ones where nobody answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some(window) => window.device.read(window.index, address - window.start, data),
            None => {
                self.unclaimed.fetch_add(1, Ordering::Relaxed);
                data.fill(0xff);
            }
        }
    }

    /// Writes; lost where nobody answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address) {
            Some(window) => window.device.write(window.index, address - window.start, data),
            None => {
                self.unclaimed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Accesses that nobody answered.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }
}
