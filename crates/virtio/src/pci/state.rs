//! What is saved of a transport.

use super::bits::NO_VECTOR;
use super::msix::MsixEntry;
use crate::queue::RingState;
use device::Record;
use device::pci::ConfigSpace;
use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "virtio-pci";
/// Version of its layout.
pub const VERSION: u32 = 2;

/// One queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Place, and progress.
    pub ring: RingState,
    /// MSI-X vector.
    pub vector: u16,
    /// Enabled by the driver.
    pub enabled: bool,
}

/// The transport and the device behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    /// Configuration space.
    pub config: ConfigSpace,
    /// MSI-X vectors.
    pub msix: Vec<MsixEntry>,
    /// Which half of the device's features is shown.
    pub device_feature_select: u32,
    /// Which half of the driver's features is written.
    pub driver_feature_select: u32,
    /// What the driver accepted.
    pub driver_features: u64,
    /// Vector of configuration changes.
    pub config_vector: u16,
    /// Device status.
    pub status: u8,
    /// Configuration generation.
    pub generation: u8,
    /// Selected queue.
    pub queue_select: u16,
    /// ISR status.
    pub isr: u8,
    /// Queues.
    pub queues: Vec<QueueState>,
    /// The device type's own state.
    pub device: Record,
}

impl VirtioPciState {
    /// Whether a function with these queues, vectors and features can be in this state.
    pub fn is_sound(&self, sizes: &[u16], vectors: usize, offered: u64) -> bool {
        let vector_fits = |vector: u16| vector == NO_VECTOR || usize::from(vector) < vectors;
        let queue_fits = |(queue, max): (&QueueState, &u16)| {
            vector_fits(queue.vector) && (!queue.enabled || queue.ring.is_sound(*max))
        };
        self.queues.len() == sizes.len()
            && self.msix.len() == vectors
            && vector_fits(self.config_vector)
            && self.queues.iter().zip(sizes).all(queue_fits)
            && (self.status & super::bits::status::FEATURES_OK == 0 || self.driver_features & !offered == 0)
    }
}
