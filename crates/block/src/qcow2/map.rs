//! From guest offsets to host offsets.

use super::Qcow2;
use super::bits::{Entry, L1_RESERVED, OFFSET, State};
use super::tables::Table;
use std::io::Result;
use std::sync::Arc;

/// How a run of guest bytes is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// The backing file decides.
    Unallocated,
    Zero,
    /// At this offset of the data file; `owned`: nobody else refers to it.
    Data {
        host: u64,
        owned: bool,
    },
    /// One cluster, or part of it.
    Compressed {
        entry: u64,
    },
}

impl Qcow2 {
    /// The L2 table that maps a guest offset.
    pub(super) fn table(&self, l1_index: usize) -> Result<Option<Arc<Table>>> {
        let (entry, l1_offset) = {
            let l1 = self.l1.read();
            (l1.entries().get(l1_index).copied().unwrap_or(0), l1.offset)
        };
        let offset = entry & OFFSET;
        if offset == 0 {
            return Ok(None);
        }
        self.check_table_offset(entry, l1_offset + l1_index as u64 * 8)?;
        self.tables.get(&*self.file, offset).map(Some)
    }

    /// An L1 entry, at `at` of the file, has to point into the file.
    pub(super) fn check_table_offset(&self, entry: u64, at: u64) -> Result<()> {
        let offset = entry & OFFSET;
        if entry & L1_RESERVED != 0 {
            return Err(self.wrong(at, "L1 entry", format!("is {entry:#x}, with reserved bits set")));
        }
        if !offset.is_multiple_of(self.cluster()) {
            return Err(self.wrong(
                at,
                "L1 entry",
                format!("points to {offset:#x}, not the start of a cluster"),
            ));
        }
        // A table that is only in memory yet may be beyond the end of the file.
        if offset >= self.file.size() && !self.tables.holds(offset) {
            return Err(self.wrong(
                at,
                "L1 entry",
                format!("points to {offset:#x}, beyond the end of the file"),
            ));
        }
        Ok(())
    }

    /// An entry of a table, checked.
    pub(super) fn entry(&self, table: &Table, index: usize) -> Result<Entry> {
        let entry = table.entry(&self.geometry, index);
        match entry.problem(&self.geometry) {
            None => Ok(entry),
            Some(problem) => Err(self.wrong_entry(table, index, problem)),
        }
    }

    fn wrong_entry(&self, table: &Table, index: usize, problem: String) -> std::io::Error {
        self.wrong(table.offset + (index * self.geometry.words() * 8) as u64, "L2 entry", problem)
    }

    /// The first run of a range: how it is stored, and how many bytes are stored like that.
    pub(super) fn run(&self, offset: u64, len: u64) -> Result<(Run, u64)> {
        let geometry = &self.geometry;
        let span_end = ((offset >> geometry.l2_span_bits()) + 1) << geometry.l2_span_bits();
        let end = (offset + len).min(span_end);
        let Some(table) = self.table(geometry.l1_index(offset))? else {
            return Ok((Run::Unallocated, end - offset));
        };
        let sub_size = geometry.sub_size();
        let mut found: Option<Run> = None;
        let mut at = offset;
        let mut problem = None;
        table.entries_from(geometry, geometry.l2_index(offset), |index, entry| {
            if let Some(text) = entry.problem(geometry) {
                problem = Some((index, text));
                return false;
            }
            if entry.is_compressed() {
                if found.is_none() {
                    found = Some(Run::Compressed { entry: entry.word });
                    at = (offset | (geometry.cluster() - 1)) + 1;
                }
                return false;
            }
            for sub in geometry.in_cluster(at) / sub_size..geometry.subs() {
                let within = geometry.in_cluster(at);
                let next = match entry.state(geometry, sub) {
                    State::Zero => Run::Zero,
                    State::Data => {
                        Run::Data { host: (entry.word & OFFSET) + within, owned: entry.is_copied() }
                    }
                    State::Unallocated | State::Compressed => Run::Unallocated,
                };
                let goes_on = match (found, next) {
                    (None, _) => true,
                    (Some(Run::Data { host, owned }), Run::Data { host: its, owned: its_owned }) => {
                        host + (at - offset) == its && owned == its_owned
                    }
                    (Some(run), next) => run == next,
                };
                if !goes_on {
                    return false;
                }
                found = found.or(Some(next));
                at = (at | (sub_size - 1)) + 1;
                if at >= end {
                    return false;
                }
            }
            true
        });
        match (found, problem) {
            (None, Some((index, text))) => Err(self.wrong_entry(&table, index, text)),
            (found, _) => Ok((found.unwrap_or(Run::Unallocated), at.min(end) - offset)),
        }
    }
}
