//! The entropy device (virtio 5.4): fills the driver's buffers with random bytes.
//!
//! A guest could ask for random bytes without end, even by a ring that the device's own writes keep filling. So a
//! request gets at most [`REQUEST_MAX`] bytes, which the driver is told, and after each full batch the device rests.

mod state;
#[cfg(test)]
mod tests;

use crate::queue::QueueError;
use crate::{Batch, Transport, VirtioDevice};
use device::{Record, SaveError};
use state::{EntropyState, KIND, VERSION};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Bytes that one request gets at most; the driver sees how many it got and asks again.
pub const REQUEST_MAX: usize = 4 << 10;
/// Between batches without a pause of the driver: at most 16 × 4 KiB each 2 ms, 32 MiB a second.
const REST: Duration = Duration::from_millis(2);

/// The device.
pub struct Entropy {
    source: Arc<dyn guest_clock::Entropy>,
}

impl Entropy {
    /// Takes its bytes from the machine's source.
    pub fn new(source: Arc<dyn guest_clock::Entropy>) -> Self {
        Entropy { source }
    }
}

impl VirtioDevice for Entropy {
    fn id(&self) -> u16 {
        4
    }
    fn class(&self) -> u32 {
        0xff_0000
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }
    fn workers(&self) -> usize {
        1
    }
    fn rest(&self) -> Duration {
        REST
    }
    fn attach(&self, _transport: Weak<dyn Transport>) {}
    fn config_read(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }
    fn config_write(&self, _offset: usize, _data: &[u8], _features: u64) {}

    /// The one queue takes only device-writable buffers (virtio 5.4.6.1); readable ones are ignored.
    fn serve(&self, _index: usize, batch: &mut Batch<'_>) -> Result<(), QueueError> {
        let mut bytes = [0; REQUEST_MAX];
        while let Some(chain) = batch.pop()? {
            let len = usize::try_from(chain.writable_len()).unwrap_or(REQUEST_MAX).min(REQUEST_MAX);
            let wanted = bytes.get_mut(..len).unwrap_or_default();
            self.source.fill(wanted);
            let written = chain.write(batch.memory(), wanted)?;
            batch.complete(chain.ticket, written as u32)?;
        }
        Ok(())
    }

    fn pause(&self) {}
    fn resume(&self) {}
    fn reset(&self) {}
    fn save(&self, name: &str) -> Result<Record, SaveError> {
        Record::new(name, KIND, VERSION, &EntropyState {})
    }
    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let EntropyState {} = record.open(KIND, VERSION)?;
        Ok(())
    }
}
