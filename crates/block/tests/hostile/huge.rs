//! Valid images whose tables are as large as they can be, in files on a disk: what is done with them takes 64 MiB at most.

use super::allocations;
use block::{CreateOptions, DiskImage, OpenOptions, Repair, create, open};
use std::path::Path;
use std::sync::Arc;

fn made(path: &Path, format: &str, size: u64, options: &[(&str, &str)]) -> Arc<dyn DiskImage> {
    allocations::begin();
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    create(path, format, CreateOptions { size, options, ..CreateOptions::default() }).unwrap();
    allocations::begin();
    open(path, format, &OpenOptions::default()).unwrap()
}

/// Whether a sector holds nothing but this byte.
fn holds(image: &dyn DiskImage, at: u64, byte: u8) -> bool {
    let mut sector = [0; 512];
    image.read_bytes(at, &mut sector).unwrap();
    sector == [byte; 512]
}

fn assert_clean(image: &dyn DiskImage) {
    let report = image.check(Repair::Nothing).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

/// Growing an image of nearly 16 TiB: its table of 64 MiB gets another place, which the first blocks leave.
pub fn growing_vdi() {
    const FULL: u64 = 16 << 40;
    for kind in ["off", "on"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.vdi");
        let size = FULL - (1 << 30);
        // A fixed image has as many bytes as the disk, and a file system may not have room for so long a file.
        let size = if kind == "on" { 8 << 30 } else { size };
        let image = made(&path, "vdi", size, &[("static", kind)]);
        // More blocks than the table moves away.
        let written: Vec<u64> = (0..80).map(|n| (n * (size / 80)) & !0xfff).chain([size - 512]).collect();
        for (value, at) in (1..).zip(&written) {
            image.write_bytes(*at, &[value; 512]).unwrap();
        }
        image.flush().unwrap();
        let grown = if kind == "on" { size * 2 } else { FULL };
        image.resize(grown).unwrap();
        image.write_bytes(grown - 512, &[99; 512]).unwrap();
        drop(image);
        allocations::begin();
        let image = open(&path, "vdi", &OpenOptions::default()).unwrap();
        assert_eq!(image.size(), grown);
        for (value, at) in (1..).zip(&written) {
            assert!(holds(&*image, *at, value), "{at:#x}");
        }
        assert!(holds(&*image, grown - 512, 99) && holds(&*image, size + 4096, 0));
        assert_clean(&*image);
    }
}

/// Snapshots of a disk whose L1 table has 32 MiB; before, it is made as large as that.
pub fn snapshots_of_the_largest_table() {
    const SIZE: u64 = 128 << 30;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let image = made(&path, "qcow2", SIZE / 2 + (1 << 20), &[("cluster_size", "512")]);
    image.resize(SIZE).unwrap();
    // An entry of the table in each page of 4 KiB.
    let places: Vec<u64> = (0..SIZE).step_by(512 * (32 << 10)).collect();
    let write = |value: u8| places.iter().for_each(|at| image.write_bytes(*at, &[value; 512]).unwrap());
    let are = |image: &dyn DiskImage, value: u8| places.iter().all(|at| holds(image, *at, value));
    write(1);
    let snapshots = image.snapshots().unwrap();
    snapshots.create("one").unwrap();
    write(2);
    snapshots.create("two").unwrap();
    write(3);
    snapshots.revert("one").unwrap();
    assert!(are(&*image, 1));
    assert_clean(&*image);
    snapshots.revert("two").unwrap();
    snapshots.delete("one").unwrap();
    assert!(are(&*image, 2));
    image.flush().unwrap();
    drop(image);
    allocations::begin();
    let image = open(&path, "qcow2", &OpenOptions::default()).unwrap();
    assert!(are(&*image, 2));
    assert_clean(&*image);
    image.snapshots().unwrap().delete("two").unwrap();
    image.discard(0, SIZE).unwrap();
    assert!(are(&*image, 0));
    image.resize(1 << 30).unwrap();
    assert_clean(&*image);
}
