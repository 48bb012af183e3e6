//! Images of vdi and vhd, and how images are made.

use super::memory::Memory;
use super::program::Seed;
use std::sync::Arc;

use block::{BackingPolicy, BlockBackend, CreateOptions, DiskImage, OpenOptions, create, open};

/// The bytes of a new image that something was written to.
pub fn made(format: &str, size: u64, options: &[(&str, &str)], fill: impl FnOnce(&dyn DiskImage)) -> Vec<u8> {
    make(format, size, options, None, fill)
}

/// The same with a parent of its format.
pub fn made_over(
    format: &str,
    size: u64,
    options: &[(&str, &str)],
    fill: impl FnOnce(&dyn DiskImage),
) -> Vec<u8> {
    make(format, size, options, Some("parent"), fill)
}

fn make(
    format: &str,
    size: u64,
    options: &[(&str, &str)],
    parent: Option<&str>,
    fill: impl FnOnce(&dyn DiskImage),
) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("seed");
    if let Some(parent) = parent {
        let new = CreateOptions { size, ..CreateOptions::default() };
        create(&folder.path().join(parent), format, new).unwrap();
    }
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let passphrase = Some(super::exercise::PASSPHRASE.into());
    let backing = parent.map(|parent| (parent.to_owned(), format.to_owned()));
    let new =
        CreateOptions { size, options, backing, passphrase: passphrase.clone(), ..CreateOptions::default() };
    create(&path, format, new).unwrap();
    let options = OpenOptions { passphrase, backing: BackingPolicy::beside(&path), ..OpenOptions::default() };
    let image = open(&path, format, &options).unwrap();
    fill(&*image);
    drop(image);
    std::fs::read(&path).unwrap()
}

/// Some data in the first block, some in the third.
pub fn fill(image: &dyn DiskImage) {
    image.write_bytes(4096, &[5; 10_000]).unwrap();
    let _ = image.write_bytes(2 << 20, &[6; 4096]);
}

pub fn vdi() -> Vec<Seed> {
    let dynamic = made("vdi", 4 << 20, &[], fill);
    let fixed = made("vdi", 2 << 20, &[("static", "on")], fill);
    let seed = |bytes: Vec<u8>| {
        let table = u32::from_le_bytes(bytes[0x154..0x158].try_into().unwrap()) as usize;
        Seed::new("vdi", bytes, vec![0..512, 0x40..0x190, table..table + 32])
    };
    vec![seed(dynamic), seed(fixed)]
}

pub fn vhd() -> Vec<Seed> {
    let seal = |file: &Memory| {
        let size = file.size();
        for (at, len, sum) in [(0, 512, 64), (512, 1024, 36), (size.saturating_sub(512), 512, 64)] {
            let mut bytes = vec![0; len];
            if file.read_bytes(at, &mut bytes).is_err()
                || !(bytes.starts_with(b"conectix") || bytes.starts_with(b"cxsparse"))
            {
                continue;
            }
            bytes[sum..sum + 4].fill(0);
            let right = !bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add((*byte).into()));
            let _ = file.write_bytes(at + sum as u64, &right.to_be_bytes());
        }
    };
    let seed = |bytes: Vec<u8>| {
        let end = bytes.len();
        let fields = vec![0..512, 512..1536, 1536..2048, end - 512..end, 512..600, 2048..2600];
        Seed { seal, ..Seed::new("vpc", bytes, fields) }
    };
    let dynamic = made("vpc", 5 << 20, &[], fill);
    let differencing = made_over("vpc", 5 << 20, &[], fill);
    let fixed = made("vpc", 1 << 20, &[("subformat", "fixed")], fill);
    vec![seed(dynamic), seed(fixed), seed(differencing)]
}

/// A table of 16 million blocks, all of them the first one; the file's size.
#[cfg(test)]
pub fn largest_vdi() -> (&'static str, Arc<Vec<u8>>, u64) {
    const BLOCKS: u32 = 16 << 20;
    let mut bytes = made("vdi", 1 << 20, &[], |_| ());
    let data = 512 + 4 * BLOCKS;
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    put(0x158, &data.to_le_bytes());
    put(0x170, &(u64::from(BLOCKS) << 20).to_le_bytes());
    put(0x180, &BLOCKS.to_le_bytes());
    bytes.truncate(512);
    ("vdi", Arc::new(bytes), u64::from(data) + (2 << 20))
}
