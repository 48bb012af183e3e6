//! One execution: a small valid image of a format, changed by a program, or a whole file; then everything that can be
//! done with it. Whatever the file says, there is success or an error: no panic, no loop, no huge allocation.
//!
//! A program is two bytes, the seed and the way it is used, and then changes ([`program`]).

#[path = "allocations.rs"]
mod allocations;
#[path = "checksums.rs"]
mod checksums;
#[path = "composed_dmg.rs"]
mod composed_dmg;
#[path = "dmg.rs"]
mod dmg;
#[path = "exercise.rs"]
mod exercise;
#[cfg(test)]
#[path = "huge.rs"]
pub mod huge;
#[path = "luks.rs"]
mod luks;
#[path = "mapped.rs"]
mod mapped;
#[path = "memory.rs"]
mod memory;
#[path = "program.rs"]
mod program;
#[path = "qcow2.rs"]
mod qcow2;
#[path = "text.rs"]
mod text;
#[path = "vhdx.rs"]
mod vhdx;
#[path = "vmdk.rs"]
mod vmdk;

use exercise::{Around, Use, exercise};
use memory::Memory;
use program::Seed;
use std::collections::HashMap;
#[cfg(test)]
use std::sync::Arc;
use std::sync::LazyLock;

/// Every format that is opened from one file, in the order of their names.
pub const FORMATS: [&str; 9] = ["dmg", "luks1", "luks2", "qcow2", "raw", "vdi", "vhd", "vhdx", "vmdk"];

static SEEDS: LazyLock<HashMap<&str, LazyLock<Vec<Seed>>>> = LazyLock::new(|| {
    let all: [(&str, LazyLock<Vec<Seed>>); FORMATS.len()] = [
        ("dmg", LazyLock::new(dmg::seeds)),
        ("luks1", LazyLock::new(luks::first)),
        ("luks2", LazyLock::new(luks::second)),
        ("qcow2", LazyLock::new(qcow2::seeds)),
        ("raw", LazyLock::new(|| vec![Seed::new("raw", vec![7; 10_000], Vec::new())])),
        ("vdi", LazyLock::new(mapped::vdi)),
        ("vhd", LazyLock::new(mapped::vhd)),
        ("vhdx", LazyLock::new(vhdx::seeds)),
        ("vmdk", LazyLock::new(vmdk::seeds)),
    ];
    all.into_iter().collect()
});

/// Valid images of a format.
pub fn seeds(format: &str) -> &'static [Seed] {
    SEEDS.get(format).unwrap()
}

/// One execution.
pub fn run(format: &str, input: &[u8]) {
    let [which, how, program @ ..] = input else { return };
    let seeds = seeds(format);
    let seed = &seeds[usize::from(*which) % seeds.len()];
    allocations::begin();
    let file = match how >> 2 & 0b111 {
        0 => Memory::new(program.to_vec(), true),
        // Without checksums only what is in front of them is reached.
        1 => seed.changed(program, false),
        _ => seed.changed(program, true),
    };
    let around = Around::from_bits(how >> 5);
    let uses: &[Use] = match how & 3 {
        0 => &[Use::Check],
        1 => &[Use::Repair, Use::Check],
        2 => &[Use::Write],
        _ => &[Use::Read],
    };
    for what in uses {
        exercise(seed.format, &file, *what, around);
    }
}

/// Every use of images whose tables are as large as can be.
#[cfg(test)]
pub fn largest() {
    for (format, bytes, size) in [qcow2::largest(), mapped::largest_vdi()] {
        for what in [Use::Check, Use::Repair, Use::Read, Use::Write] {
            allocations::begin();
            let file = Memory::new(bytes.clone(), true);
            block::BlockBackend::resize(&*file, size).unwrap();
            assert!(exercise::open(format, &file, what, Around::from_bits(0)).is_ok(), "{format} {what:?}");
            exercise(format, &file, what, Around::from_bits(0));
        }
    }
}

/// A dmg image with the longest property list that is read.
#[cfg(test)]
pub fn largest_dmg() {
    let bytes = Arc::new(dmg::largest());
    for what in [Use::Check, Use::Read] {
        allocations::begin();
        let file = Memory::new(bytes.clone(), true);
        assert!(exercise::open("dmg", &file, what, Around::from_bits(0)).is_ok(), "{what:?}");
        exercise("dmg", &file, what, Around::from_bits(0));
    }
}

