//! Paravirtual devices after "Virtual I/O Device (VIRTIO) Version 1.2"; sections are cited as "virtio 2.7".
//!
//! A [`VirtioDevice`] is what a device type does with requests; [`VirtioPci`] is the transport that every type
//! shares: registers, MSI-X, feature negotiation, and worker threads that serve the queues, so that no vCPU waits
//! for a disk. [`queue`] reads and writes rings, and believes nothing they say.

pub mod blk;
pub mod console;
mod device_type;
pub mod entropy;
pub mod exercise;
pub mod pci;
pub mod queue;

pub use device_type::{BATCH_LEN, Batch, Transport, VirtioDevice};
pub use pci::{PciWiring, VirtioPci};
