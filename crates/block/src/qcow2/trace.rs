//! Everything that an L1 table leads to.

use super::Qcow2;
use super::bits::{Entry, OFFSET};
use std::io::Result;
use std::ops::Range;

impl Qcow2 {
    /// Calls `visit` with each run of host clusters that an L1 table refers to: L2 tables, and what they map. Clusters
    /// that are referred to several times are visited several times.
    pub(super) fn trace(&self, l1: &[u64], mut visit: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        for entry in l1.iter().filter(|entry| **entry & OFFSET != 0) {
            self.check_table_offset(*entry, entry & OFFSET)?;
            let offset = entry & OFFSET;
            visit(offset >> bits..(offset >> bits) + 1)?;
            let table = self.tables.get(&*self.file, offset)?;
            for index in 0..self.geometry.l2_entries() as usize {
                let entry = self.entry(&table, index)?;
                if let Some(clusters) = self.clusters_of(entry) {
                    visit(clusters)?;
                }
            }
        }
        Ok(())
    }

    /// Host clusters of the image's file that an L2 entry refers to.
    pub(super) fn clusters_of(&self, entry: Entry) -> Option<Range<u64>> {
        let bits = self.geometry.cluster_bits;
        if entry.is_compressed() {
            let (start, len) = self.geometry.compressed(entry.word);
            return Some(start >> bits..((start + len - 1) >> bits) + 1);
        }
        let host = entry.word & OFFSET;
        (host != 0 && !self.geometry.external).then(|| host >> bits..(host >> bits) + 1)
    }
}