/// Bitmaps that mark more ranges than fit into memory, and that do not fit there all at once.
#[cfg(test)]
pub fn largest_bitmaps() {
    const SIZE: u64 = 128 << 30;
    let bytes = std::sync::Arc::new(qcow2::largest_bitmaps());
    for what in [Use::Read, Use::Write] {
        allocations::begin();
        let file = Memory::new(bytes.clone(), true);
        let image = exercise::open("qcow2", &file, what, Around::from_bits(0))
            .map_err(|error| block::with_causes(&error));
        let image = image.unwrap();
        let bitmaps = image.bitmaps().unwrap();
        let dirty: Vec<u64> = bitmaps.list().unwrap().iter().map(|bitmap| bitmap.dirty).collect();
        assert_eq!(dirty, [SIZE / 4, 1 << 30, 1 << 30]);
        // What is told in coarser steps covers all that is marked.
        assert_eq!(bitmaps.dirty_ranges("b0").unwrap(), vec![0..SIZE; 1]);
        assert_eq!(bitmaps.dirty_ranges("b1").unwrap(), vec![0..4 << 30; 1]);
        if what == Use::Write {
            image.write_bytes(0, &[1; 512]).unwrap();
            image.flush().unwrap();
            bitmaps.clear("b0").unwrap();
            image.resize(SIZE - (1 << 20)).unwrap();
            let dirty: Vec<u64> = bitmaps.list().unwrap().iter().map(|bitmap| bitmap.dirty).collect();
            assert_eq!(dirty, [0, 1 << 30, 1 << 30]);
        }
    }
}

/// A vmdk image of no sectors whose directory is behind all files.
#[cfg(test)]
pub fn empty_vmdk() {
    let mut bytes = seeds("vmdk")[0].bytes.to_vec();
    bytes[12..20].fill(0);
    bytes[56..64].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    let file = Memory::new(bytes, true);
    let opened = exercise::open("vmdk", &file, Use::Check, Around::from_bits(0));
    let error = opened.err().map(|error| block::with_causes(&error)).unwrap_or_default();
    assert!(error.contains("gdOffset"), "{error}");
}

/// The size of a disk when a snapshot was made is what the image says.
#[cfg(test)]
pub fn impossible_snapshot() {
    let mut bytes = seeds("qcow2")[1].bytes.to_vec();
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
    bytes[table + 48..table + 56].copy_from_slice(&(1_u64 << 63).to_be_bytes());
    allocations::begin();
    let file = Memory::new(bytes, true);
    let image = exercise::open("qcow2", &file, Use::Write, Around::from_bits(0)).unwrap();
    let error = image.snapshots().unwrap().revert("1").unwrap_err();
    assert!(block::with_causes(&error).contains("disk size of a snapshot"), "{error}");
}

/// An encrypted image whose key slots are behind all files.
#[cfg(test)]
pub fn impossible_encryption_header() {
    let encrypted = seeds("qcow2").iter().find(|seed| seed.bytes[35] == 2).unwrap();
    // The type of the extension that says where they are.
    let kind = 0x0537_be77_u32.to_be_bytes();
    let at = encrypted.bytes.windows(4).position(|bytes| bytes == kind).unwrap();
    for start in [u64::MAX, u64::MAX << 14] {
        let mut bytes = encrypted.bytes.to_vec();
        bytes[at + 8..at + 16].copy_from_slice(&start.to_be_bytes());
        bytes[at + 16..at + 24].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        let file = Memory::new(bytes, true);
        // With the passphrase.
        let opened = exercise::open("qcow2", &file, Use::Read, Around::from_bits(0b110));
        let error = opened.err().map(|error| block::with_causes(&error)).unwrap_or_default();
        assert!(error.contains("encryption header"), "{start:#x}: {error}");
    }
}

/// Opens all seeds of a format unchanged. Those that name other files are opened without them, or refused.
#[cfg(test)]
pub fn seeds_open(format: &str) {
    for (number, seed) in seeds(format).iter().enumerate() {
        let file = Memory::new(seed.bytes.clone(), true);
        // A log is replayed by who may write.
        let opened = exercise::open(seed.format, &file, Use::Read, Around::from_bits(0b110))
            .or_else(|_| exercise::open(seed.format, &file, Use::Write, Around::from_bits(0b100)));
        match opened {
            Ok(image) => assert!(image.size() > 0 && image.info().is_ok()),
            Err(block::BlockError::Reference { .. }) => {}
            Err(error) => panic!("{format} {number}: {}", block::with_causes(&error)),
        }
    }
}
