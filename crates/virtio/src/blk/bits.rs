//! Numbers of the block device (virtio 5.2).

/// Features (virtio 5.2.3).
pub mod feature {
    /// VIRTIO_BLK_F_SEG_MAX.
    pub const SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_RO.
    pub const READ_ONLY: u64 = 1 << 5;
    /// VIRTIO_BLK_F_BLK_SIZE.
    pub const BLOCK_SIZE: u64 = 1 << 6;
    /// VIRTIO_BLK_F_FLUSH.
    pub const FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_DISCARD.
    pub const DISCARD: u64 = 1 << 13;
    /// VIRTIO_BLK_F_WRITE_ZEROES.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (virtio 5.2.6).
pub mod request {
    /// VIRTIO_BLK_T_IN.
    pub const READ: u32 = 0;
    /// VIRTIO_BLK_T_OUT.
    pub const WRITE: u32 = 1;
    /// VIRTIO_BLK_T_FLUSH.
    pub const FLUSH: u32 = 4;
    /// VIRTIO_BLK_T_GET_ID.
    pub const GET_ID: u32 = 8;
    /// VIRTIO_BLK_T_DISCARD.
    pub const DISCARD: u32 = 11;
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Request status.
pub mod status {
    /// VIRTIO_BLK_S_OK.
    pub const OK: u8 = 0;
    /// VIRTIO_BLK_S_IOERR.
    pub const IO_ERROR: u8 = 1;
    /// VIRTIO_BLK_S_UNSUPP.
    pub const UNSUPPORTED: u8 = 2;
}

/// Bytes of a disk's identity.
pub const ID_LEN: usize = 20;
/// Largest discard or write-zeroes request, in sectors.
pub const RANGE_SECTORS_MAX: u32 = 1 << 22;
/// Entries of a queue.
pub const QUEUE_SIZE: u16 = 256;
