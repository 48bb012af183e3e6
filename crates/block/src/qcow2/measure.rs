//! How large a file becomes.

use super::header::Header;

/// Bytes a file needs for a disk, and how large it is when all of the disk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Measure {
    /// With the data that are there now.
    pub required: u64,
    /// With everything written.
    pub fully_allocated: u64,
}

/// For a header without refcount table and L1 table yet, and a number of bytes in clusters with data.
pub(super) fn measure(header: &Header, data: u64) -> Measure {
    let cluster = header.cluster_size();
    let size = header.size.next_multiple_of(cluster);
    let entry = if header.extended_l2() { 16 } else { 8 };
    let l2_entries = (size / cluster).next_multiple_of(cluster / entry);
    let l1_entries = (l2_entries * entry / cluster).next_multiple_of(cluster / 8);
    let tables = cluster + l2_entries * entry + l1_entries * 8;
    let clusters = (tables + size) / cluster;
    let per_block = cluster * 8 >> header.refcount_order;
    let (mut blocks, mut table) = (0, 0);
    loop {
        let needed = (clusters + blocks + table).div_ceil(per_block);
        let needed_table = needed.div_ceil(cluster / 8);
        if (needed, needed_table) == (blocks, table) {
            break;
        }
        (blocks, table) = (needed, needed_table);
    }
    let fully_allocated = tables + (blocks + table) * cluster + size;
    Measure { required: fully_allocated - size + data, fully_allocated }
}
