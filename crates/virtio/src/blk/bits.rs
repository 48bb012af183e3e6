//! Numbers of the block device (virtio 5.2).

/// Features (virtio 5.2.3).
pub mod feature {
    /// VIRTIO_BLK_F_SIZE_MAX.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// VIRTIO_BLK_F_SEG_MAX.
    pub const SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_RO.
    pub const READ_ONLY: u64 = 1 << 5;
    /// VIRTIO_BLK_F_BLK_SIZE.
    pub const BLOCK_SIZE: u64 = 1 << 6;
    /// VIRTIO_BLK_F_FLUSH.
    pub const FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_TOPOLOGY.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// VIRTIO_BLK_F_CONFIG_WCE.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// VIRTIO_BLK_F_MQ.
    pub const MULTI_QUEUE: u64 = 1 << 12;
    /// VIRTIO_BLK_F_DISCARD.
    pub const DISCARD: u64 = 1 << 13;
    /// VIRTIO_BLK_F_WRITE_ZEROES.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Offsets in struct virtio_blk_config (virtio 5.2.4).
pub mod config {
    /// capacity, in sectors.
    pub const CAPACITY: usize = 0;
    /// size_max.
    pub const SIZE_MAX: usize = 8;
    /// seg_max.
    pub const SEG_MAX: usize = 12;
    /// blk_size.
    pub const BLOCK_SIZE: usize = 20;
    /// topology.physical_block_exp.
    pub const PHYSICAL_BLOCK_EXPONENT: usize = 24;
    /// topology.min_io_size.
    pub const MIN_IO_SIZE: usize = 26;
    /// writeback.
    pub const WRITEBACK: usize = 32;
    /// num_queues.
    pub const NUM_QUEUES: usize = 34;
    /// max_discard_sectors.
    pub const DISCARD_SECTORS: usize = 36;
    /// max_discard_seg.
    pub const DISCARD_SEGMENTS: usize = 40;
    /// discard_sector_alignment.
    pub const DISCARD_ALIGNMENT: usize = 44;
    /// max_write_zeroes_sectors.
    pub const ZEROES_SECTORS: usize = 48;
    /// max_write_zeroes_seg.
    pub const ZEROES_SEGMENTS: usize = 52;
    /// write_zeroes_may_unmap.
    pub const ZEROES_UNMAP: usize = 56;
    /// Its length, up to the secure-erase fields.
    pub const LEN: usize = 60;
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
    /// The unmap flag of a range.
    pub const FLAG_UNMAP: u32 = 1;
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
/// Longest range of a discard or write-zeroes request, in sectors: 2 GiB.
pub const RANGE_SECTORS_MAX: u32 = 1 << 22;
/// Ranges of one such request.
pub const RANGES_MAX: u32 = 16;
/// Entries of a queue.
pub const QUEUE_SIZE: u16 = 256;
/// Queues at most.
pub const QUEUES_MAX: u16 = 16;
/// Largest buffer, in bytes.
pub const BUFFER_MAX: u32 = 4 << 20;
/// Sectors of a physical block, as a power of two: 4 KiB, what file systems and disks work in.
pub const PHYSICAL_BLOCK_EXPONENT: u8 = 3;
