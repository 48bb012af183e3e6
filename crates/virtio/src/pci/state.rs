//! What is saved of a transport.

use super::msix::MsixTable;
use crate::queue::SplitQueueState;
use device::pci::ConfigSpace;
use serde::{Deserialize, Serialize};

/// Registers of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// Place, and progress at the time of saving.
    pub ring: SplitQueueState,
    /// MSI-X vector.
    pub vector: u16,
    /// Enabled by the driver.
    pub enabled: bool,
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// Configuration space.
    pub config: ConfigSpace,
    /// MSI-X.
    pub msix: MsixTable,
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
    /// ISR status: bit 0 queue, bit 1 configuration.
    pub isr: u8,
    /// Queues.
    pub queues: Vec<QueueRegisters>,
}
