//! Partition tables that somebody has changed.

use crate::memory::Memory;
use block::{Label, partitions};

/// Sectors of the disk.
const SECTORS: u64 = 128;
const SECTOR: usize = 512;
/// Where the entries of both GPT copies are, and how many there are.
const ENTRIES: [usize; 2] = [2, 100];
const COUNT: u32 = 16;

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
}

/// A disk with an MBR that has an extended partition with two logical ones; or with a GPT and its copy.
fn base(gpt: bool) -> Vec<u8> {
    let mut disk = vec![0; SECTORS as usize * SECTOR];
    let mut entry = |sector: usize, index: usize, kind: u8, start: u32, size: u32| {
        let at = sector * SECTOR + 446 + 16 * index;
        put(&mut disk, at + 4, &[kind]);
        put(&mut disk, at + 8, &start.to_le_bytes());
        put(&mut disk, at + 12, &size.to_le_bytes());
        put(&mut disk, sector * SECTOR + 510, &[0x55, 0xaa]);
    };
    if gpt {
        entry(0, 0, 0xee, 1, SECTORS as u32 - 1);
    } else {
        entry(0, 0, 0x83, 2, 10);
        entry(0, 1, 5, 20, 80);
        entry(20, 0, 0x83, 1, 9);
        entry(20, 1, 5, 30, 20);
        entry(50, 0, 0x82, 1, 9);
    }
    if gpt {
        for (own, entries) in [1, SECTORS as usize - 1].into_iter().zip(ENTRIES) {
            let mut header = vec![0; 92];
            put(&mut header, 0, b"EFI PART");
            put(&mut header, 8, &[0, 0, 1, 0, 92]);
            put(&mut header, 24, &(own as u64).to_le_bytes());
            put(&mut header, 72, &(entries as u64).to_le_bytes());
            put(&mut header, 80, &COUNT.to_le_bytes());
            put(&mut header, 84, &128_u32.to_le_bytes());
            put(&mut disk, own * SECTOR, &header);
            for (index, (start, last)) in [(10_u64, 19_u64), (20, 29), (30, 49)].into_iter().enumerate() {
                let at = entries * SECTOR + index * 128;
                put(&mut disk, at, &[index as u8 + 1; 32]);
                put(&mut disk, at + 32, &start.to_le_bytes());
                put(&mut disk, at + 40, &last.to_le_bytes());
                put(&mut disk, at + 56, b"r\0o\0o\0t\0");
            }
        }
    }
    disk
}

/// Makes the checksums right again, so that what they cover is looked at.
fn seal(disk: &mut [u8]) {
    for (own, entries) in [1, SECTORS as usize - 1].into_iter().zip(ENTRIES) {
        let list = crc32(&disk[entries * SECTOR..entries * SECTOR + COUNT as usize * 128]);
        put(disk, own * SECTOR + 88, &list.to_le_bytes());
        put(disk, own * SECTOR + 16, &[0; 4]);
        let header = crc32(&disk[own * SECTOR..own * SECTOR + 92]);
        put(disk, own * SECTOR + 16, &header.to_le_bytes());
    }
}

/// The first byte says which disk; then changes follow, each a place in one of the structures and eight bytes for it.
pub fn run(program: &[u8]) {
    let Some((kind, rest)) = program.split_first() else { return };
    let gpt = kind & 1 == 1;
    let mut disk = base(gpt);
    for change in rest.chunks_exact(11) {
        let sector = [0, 1, 2, 20, 50, 100, SECTORS as usize - 1][usize::from(change[0]) % 7];
        let at = sector * SECTOR + usize::from(u16::from_le_bytes([change[1], change[2]])) % SECTOR;
        let len = [1, 2, 4, 8][usize::from(change[0] >> 4) % 4];
        put(&mut disk, at, &change[3..3 + len]);
    }
    if gpt && kind & 2 == 0 {
        seal(&mut disk);
    }
    let disk = Memory::new(disk, false);
    let Some(table) = partitions(&*disk).unwrap() else { return };
    assert!(table.partitions.len() <= 256);
    assert!(table.label == Label::Gpt || table.sectorsize == 512);
    for partition in &table.partitions {
        // What lies outside is said to.
        let sectors = SECTORS * 512 / table.sectorsize;
        let inside = partition.start.saturating_add(partition.size) <= sectors;
        assert!(inside || !table.problems.is_empty(), "{table:?}");
    }
    if rest.len() < 11 && kind & 2 == 0 {
        // Nothing was changed: everything is found, and nothing is wrong.
        let places: Vec<(u32, u64, u64)> =
            table.partitions.iter().map(|found| (found.number, found.start, found.size)).collect();
        let expected: &[(u32, u64, u64)] = if gpt {
            &[(1, 10, 10), (2, 20, 10), (3, 30, 20)]
        } else {
            &[(1, 2, 10), (2, 20, 80), (5, 21, 9), (6, 51, 9)]
        };
        assert_eq!((places.as_slice(), table.problems.as_slice()), (expected, &[][..]));
    }
}
