//! The master boot record: four entries in the first sector, and a chain of records inside an extended partition.

use super::{Label, PARTITIONS_MAX, Partition, PartitionTable, read, word};
use crate::backend::{BlockBackend, SECTOR_SIZE};
use std::io::Result;

/// Where the four entries begin, and how long one is.
const ENTRIES: usize = 446;
const ENTRY: usize = 16;
/// Where the disk's number is.
const ID: usize = 440;
/// The kind of an entry that says: the real table is a GPT.
const PROTECTIVE: u8 = 0xee;
const ACTIVE: u8 = 0x80;

struct Entry {
    active: u8,
    kind: u8,
    start: u64,
    size: u64,
}

fn entries(sector: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    (0..4).map(|index| {
        let at = ENTRIES + index * ENTRY;
        let byte = |at: usize| sector.get(at).copied().unwrap_or(0);
        Entry {
            active: byte(at),
            kind: byte(at + 4),
            start: word(sector, at + 8),
            size: word(sector, at + 12),
        }
    })
}

/// Whether a disk's first sector is a table: it has the signature, and no entry that no table has. The boot sector of
/// a file system has the signature too.
pub(super) fn is_table(sector: &[u8]) -> bool {
    sector.get(510..512) == Some(&[0x55, 0xaa])
        && entries(sector).all(|entry| entry.active & !ACTIVE == 0)
        && entries(sector).any(|entry| entry.kind != 0 && entry.size != 0)
        && !is_boot_sector(sector)
}

/// FAT, exFAT and NTFS on the whole disk begin with a jump, and say their name where tables have code.
fn is_boot_sector(sector: &[u8]) -> bool {
    let says = |at: usize, name: &[u8]| sector.get(at..at + name.len()) == Some(name);
    says(54, b"FAT1") || says(82, b"FAT32") || says(3, b"NTFS    ") || says(3, b"EXFAT   ")
}

pub(super) fn is_protective(sector: &[u8]) -> bool {
    entries(sector).any(|entry| entry.kind == PROTECTIVE)
}

/// Whether a kind is that of an extended partition.
pub(super) fn is_extended_kind(kind: &str) -> bool {
    matches!(kind, "5" | "f" | "85")
}

/// The table whose first sector was read.
pub(super) fn read_table(disk: &dyn BlockBackend, sector: &[u8]) -> Result<PartitionTable> {
    let mut table = PartitionTable {
        label: Label::Dos,
        id: format!("0x{:08x}", word(sector, ID)),
        sectorsize: SECTOR_SIZE,
        partitions: Vec::new(),
        problems: Vec::new(),
    };
    for (number, entry) in (1..).zip(entries(sector)) {
        if entry.kind != 0 && entry.size != 0 {
            table.partitions.push(partition(number, &entry, 0));
        }
    }
    let extended = table.partitions.iter().find(|partition| is_extended_kind(&partition.kind));
    if let Some((start, size)) = extended.map(|partition| (partition.start, partition.size)) {
        logical(disk, &mut table, start, size)?;
    }
    Ok(table)
}

fn partition(number: u32, entry: &Entry, base: u64) -> Partition {
    Partition {
        number,
        start: base + entry.start,
        size: entry.size,
        kind: format!("{:x}", entry.kind),
        uuid: None,
        name: None,
        attributes: 0,
        bootable: entry.active == ACTIVE,
        filesystem: None,
    }
}

/// The partitions inside an extended one: each record has one, and leads to the next record. Records count from the
/// start of the extended partition, and partitions from their record.
fn logical(disk: &dyn BlockBackend, table: &mut PartitionTable, start: u64, size: u64) -> Result<()> {
    let (mut record, mut number) = (start, 5);
    let mut seen = Vec::new();
    loop {
        let sector = match read(disk, record.saturating_mul(SECTOR_SIZE), SECTOR_SIZE)? {
            Some(sector) if sector.ends_with(&[0x55, 0xaa]) => sector,
            _ => {
                // An extended partition without any logical one has no record.
                if record != start {
                    table.problems.push(format!("there is no extended boot record at sector {record}"));
                }
                return Ok(());
            }
        };
        seen.push(record);
        for entry in entries(&sector).filter(|entry| entry.kind != 0 && entry.size != 0) {
            if !is_extended_kind(&format!("{:x}", entry.kind)) {
                table.partitions.push(partition(number, &entry, record));
                number += 1;
            }
        }
        let next =
            entries(&sector).find(|entry| is_extended_kind(&format!("{:x}", entry.kind)) && entry.size != 0);
        let Some(next) = next else { return Ok(()) };
        record = start + next.start;
        if next.start >= size || seen.contains(&record) || seen.len() >= PARTITIONS_MAX {
            let problem =
                format!("the chain of extended boot records does not end: it leads to sector {record}");
            table.problems.push(problem);
            return Ok(());
        }
    }
}
