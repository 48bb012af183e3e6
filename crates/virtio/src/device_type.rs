//! What a device type and its transport supply to each other.

use crate::queue::{Chain, Queue, QueueError, RingState, Ticket};
use device::{Record, SaveError};
use guest_memory::GuestMemory;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Requests that a worker serves before it looks around: interrupts what it finished, serves its other queues.
pub const BATCH_LEN: u32 = 16;

/// A type of device. Everything but [`VirtioDevice::serve`] is called with no more than a transport's lock held, and
/// must not call back into it.
pub trait VirtioDevice: Send + Sync {
    /// Device type ID (virtio 5).
    fn id(&self) -> u16;
    /// PCI class code, 24 bits.
    fn class(&self) -> u32;
    /// Feature bits of the type; the transport adds its own.
    fn features(&self) -> u64;
    /// Largest size of each queue, powers of two; at most [`crate::pci::MAX_QUEUES`] queues.
    fn queue_sizes(&self) -> &[u16];
    /// Threads that serve the queues: queue `i` is served by thread `i % workers`. At least one.
    fn workers(&self) -> usize;
    /// How long a worker rests when a batch ended with work left: limits what a guest can make the host do.
    fn rest(&self) -> Duration;
    /// Tells the device its transport, once, before anything else happens.
    fn attach(&self, transport: Weak<dyn Transport>);
    /// Reads the device-specific configuration; bytes past its end are zero.
    fn config_read(&self, offset: usize, data: &mut [u8]);
    /// Writes the device-specific configuration. `features` are the negotiated ones.
    fn config_write(&self, offset: usize, data: &[u8], features: u64);
    /// Serves requests of a queue until the batch or the queue is at its end. Called by one thread at a time for each
    /// queue.
    ///
    /// # Errors
    /// When the driver broke a rule so that no answer is possible; the device then needs a reset (virtio 2.1.2).
    fn serve(&self, index: usize, batch: &mut Batch<'_>) -> Result<(), QueueError>;
    /// The state stands still from now on; no queue is served.
    fn pause(&self);
    /// The state may change again.
    fn resume(&self);
    /// Back to the state after power-on (virtio 2.4). No queue is served meanwhile.
    fn reset(&self);
    /// The state that is not in the transport, while nothing is served.
    ///
    /// # Errors
    /// When the device cannot be saved now.
    fn save(&self, name: &str) -> Result<Record, SaveError>;
    /// Takes over a state.
    ///
    /// # Errors
    /// When the record is another device's or malformed.
    fn restore(&self, record: &Record) -> Result<(), SaveError>;
}

/// What a device asks of its transport, from any thread.
pub trait Transport: Send + Sync {
    /// Has a queue served although the driver rang no doorbell: the device has something for it.
    fn wake(&self, queue: usize);
    /// Changes the device-specific configuration: runs `change` so that no driver takes the old configuration for the
    /// new one (virtio 2.5.1), and interrupts.
    fn change_config(&self, change: &mut dyn FnMut());
}

/// Some turns at a queue.
pub struct Batch<'a> {
    queue: &'a mut Queue,
    memory: &'a GuestMemory,
    features: u64,
    recalled: &'a AtomicBool,
    left: u32,
    ended_early: bool,
    /// The queue before the last request.
    before: RingState,
}

impl<'a> Batch<'a> {
    /// Turns at `queue`, until `recalled` says that somebody needs the queue.
    pub(crate) fn new(
        queue: &'a mut Queue,
        memory: &'a GuestMemory,
        features: u64,
        recalled: &'a AtomicBool,
    ) -> Self {
        let before = queue.state();
        Batch { queue, memory, features, recalled, left: BATCH_LEN, ended_early: false, before }
    }

    /// Guest memory.
    pub fn memory(&self) -> &'a GuestMemory {
        self.memory
    }

    /// What driver and device agreed on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The next request: none at the end of the queue or of the batch.
    ///
    /// # Errors
    /// When the ring breaks the rules.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        if self.left == 0 || self.recalled.load(Ordering::SeqCst) {
            self.ended_early = true;
            return Ok(None);
        }
        self.left -= 1;
        self.before = self.queue.state();
        self.queue.pop(self.memory)
    }

    /// The next requests, at most `most`, without taking them: the driver may change them until they are popped. It
    /// ends early at what breaks the rules of the ring.
    pub fn peek(&mut self, most: usize) -> Vec<Chain> {
        let state = self.queue.state();
        let mut chains = Vec::new();
        while chains.len() < most.min(self.left as usize)
            && let Ok(Some(chain)) = self.queue.pop(self.memory)
        {
            chains.push(chain);
        }
        *self.queue = Queue::new(state);
        chains
    }

    /// The last request is as if it had not been popped: it is served again after the next pause, or when the driver
    /// rings. No other was popped or given back since.
    pub fn put_back(&mut self) {
        *self.queue = Queue::new(self.before);
    }

    /// Gives a request back, with the number of bytes written to it.
    ///
    /// # Errors
    /// When the used ring is not in RAM.
    pub fn complete(&mut self, ticket: Ticket, written: u32) -> Result<(), QueueError> {
        self.queue.push_used(self.memory, ticket, written)
    }

    /// Whether the driver is to be interrupted, and whether the batch ended before the queue.
    pub(crate) fn finish(self) -> Result<(bool, bool), QueueError> {
        Ok((self.queue.wants_interrupt(self.memory)?, self.ended_early))
    }
}
