//! Layout of the transport: one BAR, five pages (virtio 4.1.4; PCI Local Bus 3.0, 6.8.2 for MSI-X).

/// Vendor of all virtio functions.
pub const VENDOR: u16 = 0x1af4;
/// Device ID of type `n` is this plus `n` (virtio 4.1.2.1).
pub const DEVICE_BASE: u16 = 0x1040;
/// The BAR's size.
pub const BAR_SIZE: u64 = 0x8000;
/// Common configuration.
pub const COMMON: u64 = 0x0000;
/// ISR status.
pub const ISR: u64 = 0x1000;
/// Device-specific configuration.
pub const DEVICE: u64 = 0x2000;
/// Notification, four bytes a queue.
pub const NOTIFY: u64 = 0x3000;
/// MSI-X table.
pub const MSIX_TABLE: u64 = 0x4000;
/// MSI-X pending bits.
pub const MSIX_PENDING: u64 = 0x5000;
/// Bytes a queue in the notification page.
pub const NOTIFY_MULTIPLIER: u32 = 4;
/// VIRTIO_MSI_NO_VECTOR.
pub const NO_VECTOR: u16 = 0xffff;

/// Device status (virtio 2.1).
pub mod status {
    /// FEATURES_OK.
    pub const FEATURES_OK: u8 = 8;
    /// DRIVER_OK.
    pub const DRIVER_OK: u8 = 4;
    /// DEVICE_NEEDS_RESET.
    pub const NEEDS_RESET: u8 = 64;
}

/// Features of the transport (virtio 6).
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
}
