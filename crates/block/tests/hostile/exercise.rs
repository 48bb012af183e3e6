//! What is done with an image.

use super::memory::Memory;
use block::luks::KeyLimits;
use block::{BackingPolicy, DiskImage, OpenOptions, OpenedBacking, Repair, driver};
use std::path::Path;
use std::sync::{Arc, LazyLock};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Check,
    Repair,
    Read,
    Write,
}

/// The passphrase of encrypted seeds.
pub const PASSPHRASE: &[u8] = b"secret";

/// Cheap derivations only: they are not what is tried here.
const KEYS: KeyLimits = KeyLimits { memory_kib: 256, iterations: 3000 };

/// What the image is opened with.
#[derive(Clone, Copy, Debug)]
pub struct Around {
    passphrase: bool,
    backing: Backing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    Refused,
    Ignored,
    /// An open image, whatever the file says.
    There,
}

impl Around {
    /// From three bits.
    pub fn from_bits(bits: u8) -> Self {
        let backing = match bits & 3 {
            0 => Backing::Refused,
            1 => Backing::There,
            _ => Backing::Ignored,
        };
        Around { passphrase: bits != 0, backing }
    }
}

static BACKING: LazyLock<OpenedBacking> = LazyLock::new(|| {
    let file = Memory::new(vec![4; 1 << 16], true);
    let image = driver("raw").unwrap().open(file, Path::new("backing"), &OpenOptions::reading());
    OpenedBacking(image.unwrap())
});

pub fn open(
    format: &str,
    file: &Arc<Memory>,
    what: Use,
    around: Around,
) -> block::ImageResult<Arc<dyn DiskImage>> {
    let options = OpenOptions {
        for_check: matches!(what, Use::Check | Use::Repair),
        read_only: matches!(what, Use::Check | Use::Read),
        passphrase: around.passphrase.then(|| Arc::from(PASSPHRASE)),
        backing: if around.backing == Backing::Ignored {
            BackingPolicy::Ignore
        } else {
            BackingPolicy::Refuse
        },
        opened_backing: (around.backing == Backing::There).then(|| BACKING.clone()),
        key_limits: KEYS,
        ..OpenOptions::default()
    };
    driver(format)?.open(file.clone(), Path::new("hostile"), &options)
}

/// Results do not matter, but errors can be told.
pub fn exercise(format: &str, file: &Arc<Memory>, what: Use, around: Around) {
    let image = match open(format, file, what, around) {
        Ok(image) => image,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let _ = image.info();
    let _ = image.snapshots().map(|snapshots| snapshots.list());
    let _ = image.bitmaps().map(|bitmaps| bitmaps.list());
    match what {
        Use::Check => drop(image.check(Repair::Nothing)),
        Use::Repair => drop(image.check(Repair::All)),
        Use::Read => read(&*image),
        Use::Write => write(&*image),
    }
}

fn read(image: &dyn DiskImage) {
    let mut buffer = [0; 2048];
    let size = image.size();
    for at in [0, image.cluster_size() * 3, size / 2, size.saturating_sub(2048)] {
        let _ = image.read_bytes(at, &mut buffer);
        let _ = image.block_status(at, 1 << 14);
    }
    let _ = image.block_status(0, size);
}

fn write(image: &dyn DiskImage) {
    let (size, cluster) = (image.size(), image.cluster_size());
    let _ = image.write_bytes(700, &[9; 1500]);
    let _ = image.write_bytes(size.saturating_sub(512), &[9; 512]);
    if cluster <= 1 << 16 {
        let _ = image.write_compressed(0, &vec![3; cluster as usize]);
    }
    let _ = image.discard(0, 1 << 12);
    let _ = image.write_zeroes(9000, 4000, false);
    let _ = image.flush();
    read(image);
    if let Some(bitmaps) = image.bitmaps() {
        let _ = bitmaps.add("new", Some(4096), true);
        let _ = bitmaps.remove("b");
    }
    if let Some(snapshots) = image.snapshots() {
        let _ = snapshots.create("t");
        let _ = image.write_bytes(0, &[8; 512]);
        let _ = snapshots.revert("1");
        let _ = snapshots.delete("1");
    }
    let _ = image.resize(size.saturating_add(1 << 16));
    let _ = image.set_backing(None);
    let _ = image.make_empty();
}
