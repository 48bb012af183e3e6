//! Images of qcow2: header, extensions, all tables, compressed clusters.

use super::luks;
use super::mapped::made;
use super::program::Seed;
use std::ops::Range;
use std::sync::Arc;

pub fn seeds() -> Vec<Seed> {
    let kinds: [&[(&str, &str)]; 6] = [
        &[("cluster_size", "512"), ("compat", "0.10")],
        &[("cluster_size", "512")],
        &[("cluster_size", "1024"), ("refcount_bits", "1"), ("lazy_refcounts", "on")],
        &[("cluster_size", "4096"), ("compression_type", "zstd"), ("refcount_bits", "64")],
        &[("cluster_size", "16384"), ("extended_l2", "on")],
        &[
            ("cluster_size", "4096"),
            ("encrypt.format", "luks"),
            ("encrypt.cipher-alg", "aes-128"),
            ("encrypt.iter-time", "1"),
        ],
    ];
    let mut seeds: Vec<Seed> = kinds.iter().map(|kind| of(kind)).collect();
    // An external data file, which nobody may open.
    let bytes = made("qcow2", 1 << 16, &[("data_file", "other.raw"), ("cluster_size", "4096")], |image| {
        image.write_bytes(0, &[1; 2500]).unwrap();
    });
    let fields = tables(&bytes);
    seeds.push(Seed::new("qcow2", bytes, fields));
    seeds
}

fn of(kind: &[(&str, &str)]) -> Seed {
    let encrypted = kind.iter().any(|(name, _)| *name == "encrypt.format");
    let mut bytes = made("qcow2", 1 << 16, kind, |image| {
        let cluster = image.cluster_size();
        if !encrypted {
            image.write_compressed(cluster * 3, &vec![5; cluster as usize]).unwrap();
        }
        image.write_bytes(0, &[1; 2500]).unwrap();
        if !kind.contains(&("refcount_bits", "1")) {
            image.snapshots().unwrap().create("s").unwrap();
        }
        if let Some(bitmaps) = image.bitmaps() {
            bitmaps.add("b", Some(4096), true).unwrap();
        }
        image.write_bytes(1000, &[2; 700]).unwrap();
    });
    if encrypted {
        // The same content with a key that is cheap to derive.
        let at = bytes.windows(6).position(|bytes| bytes == b"LUKS\xba\xbe").unwrap();
        let payload = bytes[at + 104..at + 108].to_vec();
        let mut header = luks::version_1(luks::XTS);
        header[104..108].copy_from_slice(&payload);
        bytes[at..at + header.len()].copy_from_slice(&header);
    }
    let fields = tables(&bytes);
    Seed::new("qcow2", bytes, fields)
}

/// The header, twice as often as anything else, and whatever clusters the header and the first level of tables lead to.
fn tables(bytes: &[u8]) -> Vec<Range<usize>> {
    let u64_at = |at: usize| bytes.get(at..at + 8).map_or(0, |n| u64::from_be_bytes(n.try_into().unwrap()));
    let cluster = 1_usize << bytes[23];
    let mut fields = vec![0..104, 0..112, 104..512];
    let mut add = |at: u64| {
        let start = (at & 0x00ff_ffff_ffff_fe00) as usize;
        if start != 0 && start < bytes.len() {
            fields.push(start..(start + cluster.min(4096)).min(bytes.len()));
        }
    };
    // The first-level table, the table of reference counts, the snapshots' and the bitmaps'.
    for at in [40, 48, 64] {
        add(u64_at(at));
    }
    for table in [u64_at(40), u64_at(48)] {
        (0..4).for_each(|n| add(u64_at(table as usize + 8 * n)));
    }
    let bitmaps = bytes[..512].windows(4).position(|magic| magic == [0x23, 0x85, 0x28, 0x75]);
    if let Some(at) = bitmaps {
        add(u64_at(at + 24));
        let directory = u64_at(at + 24) as usize;
        add(u64_at(directory));
    }
    let keys = bytes.windows(6).position(|magic| magic == b"LUKS\xba\xbe");
    fields.extend(keys.map(|at| at..at + 592));
    fields
}

/// The largest tables, and one block of refcounts, for 16 million clusters, that all entries lead to; the file's size.
#[cfg(test)]
pub fn largest() -> (&'static str, Arc<Vec<u8>>, u64) {
    const CLUSTER: u64 = 2 << 20;
    let (table, block, l1) = (CLUSTER, 5 * CLUSTER, 6 * CLUSTER);
    let mut bytes = vec![0; block as usize];
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &21_u32.to_be_bytes());
    put(24, &(1_u64 << 50).to_be_bytes());
    put(36, &(4_u32 << 20).to_be_bytes());
    put(40, &l1.to_be_bytes());
    put(48, &table.to_be_bytes());
    put(56, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    (table as usize..block as usize).step_by(8).for_each(|at| put(at, &block.to_be_bytes()));
    ("qcow2", Arc::new(bytes), l1 + (32 << 20))
}

/// Three bitmaps of the largest size, all of whose parts are the same cluster, in which every fourth bit is set; of the
/// last two, the first 16 parts.
#[cfg(test)]
pub fn largest_bitmaps() -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    let mut bytes = made("qcow2", 128 << 30, &[], |image| {
        for name in ["b0", "b1", "b2"] {
            image.bitmaps().unwrap().add(name, Some(512), name == "b2").unwrap();
        }
    });
    bytes.resize(bytes.len().next_multiple_of(CLUSTER), 0);
    let bits = bytes.len() as u64;
    bytes.resize(bytes.len() + CLUSTER, 0x11);
    let u64_at = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    // It is referred to as often as anybody may want.
    let refcounts = u64_at(&bytes, u64_at(&bytes, 48)) + 2 * (bits as usize / CLUSTER);
    bytes[refcounts..refcounts + 2].copy_from_slice(&0x7000_u16.to_be_bytes());
    let extension = bytes[..512].windows(4).position(|magic| magic == [0x23, 0x85, 0x28, 0x75]).unwrap();
    let mut row = u64_at(&bytes, extension + 24);
    for parts in [(32 << 20) / CLUSTER, 16, 16] {
        let table = u64_at(&bytes, row);
        for entry in 0..parts {
            bytes[table + 8 * entry..table + 8 * entry + 8].copy_from_slice(&bits.to_be_bytes());
        }
        row += 24 + 8;
    }
    bytes
}
