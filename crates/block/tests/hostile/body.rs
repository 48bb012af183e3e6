//! Images with wrong metadata: whatever a file says, opening, checking, reading, writing and repairing it end with
//! success or an error, without a panic, a loop or a huge allocation.

#[path = "memory.rs"]
mod memory;

use block::{CreateOptions, DiskImage, OpenOptions, Repair, create, driver, open};
use memory::Memory;
use std::path::Path;
use std::sync::LazyLock;

/// Small images in order, of every kind; programs change bytes of them.
static IMAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let kinds: [&[(&str, &str)]; 5] = [
        &[("cluster_size", "512"), ("compat", "0.10")],
        &[("cluster_size", "512")],
        &[("cluster_size", "1024"), ("refcount_bits", "1"), ("lazy_refcounts", "on")],
        &[("cluster_size", "4096"), ("compression_type", "zstd"), ("refcount_bits", "64")],
        &[("cluster_size", "16384"), ("extended_l2", "on")],
    ];
    kinds.iter().map(|kind| image_of(kind)).collect()
});

fn image_of(kind: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("seed.qcow2");
    let options = kind.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    create(&path, "qcow2", CreateOptions { size: 1 << 18, options, ..CreateOptions::default() }).unwrap();
    let image = open(&path, "qcow2", &OpenOptions::default()).unwrap();
    let cluster = image.cluster_size();
    image.write_compressed(cluster * 3, &vec![5; cluster as usize]).unwrap();
    image.write_bytes(0, &[1; 5000]).unwrap();
    if kind.iter().all(|(name, value)| (*name, *value) != ("refcount_bits", "1")) {
        image.snapshots().unwrap().create("s").unwrap();
    }
    if let Some(bitmaps) = image.bitmaps() {
        bitmaps.add("b", Some(4096), true).unwrap();
    }
    image.write_bytes(1000, &[2; 3000]).unwrap();
    drop(image);
    std::fs::read(&path).unwrap()
}

/// One execution: the first byte chooses an image, each 11 of the rest change up to 8 bytes of it.
pub fn run(program: &[u8]) {
    let Some((kind, patches)) = program.split_first() else { return };
    let mut bytes = IMAGES[*kind as usize % IMAGES.len()].clone();
    for patch in patches.as_chunks::<11>().0.iter().take(16) {
        // Half of the changes go to the header, the others anywhere.
        let place = usize::from(u16::from_le_bytes([patch[0], patch[1]]));
        let at = if patch[2] & 0x80 != 0 { place % 256 } else { place * 8 % bytes.len() };
        let len = usize::from(patch[2] & 7) + 1;
        for (to, from) in bytes.iter_mut().skip(at).zip(&patch[3..3 + len]) {
            *to = *from;
        }
    }
    let file = Memory::new(bytes, true);
    for (for_check, read_only) in [(true, true), (false, false), (true, false)] {
        let options = OpenOptions { for_check, read_only, ..OpenOptions::default() };
        if let Ok(image) = driver("qcow2").unwrap().open(file.clone(), Path::new("hostile"), &options) {
            exercise(&*image, for_check, read_only);
        }
    }
}

/// Results do not matter.
fn exercise(image: &dyn DiskImage, for_check: bool, read_only: bool) {
    let mut buffer = vec![0; 1 << 16];
    let size = image.size();
    for at in [0, 4096, size / 2, size.saturating_sub(1 << 16)] {
        let _ = image.read_bytes(at, &mut buffer);
        let _ = image.block_status(at, 1 << 16);
    }
    let _ = image.info();
    if for_check {
        let _ = image.check(if read_only { Repair::Nothing } else { Repair::All });
    } else {
        let _ = image.write_bytes(700, &buffer[..9000]);
        let _ = image.write_compressed(0, &vec![3; image.cluster_size().min(1 << 16) as usize]);
        let _ = image.discard(0, 1 << 15);
        let _ = image.write_zeroes(9000, 30000, false);
        let _ = image.flush();
        if let Some(snapshots) = image.snapshots() {
            let _ = snapshots.create("t");
            let _ = snapshots.revert("1");
            let _ = snapshots.delete("1");
        }
        let _ = image.resize(1 << 19);
    }
}
