//! What a partition holds, by the magic numbers of file systems and other formats.

use super::{read, word};
use crate::backend::BlockBackend;
use std::io::Result;

/// A name, where the magic is, and the magic. The first that fits counts.
const MAGICS: &[(&str, u64, &[u8])] = &[
    ("crypto_LUKS", 0, b"LUKS\xba\xbe"),
    ("LVM2_member", 512 + 24, b"LVM2 001"),
    ("linux_raid_member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("xfs", 0, b"XFSB"),
    ("squashfs", 0, b"hsqs"),
    ("btrfs", 0x1_0040, b"_BHRfS_M"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("vfat", 82, b"FAT32   "),
    ("vfat", 54, b"FAT16   "),
    ("vfat", 54, b"FAT12   "),
    ("iso9660", 32769, b"CD001"),
];
/// Where the ext family has its magic, and the fields with its features (ext4 disk layout, "The Super Block").
const EXT: (u64, &[u8]) = (1024 + 56, b"\x53\xef");
const EXT_FEATURES: u64 = 1024 + 92;
/// Compatible: has a journal.
const JOURNAL: u64 = 4;
/// Incompatible features that ext3 knows: file types, journal to be recovered, meta block groups.
const EXT3_INCOMPATIBLE: u64 = 2 | 4 | 16;
/// Features that allow reading only which ext3 knows: sparse superblocks, large files, B-tree directories.
const EXT3_READ_ONLY: u64 = 1 | 2 | 4;

/// The name `blkid` has for what `len` bytes from `start` on hold; `None` where nothing is recognized.
///
/// # Errors
/// When the disk cannot be read.
pub fn file_system(disk: &dyn BlockBackend, start: u64, len: u64) -> Result<Option<&'static str>> {
    let has = |at: u64, magic: &[u8]| -> Result<bool> {
        let end = at + magic.len() as u64;
        let Some(at) = start.checked_add(at).filter(|_| end <= len) else { return Ok(false) };
        Ok(read(disk, at, magic.len() as u64)?.is_some_and(|found| found == magic))
    };
    for (name, at, magic) in MAGICS {
        if has(*at, magic)? {
            return Ok(Some(name));
        }
    }
    if !has(EXT.0, EXT.1)? {
        return Ok(None);
    }
    let features = read(disk, start.saturating_add(EXT_FEATURES), 12)?.unwrap_or_default();
    let (compatible, incompatible, read_only) = (word(&features, 0), word(&features, 4), word(&features, 8));
    Ok(Some(if incompatible & !EXT3_INCOMPATIBLE != 0 || read_only & !EXT3_READ_ONLY != 0 {
        "ext4"
    } else if compatible & JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    }))
}
