//! Layout of the transport: one BAR, six pages (virtio 4.1.4; PCI Local Bus 3.0, 6.8.2 for MSI-X).

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

/// The common configuration structure (virtio 4.1.4.3).
pub mod common {
    /// device_feature_select.
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    /// device_feature.
    pub const DEVICE_FEATURE: u64 = 0x04;
    /// driver_feature_select.
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    /// driver_feature.
    pub const DRIVER_FEATURE: u64 = 0x0c;
    /// config_msix_vector.
    pub const CONFIG_VECTOR: u64 = 0x10;
    /// num_queues.
    pub const NUM_QUEUES: u64 = 0x12;
    /// device_status.
    pub const STATUS: u64 = 0x14;
    /// config_generation.
    pub const GENERATION: u64 = 0x15;
    /// queue_select.
    pub const QUEUE_SELECT: u64 = 0x16;
    /// queue_size.
    pub const QUEUE_SIZE: u64 = 0x18;
    /// queue_msix_vector.
    pub const QUEUE_VECTOR: u64 = 0x1a;
    /// queue_enable.
    pub const QUEUE_ENABLE: u64 = 0x1c;
    /// queue_notify_off.
    pub const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    /// queue_desc.
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    /// queue_driver.
    pub const QUEUE_DRIVER: u64 = 0x28;
    /// queue_device.
    pub const QUEUE_DEVICE: u64 = 0x30;
    /// queue_notify_data.
    pub const QUEUE_NOTIFY_DATA: u64 = 0x38;
    /// queue_reset.
    pub const QUEUE_RESET: u64 = 0x3a;
    /// Its length.
    pub const LEN: u64 = 0x3c;
}

/// Device status (virtio 2.1).
pub mod status {
    /// ACKNOWLEDGE.
    pub const ACKNOWLEDGE: u8 = 1;
    /// DRIVER.
    pub const DRIVER: u8 = 2;
    /// DRIVER_OK.
    pub const DRIVER_OK: u8 = 4;
    /// FEATURES_OK.
    pub const FEATURES_OK: u8 = 8;
    /// DEVICE_NEEDS_RESET.
    pub const NEEDS_RESET: u8 = 64;
}

/// ISR status (virtio 4.1.4.5).
pub mod isr {
    /// A queue was used.
    pub const QUEUE: u8 = 1;
    /// The configuration or the status changed.
    pub const CONFIG: u8 = 2;
}

/// Features of the transport (virtio 6). VIRTIO_F_ACCESS_PLATFORM is not offered: devices address guest-physical
/// memory. VIRTIO_F_IN_ORDER is not offered: it would forbid requests that overtake each other for ever.
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
    /// VIRTIO_F_RING_PACKED.
    pub const RING_PACKED: u64 = 1 << 34;
    /// VIRTIO_F_RING_RESET.
    pub const RING_RESET: u64 = 1 << 40;
}
