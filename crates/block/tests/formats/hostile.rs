//! Headers and tables that are wrong: whatever they say, there is an answer or an error, no panic and no endless
//! search. Bytes of valid images are changed at random, mostly where fields are.

use crate::cases::seeds;
use crate::random::Random;
use block::{BackingPolicy, CreateOptions, OpenOptions, Repair};
use std::sync::Arc;

fn opening() -> OpenOptions {
    let passphrase = Some(Arc::from(&b"secret"[..]));
    OpenOptions { backing: BackingPolicy::Refuse, passphrase, ..OpenOptions::default() }
}

fn valid(format: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let passphrase = Some(Arc::from(&b"secret"[..]));
    block::create(
        &path,
        format,
        CreateOptions { size: 3 << 20, options, passphrase, ..CreateOptions::default() },
    )
    .unwrap();
    let image = block::open(&path, format, &opening()).unwrap();
    image.write_bytes(4096, &[5; 100_000]).unwrap();
    image.write_bytes(2 << 20, &[6; 4096]).unwrap();
    drop(image);
    std::fs::read(&path).unwrap()
}

fn damage(rng: &mut Random, bytes: &mut Vec<u8>, fields: &[u64]) {
    for _ in 0..1 + rng.below(4) {
        let base = fields[rng.below(fields.len() as u64) as usize];
        let near = if rng.chance(50) { 128 } else { 2048 };
        let at = (base + rng.below(near)) as usize;
        let width = [1, 2, 4, 8][rng.below(4) as usize];
        let value = [0, 1, u64::MAX, u64::MAX - 1, 1 << 31, 1 << 63, rng.next(), rng.below(100)];
        let value = value[rng.below(8) as usize].to_le_bytes();
        for (to, from) in bytes.iter_mut().skip(at).zip(&value[..width]) {
            *to = *from;
        }
    }
    if rng.chance(12) {
        bytes.truncate(rng.below(bytes.len() as u64) as usize);
    }
}

fn try_all(format: &str, options: &[(&str, &str)], fields: &[u64]) {
    let image = valid(format, options);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let (mut opened, mut refused) = (0, 0);
    for seed in seeds(150) {
        let mut rng = Random(seed);
        let mut bytes = image.clone();
        damage(&mut rng, &mut bytes, fields);
        std::fs::write(&path, &bytes).unwrap();
        match block::open(&path, format, &opening()) {
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
            Ok(image) => {
                opened += 1;
                // Sizes come from the header: only what is small is gone through.
                let size = image.size().min(16 << 20);
                let mut content = vec![0; size as usize];
                let _ = image.read_bytes(0, &mut content);
                let _ = image.block_status(0, image.size());
                let _ = image.info();
                if image.size() / image.cluster_size() < 1 << 20 {
                    let _ = image.check(Repair::Nothing);
                }
                let _ = image.write_bytes(0, &content[..content.len().min(8192)]);
                let _ = image.write_zeroes(0, size.min(1 << 20), true);
                let _ = image.flush();
            }
        }
    }
    assert!(opened > 0 && refused > 0, "{format}: {opened} opened, {refused} refused");
}

#[test]
fn damaged_headers_and_tables() {
    try_all("vdi", &[], &[0x40, 0x150, 0x170, 512]);
    try_all("vpc", &[], &[0, 16, 512, 528, 1536]);
    try_all(
        "vhdx",
        &[("block_size", "1M")],
        &[64 << 10, 192 << 10, 2 << 20, (2 << 20) + (64 << 10), 3 << 20],
    );
    try_all("vmdk", &[], &[0, 8, 512, 21 * 512, 22 * 512, 26 * 512]);
    try_all("vmdk", &[("subformat", "streamOptimized")], &[0, 8, 21 * 512, 22 * 512, 26 * 512, 128 * 512]);
    try_all("luks", &[("iter-time", "1")], &[0, 64, 160, 208, 4096]);
}
