//! The entropy device (virtio 5.4): fills the driver's buffers with random bytes.

use crate::VirtioDevice;
use crate::queue::{QueueError, SplitQueue};
use guest_memory::GuestMemory;
use std::sync::Arc;

/// Bytes that one request gets at most; the driver sees how many it got and asks again.
const REQUEST_MAX: u64 = 64 << 10;

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
    fn config_read(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }
    fn serve(
        &self,
        _index: usize,
        queue: &mut SplitQueue,
        memory: &GuestMemory,
        _features: u64,
    ) -> Result<bool, QueueError> {
        let mut used = false;
        while let Some(chain) = queue.pop(memory)? {
            let mut bytes = vec![0; chain.writable_len().min(REQUEST_MAX) as usize];
            self.source.fill(&mut bytes);
            let written = chain.write(memory, &bytes)?;
            queue.push_used(memory, chain.head, written as u32)?;
            used = true;
        }
        Ok(used)
    }
}
