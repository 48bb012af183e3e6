//! The GUID partition table: a header in the second sector with a list of entries, and a copy of both at the disk's end.

use super::{Label, PARTITIONS_MAX, Partition, PartitionTable, field, long, read, word};
use crate::backend::BlockBackend;
use std::io::Result;

const SIGNATURE: &[u8] = b"EFI PART";
/// Sizes of sectors that a table may have been written for.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// Shortest header and entry.
const HEADER_LEAST: u64 = 92;
const ENTRY_LEAST: u64 = 128;
/// Most bytes of entries that are read: 128 times what the specification has at least.
const ENTRIES_MAX: u64 = 2 << 20;

struct Header {
    sector: Vec<u8>,
    /// Bytes of a sector.
    size: u64,
}

/// The table, from its copy at the end if the first one is damaged; `None` where neither is there.
pub(super) fn read_table(disk: &dyn BlockBackend) -> Result<Option<PartitionTable>> {
    for size in SECTOR_SIZES {
        let mut problems = Vec::new();
        let last = (disk.size() / size).saturating_sub(1);
        for (place, at) in [("first", 1), ("backup", last)] {
            let Some(sector) = read(disk, at.saturating_mul(size), size)? else { continue };
            if !sector.starts_with(SIGNATURE) {
                problems.push(format!("there is no {place} GPT header at sector {at}"));
                continue;
            }
            match list(disk, &Header { sector, size }, at) {
                Ok(list) => match list? {
                    Some(mut table) => {
                        table.problems.splice(0..0, problems);
                        return Ok(Some(table));
                    }
                    None => {
                        problems.push(format!("the entries of the {place} GPT header are not on the disk"))
                    }
                },
                Err(problem) => problems.push(format!("the {place} GPT header {problem}")),
            }
        }
    }
    Ok(None)
}

/// The entries that a header leads to; the outer error says what is wrong with the header.
fn list(
    disk: &dyn BlockBackend,
    header: &Header,
    at: u64,
) -> std::result::Result<Result<Option<PartitionTable>>, String> {
    let sector = &header.sector;
    let length = word(sector, 12);
    if !(HEADER_LEAST..=header.size).contains(&length) {
        return Err(format!("says that it has {length} bytes"));
    }
    let mut own = sector.get(..length as usize).unwrap_or_default().to_vec();
    own.iter_mut().skip(16).take(4).for_each(|byte| *byte = 0);
    if u64::from(crc32fast::hash(&own)) != word(sector, 16) {
        return Err("has a wrong checksum".to_owned());
    }
    if long(sector, 24) != at {
        return Err(format!("says that it is at sector {}, and is at {at}", long(sector, 24)));
    }
    let (first, count, size) = (long(sector, 72), word(sector, 80), word(sector, 84));
    let bytes = count.saturating_mul(size);
    if size < ENTRY_LEAST || !size.is_power_of_two() || bytes > ENTRIES_MAX {
        return Err(format!("has {count} entries of {size} bytes"));
    }
    let mut table = PartitionTable {
        label: Label::Gpt,
        id: guid(&field(sector, 56)),
        sectorsize: header.size,
        partitions: Vec::new(),
        problems: Vec::new(),
    };
    let entries = match read(disk, first.saturating_mul(header.size), bytes) {
        Ok(Some(entries)) => entries,
        Ok(None) => return Ok(Ok(None)),
        Err(error) => return Ok(Err(error)),
    };
    if u64::from(crc32fast::hash(&entries)) != word(sector, 88) {
        table.problems.push("the GPT entries have a wrong checksum".to_owned());
    }
    for (number, entry) in (1..).zip(entries.chunks_exact(size as usize)) {
        let kind: [u8; 16] = field(entry, 0);
        if kind == [0; 16] {
            continue;
        }
        if table.partitions.len() >= PARTITIONS_MAX {
            table.problems.push(format!("more than {PARTITIONS_MAX} partitions"));
            break;
        }
        let (start, last) = (long(entry, 32), long(entry, 40));
        let name = name(entry.get(56..128).unwrap_or_default());
        table.partitions.push(Partition {
            number,
            start,
            size: last.saturating_add(1).saturating_sub(start),
            kind: guid(&kind),
            uuid: Some(guid(&field(entry, 16))),
            name: (!name.is_empty()).then_some(name),
            attributes: long(entry, 48),
            bootable: false,
            filesystem: None,
        });
    }
    Ok(Ok(Some(table)))
}

/// The text of a GUID: the first three groups are little-endian (UEFI specification, appendix A).
fn guid(bytes: &[u8; 16]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut out = String::new();
    for (index, at) in order.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        out.push_str(&format!("{:02X}", bytes.get(at).copied().unwrap_or(0)));
    }
    out
}

/// A name in UTF-16, up to its first zero; control characters would reach a terminal and are replaced.
fn name(bytes: &[u8]) -> String {
    let (pairs, _) = bytes.as_chunks::<2>();
    let units = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).take_while(|unit| *unit != 0);
    let text = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER));
    text.map(|unit| if unit.is_control() { char::REPLACEMENT_CHARACTER } else { unit }).collect()
}
