//! Bits of the tables (qcow2 specification, "Feature bits", "Cluster mapping", "Extended L2 entries").

/// Incompatible features.
pub(super) mod incompatible {
    /// Refcounts may be wrong.
    pub const DIRTY: u64 = 1;
    /// Some metadata are known to be wrong.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data are in another file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression type field says another method than deflate.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries have 16 bytes and map sub-clusters.
    pub const EXTENDED_L2: u64 = 1 << 4;
    /// All of these.
    pub const KNOWN: u64 = 0x1f;
}

/// Compatible features.
pub(super) mod compatible {
    /// Refcounts are written late, under the dirty bit.
    pub const LAZY_REFCOUNTS: u64 = 1;
}

/// Features that a program that does not know them has to clear when it writes.
pub(super) mod autoclear {
    /// The bitmaps extension is consistent.
    pub const BITMAPS: u64 = 1;
    /// The external data file is a raw image of the disk.
    pub const RAW_DATA: u64 = 1 << 1;
    /// All of these.
    pub const KNOWN: u64 = 3;
}

/// The refcount of what the entry points to is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
/// The L2 entry is a compressed cluster's descriptor.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros (version 3, standard entries).
pub(super) const ZERO: u64 = 1;
/// Host cluster offset in L1 and L2 entries.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry that have no meaning.
pub(super) const L1_RESERVED: u64 = !(COPIED | OFFSET);
/// Bits of a standard descriptor that have no meaning.
pub(super) const L2_RESERVED: u64 = !(COPIED | COMPRESSED | OFFSET | ZERO);

/// Sizes that follow from the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub cluster_bits: u32,
    pub extended: bool,
    pub version: u32,
    pub external: bool,
}

impl Geometry {
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }
    /// 8-byte words of an L2 entry.
    pub fn words(&self) -> usize {
        if self.extended { 2 } else { 1 }
    }
    pub fn l2_entries(&self) -> u64 {
        self.cluster() / 8 / self.words() as u64
    }
    pub fn l2_span_bits(&self) -> u32 {
        self.cluster_bits + self.l2_entries().trailing_zeros()
    }
    pub fn subs(&self) -> u64 {
        if self.extended { 32 } else { 1 }
    }
    pub fn sub_size(&self) -> u64 {
        self.cluster() / self.subs()
    }
    pub fn l1_index(&self, offset: u64) -> usize {
        (offset >> self.l2_span_bits()) as usize
    }
    pub fn l2_index(&self, offset: u64) -> usize {
        ((offset >> self.cluster_bits) & (self.l2_entries() - 1)) as usize
    }
    pub fn in_cluster(&self, offset: u64) -> u64 {
        offset & (self.cluster() - 1)
    }
    /// Start of compressed data and its length up to the end of its last sector.
    pub fn compressed(&self, entry: u64) -> (u64, u64) {
        let bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> bits;
        (offset, (sectors + 1) * 512 - offset % 512)
    }
    /// Descriptor of compressed data.
    pub fn compressed_entry(&self, offset: u64, len: u64) -> u64 {
        let bits = 62 - (self.cluster_bits - 8);
        let sectors = (offset % 512 + len).div_ceil(512).saturating_sub(1);
        COMPRESSED | (sectors << bits) | offset
    }
}

/// One L2 entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub word: u64,
    /// Sub-clusters: low half allocated, high half zero. For a standard entry, always 0.
    pub bitmap: u64,
}

/// What a sub-cluster (or a cluster that has none) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The backing file decides.
    Unallocated,
    Zero,
    Data,
    Compressed,
}

impl Entry {
    pub fn is_compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }
    pub fn is_copied(self) -> bool {
        self.word & COPIED != 0
    }
    /// Host cluster, whether or not all of it is in use.
    pub fn host(self, geometry: &Geometry) -> Option<u64> {
        let offset = self.word & OFFSET;
        if self.is_compressed() || (offset == 0 && !(geometry.external && self.is_copied())) {
            return None;
        }
        Some(offset)
    }
    pub fn state(self, geometry: &Geometry, sub: u64) -> State {
        if self.is_compressed() {
            return State::Compressed;
        }
        if geometry.extended {
            if self.bitmap & (1 << (32 + sub)) != 0 {
                return State::Zero;
            }
            return if self.bitmap & (1 << sub) != 0 { State::Data } else { State::Unallocated };
        }
        if geometry.version >= 3 && self.word & ZERO != 0 {
            return State::Zero;
        }
        if self.host(geometry).is_some() { State::Data } else { State::Unallocated }
    }
    /// What contradicts the specification, if anything.
    pub fn problem(self, geometry: &Geometry) -> Option<String> {
        if self.is_compressed() {
            if geometry.external {
                return Some("is compressed, in an image with an external data file".to_owned());
            }
            return None;
        }
        let offset = self.word & OFFSET;
        if !offset.is_multiple_of(geometry.cluster()) {
            return Some(format!("points to {offset:#x}, not the start of a cluster"));
        }
        let zero_flag = self.word & ZERO != 0 && (geometry.version < 3 || geometry.extended);
        if self.word & L2_RESERVED != 0 || zero_flag {
            return Some(format!("is {:#x}, with reserved bits set", self.word));
        }
        if geometry.extended {
            let (allocated, zero) = (self.bitmap as u32, (self.bitmap >> 32) as u32);
            if allocated & zero != 0 {
                return Some("has sub-clusters both allocated and zero".to_owned());
            }
            if allocated != 0 && self.host(geometry).is_none() {
                return Some("has allocated sub-clusters but no cluster".to_owned());
            }
        }
        None
    }
    /// The entry of an owned host cluster with these sub-clusters in it.
    pub fn owned(host: u64, bitmap: u64) -> Entry {
        Entry { word: host | COPIED, bitmap }
    }
}
