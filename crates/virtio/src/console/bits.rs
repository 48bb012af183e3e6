//! Numbers of the console device (virtio 5.3).

/// Features (virtio 5.3.3).
pub mod feature {
    /// VIRTIO_CONSOLE_F_SIZE.
    pub const SIZE: u64 = 1 << 0;
    /// VIRTIO_CONSOLE_F_MULTIPORT.
    pub const MULTIPORT: u64 = 1 << 1;
    /// VIRTIO_CONSOLE_F_EMERG_WRITE.
    pub const EMERGENCY_WRITE: u64 = 1 << 2;
}

/// Offsets in struct virtio_console_config (virtio 5.3.4).
pub mod config {
    /// cols.
    pub const COLUMNS: usize = 0;
    /// rows.
    pub const ROWS: usize = 2;
    /// max_nr_ports.
    pub const PORTS: usize = 4;
    /// emerg_wr.
    pub const EMERGENCY_WRITE: usize = 8;
    /// Its length.
    pub const LEN: usize = 12;
}

/// Control messages (virtio 5.3.6.2).
pub mod event {
    /// VIRTIO_CONSOLE_DEVICE_READY.
    pub const DEVICE_READY: u16 = 0;
    /// VIRTIO_CONSOLE_DEVICE_ADD.
    pub const DEVICE_ADD: u16 = 1;
    /// VIRTIO_CONSOLE_PORT_READY.
    pub const PORT_READY: u16 = 3;
    /// VIRTIO_CONSOLE_CONSOLE_PORT.
    pub const CONSOLE_PORT: u16 = 4;
    /// VIRTIO_CONSOLE_RESIZE.
    pub const RESIZE: u16 = 5;
    /// VIRTIO_CONSOLE_PORT_OPEN.
    pub const PORT_OPEN: u16 = 6;
    /// VIRTIO_CONSOLE_PORT_NAME.
    pub const PORT_NAME: u16 = 7;
}

/// Bytes of a control message without what follows it: id, event, value.
pub const CONTROL_LEN: usize = 8;
/// Receive queue of port 0.
pub const RECEIVE: usize = 0;
/// Transmit queue of port 0.
pub const TRANSMIT: usize = 1;
/// Control messages to the driver.
pub const CONTROL_RECEIVE: usize = 2;
/// Control messages from the driver.
pub const CONTROL_TRANSMIT: usize = 3;
/// Entries of a queue.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes of input that wait for the guest at most.
pub const INPUT_LEN: usize = 4096;
