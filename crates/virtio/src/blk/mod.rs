//! The block device (virtio 5.2).

pub mod bits;
mod request;
#[cfg(test)]
mod tests;

use crate::VirtioDevice;
use crate::queue::{QueueError, SplitQueue};
use bits::{ID_LEN, QUEUE_SIZE, RANGE_SECTORS_MAX, feature};
use block::{BlockBackend, SECTOR_SIZE};
use guest_memory::GuestMemory;
use std::sync::Arc;

/// A disk.
pub struct Block {
    backend: Arc<dyn BlockBackend>,
    id: [u8; ID_LEN],
}

impl Block {
    /// A disk with the given content; of `serial`, the first 20 bytes count.
    pub fn new(backend: Arc<dyn BlockBackend>, serial: &str) -> Self {
        let mut id = [0; ID_LEN];
        id.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        Block { backend, id }
    }

    /// struct virtio_blk_config (virtio 5.2.4).
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.backend.size() / SECTOR_SIZE).to_le_bytes());
        put(12, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes()); // seg_max: without header and status
        put(20, &(SECTOR_SIZE as u32).to_le_bytes()); // blk_size
        put(36, &RANGE_SECTORS_MAX.to_le_bytes()); // max_discard_sectors
        put(40, &1_u32.to_le_bytes()); // max_discard_seg
        put(44, &8_u32.to_le_bytes()); // discard_sector_alignment: file-system blocks
        put(48, &RANGE_SECTORS_MAX.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &1_u32.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
        config
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u16 {
        2
    }
    fn class(&self) -> u32 {
        0x01_0000
    }
    fn features(&self) -> u64 {
        let common = feature::SEG_MAX | feature::BLOCK_SIZE | feature::FLUSH;
        if self.backend.is_read_only() {
            common | feature::READ_ONLY
        } else {
            common | feature::DISCARD | feature::WRITE_ZEROES
        }
    }
    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }
    fn config_read(&self, offset: usize, data: &mut [u8]) {
        let config = self.config();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset + i).copied().unwrap_or(0);
        }
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
            let head = chain.head;
            let written = request::execute(self.backend.as_ref(), &self.id, memory, chain)?;
            queue.push_used(memory, head, written)?;
            used = true;
        }
        Ok(used)
    }
}
