//! Partition tables on a disk: MBR with its extended partitions, and GPT (UEFI specification, chapter 5).
//!
//! A guest writes these tables, so nothing in them is believed: what leaves the disk, overlaps, goes in a circle or has
//! a wrong checksum becomes a *problem* in the answer, next to what can be read nevertheless. Tables are read from the
//! disk's content alone; nothing is mounted, and nothing written.

mod content;
mod gpt;
mod mbr;

pub use content::file_system;

use crate::backend::{BlockBackend, SECTOR_SIZE};
use serde::Serialize;
use std::io::Result;

/// Most partitions that are listed.
const PARTITIONS_MAX: usize = 256;

/// The kind of a table, as `sfdisk` calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// Master boot record.
    Dos,
    /// GUID partition table.
    Gpt,
}

/// A partition. Sectors have [`PartitionTable::sectorsize`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its number, as Linux counts: from 1; logical ones from 5.
    pub number: u32,
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub size: u64,
    /// What it is for: two hexadecimal digits, or a GUID.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its own GUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Attribute bits of GPT that are set, as a number; 0: none.
    #[serde(skip_serializing_if = "is_none")]
    pub attributes: u64,
    /// The BIOS is to start it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bootable: bool,
    /// What its first bytes show it to hold, as `blkid` calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<&'static str>,
}

fn is_none(bits: &u64) -> bool {
    *bits == 0
}

/// A disk's table. Where it has the same as `sfdisk --json`, names are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionTable {
    /// The kind of the table.
    pub label: Label,
    /// The disk's number or GUID.
    pub id: String,
    /// Bytes of a sector.
    pub sectorsize: u64,
    /// In the order of the table.
    pub partitions: Vec<Partition>,
    /// What is wrong, each in a sentence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// The table of a disk; `None` where it has none: then the disk may hold a file system as a whole
/// ([`file_system`]).
///
/// # Errors
/// When the disk cannot be read.
pub fn partitions(disk: &dyn BlockBackend) -> Result<Option<PartitionTable>> {
    let Some(first) = read(disk, 0, SECTOR_SIZE)? else { return Ok(None) };
    if !mbr::is_table(&first) {
        return Ok(None);
    }
    let mut table = if mbr::is_protective(&first) { gpt::read_table(disk)? } else { None };
    if table.is_none() {
        table = Some(mbr::read_table(disk, &first)?);
    }
    if let Some(table) = &mut table {
        judge(disk, table);
        for partition in &mut table.partitions {
            let (start, len) =
                (bytes(partition.start, table.sectorsize), bytes(partition.size, table.sectorsize));
            partition.filesystem = file_system(disk, start, len)?;
        }
    }
    Ok(table)
}

fn bytes(sectors: u64, size: u64) -> u64 {
    sectors.saturating_mul(size)
}

/// Notes partitions that leave the disk or overlap.
fn judge(disk: &dyn BlockBackend, table: &mut PartitionTable) {
    let sectors = disk.size() / table.sectorsize;
    let mut found = Vec::new();
    for (index, one) in table.partitions.iter().enumerate() {
        let end = one.start.saturating_add(one.size);
        if end > sectors {
            found.push(format!("partition {} ends at sector {end}, the disk at {sectors}", one.number));
        }
        let contains = |other: &&Partition| {
            // Logical partitions lie inside the extended one.
            let nested = table.label == Label::Dos
                && (mbr::is_extended_kind(&one.kind) || mbr::is_extended_kind(&other.kind));
            let apart = other.start >= end || one.start >= other.start.saturating_add(other.size);
            !(apart || nested)
        };
        if let Some(other) = table.partitions.iter().skip(index + 1).find(contains) {
            found.push(format!("partitions {} and {} overlap", one.number, other.number));
        }
    }
    table.problems.extend(found);
}

/// Bytes of the disk; `None` where it ends before.
fn read(disk: &dyn BlockBackend, offset: u64, len: u64) -> Result<Option<Vec<u8>>> {
    if disk.check_range(offset, len).is_err() {
        return Ok(None);
    }
    let mut data = vec![0; len as usize];
    disk.read_bytes(offset, &mut data)?;
    Ok(Some(data))
}

/// `N` bytes from `at` on; zeros beyond the end.
fn field<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(data.iter().skip(at)).for_each(|(to, from)| *to = *from);
    out
}

fn word(data: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(field(data, at)).into()
}

fn long(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(data, at))
}
