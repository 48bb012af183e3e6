//! The registers, and the interrupts that follow from them: no locks, threads or wires.

use super::bits::{NO_VECTOR, isr};
use super::capabilities::Places;
use super::msix::MsixTable;
use super::state::{QueueState, VirtioPciState};
use crate::queue::RingState;
use device::pci::ConfigSpace;
use device::{Msi, Record};

/// Registers of one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueRegisters {
    pub ring: RingState,
    pub vector: u16,
    pub enabled: bool,
    /// Changes whenever the queue is enabled or reset: what a worker finished for an earlier session interrupts
    /// nobody.
    pub session: u64,
}

/// A message on its way to the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub vector: u16,
    pub msi: Msi,
}

/// All registers, and messages on their way to the sink.
#[derive(Debug)]
pub(super) struct Registers {
    pub config: ConfigSpace,
    pub places: Places,
    pub msix: MsixTable,
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub driver_features: u64,
    pub config_vector: u16,
    pub status: u8,
    pub generation: u8,
    pub queue_select: u16,
    pub isr: u8,
    pub queues: Vec<QueueRegisters>,
    pub next_session: u64,
    /// To be sent when the lock is released.
    pub outgoing: Vec<Message>,
}

impl Registers {
    /// After power-on.
    pub fn new(config: ConfigSpace, places: Places, sizes: &[u16]) -> Self {
        let mut registers = Registers {
            config,
            places,
            msix: MsixTable::new(sizes.len() + 1),
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            queue_select: 0,
            isr: 0,
            queues: Vec::new(),
            next_session: 0,
            outgoing: Vec::new(),
        };
        registers.clear(sizes);
        registers
    }

    /// What a device reset clears: everything but configuration space and MSI-X table, which are PCI's, and
    /// the configuration's generation.
    pub fn clear(&mut self, sizes: &[u16]) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.config_vector = NO_VECTOR;
        self.status = 0;
        self.queue_select = 0;
        self.isr = 0;
        self.queues.clear();
        for &size in sizes {
            let queue = self.idle_queue(size);
            self.queues.push(queue);
        }
    }

    /// A queue after reset.
    pub fn idle_queue(&mut self, size: u16) -> QueueRegisters {
        let session = self.new_session();
        let ring = RingState { size, ..RingState::default() };
        QueueRegisters { ring, vector: NO_VECTOR, enabled: false, session }
    }

    pub fn new_session(&mut self) -> u64 {
        self.next_session += 1;
        self.next_session
    }

    /// Nothing that any worker still does for any queue has an effect on the registers any more.
    pub fn end_sessions(&mut self) {
        let mut next = self.next_session;
        for queue in &mut self.queues {
            next += 1;
            queue.session = next;
        }
        self.next_session = next;
    }

    fn msix_control(&self) -> u16 {
        self.config.u16(self.places.msix_control)
    }

    pub fn msix_enabled(&self) -> bool {
        self.msix_control() & 1 << 15 != 0
    }

    pub fn msix_masked(&self) -> bool {
        self.msix_control() & 1 << 14 != 0
    }

    /// The level of the INTx wire.
    pub fn line(&self) -> bool {
        self.isr != 0 && !self.msix_enabled() && !self.config.intx_disabled()
    }

    /// Raises an interrupt: a message, or bits of the ISR status (virtio 4.1.4.5, 4.1.5.1.2).
    fn interrupt(&mut self, vector: u16, bits: u8) {
        if self.msix_enabled() {
            let masked = self.msix_masked();
            self.outgoing.extend(self.msix.signal(vector, masked));
        } else {
            self.isr |= bits;
        }
    }

    /// A queue was used.
    pub fn interrupt_queue(&mut self, index: usize) {
        if let Some(queue) = self.queues.get(index).copied() {
            self.interrupt(queue.vector, isr::QUEUE);
        }
    }

    /// Configuration or status changed.
    pub fn interrupt_config(&mut self) {
        self.interrupt(self.config_vector, isr::CONFIG);
    }

    /// Sends what is pending and not masked any more.
    pub fn send_pending(&mut self) {
        if self.msix_enabled() {
            let masked = self.msix_masked();
            let messages = self.msix.send_pending(masked);
            self.outgoing.extend(messages);
        }
    }

    /// The state; `rings` is the progress of the enabled queues.
    pub fn save(&self, rings: &[Option<RingState>], device: Record) -> VirtioPciState {
        let Registers {
            config,
            places: _,
            msix,
            device_feature_select,
            driver_feature_select,
            driver_features,
            config_vector,
            status,
            generation,
            queue_select,
            isr,
            queues,
            next_session: _,
            outgoing: _,
        } = self;
        let save = |(index, queue): (usize, &QueueRegisters)| {
            let QueueRegisters { ring, vector, enabled, session: _ } = *queue;
            let progress = rings.get(index).copied().flatten();
            QueueState { ring: progress.unwrap_or(ring), vector, enabled }
        };
        VirtioPciState {
            config: config.clone(),
            msix: msix.entries().to_vec(),
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            driver_features: *driver_features,
            config_vector: *config_vector,
            status: *status,
            generation: *generation,
            queue_select: *queue_select,
            isr: *isr,
            queues: queues.iter().enumerate().map(save).collect(),
            device,
        }
    }

    /// Takes over a sound state.
    pub fn restore(&mut self, saved: VirtioPciState) -> Result<(), String> {
        let VirtioPciState {
            config,
            msix,
            device_feature_select,
            driver_feature_select,
            driver_features,
            config_vector,
            status,
            generation,
            queue_select,
            isr,
            queues,
            device: _,
        } = saved;
        self.config.restore(&config)?;
        self.msix = MsixTable::restored(msix);
        self.device_feature_select = device_feature_select;
        self.driver_feature_select = driver_feature_select;
        self.driver_features = driver_features;
        self.config_vector = config_vector;
        self.status = status;
        self.generation = generation;
        self.queue_select = queue_select;
        self.isr = isr;
        for (queue, saved) in self.queues.iter_mut().zip(queues) {
            let QueueState { ring, vector, enabled } = saved;
            self.next_session += 1;
            *queue = QueueRegisters { ring, vector, enabled, session: self.next_session };
        }
        Ok(())
    }
}
