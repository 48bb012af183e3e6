//! A larger table.
//!
//! The table is gone through a part at a time: it may have 64 MiB. When there is no room behind it, the first blocks
//! move to the end of the file and the new table takes their place, so that one write of the header leads from the old
//! table to the new one. Until then the old table is true at any moment; numbers of moved blocks may be above those the
//! old header has blocks for, which [`super::layout`] reads all the same.

use super::header::{DISCARDED, Header, UNALLOCATED};
use crate::backend::BlockBackend;
use crate::mapped::{copy, scan};
use std::io::{Error, ErrorKind, Result};

/// Entries that are in memory together: 1 MiB.
const PART: u32 = 1 << 18;

/// Shows `look` each entry of the table.
pub(super) fn each(file: &dyn BlockBackend, header: &Header, mut look: impl FnMut(u32)) -> Result<()> {
    scan(file, header.table_offset.into(), 4 * u64::from(header.blocks), |part| {
        part.as_chunks::<4>().0.iter().for_each(|entry| look(u32::from_le_bytes(*entry)));
    })
}

fn wrong(problem: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("{problem}: check the image first"))
}

/// What the entries lead to.
struct Survey {
    /// Number behind the last one.
    behind: u32,
    /// Entries that lead to a block.
    allocated: u32,
    /// Entries of blocks nobody wrote.
    absent: u32,
}

impl Survey {
    fn of(file: &dyn BlockBackend, header: &Header) -> Result<Survey> {
        let mut survey = Survey { behind: 0, allocated: 0, absent: 0 };
        each(file, header, |entry| {
            if entry < DISCARDED {
                survey.behind = survey.behind.max(entry + 1);
                survey.allocated += 1;
            }
            survey.absent += u32::from(entry == UNALLOCATED);
        })?;
        let last = u64::from(survey.behind.saturating_sub(1)) * u64::from(header.block_size);
        if survey.behind > 0 && u64::from(header.data_offset) + last >= file.size() {
            return Err(wrong("The table has entries behind the file's end"));
        }
        Ok(survey)
    }
}

/// Writes a table of `total` entries at `to`: each is what `change` makes of the one in the table at `from`, or of an
/// unallocated one where that has only `old`. What entries lead to is safe before they are written.
fn rewrite(
    file: &dyn BlockBackend,
    (from, old): (u32, u32),
    (to, total): (u32, u32),
    mut change: impl FnMut(u32) -> Result<u32>,
) -> Result<()> {
    let mut buffer = vec![0; 4 * total.min(PART) as usize];
    for first in (0..total).step_by(PART as usize) {
        let part = buffer.get_mut(..4 * (total - first).min(PART) as usize).unwrap_or_default();
        part.fill(0xff);
        let stored = 4 * old.saturating_sub(first).min(PART) as usize;
        let stored = stored.min(part.len());
        let at = |start: u32| u64::from(start) + 4 * u64::from(first);
        file.read_bytes(at(from), part.get_mut(..stored).unwrap_or_default())?;
        let mut changed = to != from || stored < part.len();
        for entry in part.as_chunks_mut::<4>().0 {
            let old = u32::from_le_bytes(*entry);
            let new = change(old)?;
            changed |= new != old;
            *entry = new.to_le_bytes();
        }
        if changed {
            if to == from {
                file.flush()?;
            }
            file.write_bytes(at(to), part)?;
        }
    }
    file.flush()
}

/// The next block's number.
fn take_number(next: &mut u32) -> Result<u32> {
    let number = *next;
    *next = number.checked_add(1).filter(|next| *next < DISCARDED).ok_or(ErrorKind::FileTooLarge)?;
    Ok(number)
}

/// Moves the blocks with numbers below `moved` behind all others, and says so in the table; returns the number behind
/// the last block.
fn move_blocks(file: &dyn BlockBackend, header: &Header, behind: u32, moved: u32) -> Result<u32> {
    let (start, size) = (u64::from(header.data_offset), u64::from(header.block_size));
    let mut seen = vec![false; moved as usize];
    let mut next = behind.max(moved);
    let table = (header.table_offset, header.blocks);
    rewrite(file, table, table, |entry| {
        // What is not among the first blocks stays where it is.
        let Some(seen) = seen.get_mut(entry as usize) else { return Ok(entry) };
        if std::mem::replace(seen, true) {
            return Err(wrong("Two entries of the table lead to the same block"));
        }
        copy(file, start + u64::from(entry) * size, start + u64::from(next) * size, size)?;
        take_number(&mut next)
    })?;
    Ok(next)
}

/// Makes the table large enough for a disk of `size` bytes; returns the header, which is in the file then.
pub(super) fn grow(file: &dyn BlockBackend, old: &Header, size: u64) -> Result<Header> {
    let survey = Survey::of(file, old)?;
    let block_size = u64::from(old.block_size);
    let blocks = Header::blocks_of(size, old.block_size)
        .map_err(|problem| Error::new(ErrorKind::FileTooLarge, problem))?;
    let mut header = old.clone();
    header.disk_size = size;
    // Nothing is given up: blocks may be more than the disk needs.
    header.blocks = blocks.max(old.blocks);
    let bytes = 4 * u64::from(header.blocks);
    let (mut behind, mut moved) = (survey.behind, 0);
    if bytes > u64::from(old.data_offset - old.table_offset) {
        let too_large = |_| Error::from(ErrorKind::FileTooLarge);
        moved = u32::try_from(bytes.div_ceil(block_size)).map_err(too_large)?;
        let start = u64::from(old.data_offset) + u64::from(moved) * block_size;
        header.data_offset = u32::try_from(start).map_err(too_large)?;
        header.table_offset = old.data_offset;
        behind = move_blocks(file, old, behind, moved)? - moved;
    }
    header.allocated = survey.allocated;
    if header.fixed {
        let end = u64::from(behind) + u64::from(survey.absent) + u64::from(header.blocks - old.blocks);
        let end = u64::from(header.data_offset) + end * block_size;
        if end > file.size() {
            file.resize(end)?;
        }
    }
    rewrite(
        file,
        (old.table_offset, old.blocks),
        (header.table_offset, header.blocks),
        |entry| match entry {
            UNALLOCATED if header.fixed => {
                header.allocated += 1;
                take_number(&mut behind)
            }
            DISCARDED | UNALLOCATED => Ok(entry),
            block => Ok(block - moved),
        },
    )?;
    if file.size() < u64::from(header.data_offset) {
        file.resize(header.data_offset.into())?;
    }
    file.flush()?;
    file.write_bytes(0, &header.encode())?;
    file.flush()?;
    Ok(header)
}
