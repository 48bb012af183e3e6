//! The block device (virtio 5.2).
//!
//! Requests go from the queue to the disk's [`BlockBackend`] on the queue's own thread, data directly between guest
//! RAM and the backend. With several queues, several requests are under way; a backend that does several at once better
//! than one by one gets the reads and writes that the driver has made available together.

pub mod bits;
mod link;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use link::{DiskLink, ErrorAction, HostFailure, OnStop};
pub use state::BlockState;

use crate::queue::QueueError;
use crate::{Batch, Transport, VirtioDevice};
use bits::{BUFFER_MAX, ID_LEN, PHYSICAL_BLOCK_EXPONENT, QUEUE_SIZE, RANGE_SECTORS_MAX, RANGES_MAX};
use bits::{config, feature};
use block::{BlockBackend, SECTOR_SIZE};
use device::{Record, SaveError};
use request::Disk;
use state::{KIND, VERSION};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Most requests that are done together.
const AHEAD: usize = 64;

/// A disk.
pub struct Block {
    backend: Arc<dyn BlockBackend>,
    link: Arc<DiskLink>,
    id: [u8; ID_LEN],
    sizes: Vec<u16>,
    /// What the driver set by VIRTIO_BLK_F_CONFIG_WCE.
    writeback: AtomicBool,
}

impl Block {
    /// A disk with the given content and `queues` queues (1 to [`bits::QUEUES_MAX`]); of `serial`, the first 20 bytes
    /// count. Errors of the host are reported to the guest.
    pub fn new(backend: Arc<dyn BlockBackend>, serial: &str, queues: u16) -> Self {
        Self::linked(backend, serial, queues, DiskLink::reporting())
    }

    /// The same, with a link of its own to whoever runs the machine.
    pub fn linked(backend: Arc<dyn BlockBackend>, serial: &str, queues: u16, link: Arc<DiskLink>) -> Self {
        link.connect(backend.size());
        let mut id = [0; ID_LEN];
        id.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        let sizes = vec![QUEUE_SIZE; queues.clamp(1, bits::QUEUES_MAX).into()];
        Block { backend, link, id, sizes, writeback: AtomicBool::new(true) }
    }

    /// struct virtio_blk_config (virtio 5.2.4).
    fn config(&self) -> [u8; config::LEN] {
        let mut space = [0; config::LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            space.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        put(config::CAPACITY, &(self.link.size() / SECTOR_SIZE).to_le_bytes());
        put(config::SIZE_MAX, &BUFFER_MAX.to_le_bytes());
        // Without header and status.
        put(config::SEG_MAX, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        put(config::BLOCK_SIZE, &(SECTOR_SIZE as u32).to_le_bytes());
        put(config::PHYSICAL_BLOCK_EXPONENT, &[PHYSICAL_BLOCK_EXPONENT]);
        put(config::MIN_IO_SIZE, &(1_u16 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        put(config::WRITEBACK, &[self.writeback.load(Ordering::SeqCst).into()]);
        put(config::NUM_QUEUES, &(self.sizes.len() as u16).to_le_bytes());
        put(config::DISCARD_SECTORS, &RANGE_SECTORS_MAX.to_le_bytes());
        put(config::DISCARD_SEGMENTS, &RANGES_MAX.to_le_bytes());
        put(config::DISCARD_ALIGNMENT, &(1_u32 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        put(config::ZEROES_SECTORS, &RANGE_SECTORS_MAX.to_le_bytes());
        put(config::ZEROES_SEGMENTS, &RANGES_MAX.to_le_bytes());
        put(config::ZEROES_UNMAP, &[1]);
        space
    }

    /// Whether a write may be complete before it is flushed (virtio 5.2.5.2).
    fn is_writeback(&self, features: u64) -> bool {
        match features & feature::CONFIG_WCE != 0 {
            true => self.writeback.load(Ordering::SeqCst),
            false => features & feature::FLUSH != 0,
        }
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
        let always = feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLOCK_SIZE
            | feature::TOPOLOGY
            | feature::FLUSH
            | feature::CONFIG_WCE;
        let multi_queue = if self.sizes.len() > 1 { feature::MULTI_QUEUE } else { 0 };
        let can = self.backend.capabilities();
        let by_access = match can.read_only {
            true => feature::READ_ONLY,
            false if can.discard => feature::DISCARD | feature::WRITE_ZEROES,
            false => feature::WRITE_ZEROES,
        };
        always | multi_queue | by_access
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }
    fn workers(&self) -> usize {
        self.sizes.len()
    }
    fn rest(&self) -> Duration {
        Duration::ZERO
    }
    fn attach(&self, transport: Weak<dyn Transport>) {
        self.link.attach(transport);
    }
    fn config_read(&self, offset: usize, data: &mut [u8]) {
        let space = self.config();
        data.fill(0);
        data.iter_mut().zip(space.iter().skip(offset)).for_each(|(to, from)| *to = *from);
    }
    fn config_write(&self, offset: usize, data: &[u8], features: u64) {
        if let (config::WRITEBACK, [value]) = (offset, data)
            && features & feature::CONFIG_WCE != 0
        {
            self.writeback.store(value & 1 != 0, Ordering::SeqCst);
        }
    }

    fn serve(&self, _index: usize, batch: &mut Batch<'_>) -> Result<(), QueueError> {
        let features = batch.features();
        let disk = Disk {
            backend: self.backend.as_ref(),
            link: self.link.as_ref(),
            id: &self.id,
            features,
            writeback: self.is_writeback(features),
            memory: batch.memory(),
        };
        let mut ahead = VecDeque::new();
        while !self.link.is_held() {
            if ahead.is_empty() && self.backend.batches() {
                ahead = disk.execute_together(batch.peek(AHEAD));
            }
            let Some(chain) = batch.pop()? else { break };
            let ticket = chain.ticket;
            // A driver that changed the request meanwhile gets the new one done.
            let done = ahead.pop_front().filter(|(seen, _)| *seen == chain).map(|(_, done)| done);
            match disk.execute(chain, done)? {
                Some(written) => batch.complete(ticket, written)?,
                None => {
                    batch.put_back();
                    break;
                }
            }
        }
        Ok(())
    }

    fn pause(&self) {}
    fn resume(&self) {
        self.link.release();
    }
    fn reset(&self) {
        // What failed was the old driver's request.
        self.link.release();
        self.writeback.store(true, Ordering::SeqCst);
    }
    fn save(&self, name: &str) -> Result<Record, SaveError> {
        let Block { backend, link: _, id: _, sizes: _, writeback } = self;
        let state = BlockState { size: backend.size(), writeback: writeback.load(Ordering::SeqCst) };
        Record::new(name, KIND, VERSION, &state)
    }
    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let BlockState { size, writeback } = record.open(KIND, VERSION)?;
        if size != self.backend.size() {
            let found = self.backend.size();
            return Err(record.malformed(format!("the disk had {size} bytes and has {found} now")));
        }
        self.writeback.store(writeback, Ordering::SeqCst);
        Ok(())
    }
}
