//! What a device type supplies to its transport.

use crate::queue::{QueueError, SplitQueue};
use guest_memory::GuestMemory;

/// A type of device. Methods are called by one thread at a time for each queue.
pub trait VirtioDevice: Send + Sync {
    /// Device type ID (virtio 5).
    fn id(&self) -> u16;
    /// PCI class code, 24 bits.
    fn class(&self) -> u32;
    /// Feature bits of the type; the transport adds its own.
    fn features(&self) -> u64;
    /// Largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// Reads the device-specific configuration; bytes past its end are zero.
    fn config_read(&self, offset: usize, data: &mut [u8]);
    /// Serves all requests that are available in a queue. `Ok(true)` if it used any. `features` are the
    /// negotiated ones.
    fn serve(
        &self,
        index: usize,
        queue: &mut SplitQueue,
        memory: &GuestMemory,
        features: u64,
    ) -> Result<bool, QueueError>;
}
