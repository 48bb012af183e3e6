//! Check and repair: count all references, compare with the refcounts.

use super::bits::{COPIED, Entry, OFFSET, State, incompatible};
use super::refcount::Counts;
use super::{Meta, Qcow2};
use crate::image::{CheckReport, ImageResult, Repair};
use std::collections::BTreeSet;
use std::io::Result;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// A check under way.
struct Walk<'a> {
    image: &'a Qcow2,
    report: CheckReport,
    counts: Counts,
    /// Clusters of the file; what refers beyond is wrong.
    end: u64,
    next_host: u64,
}

impl Qcow2 {
    /// The caller holds the gate alone, or nobody else has the image yet.
    pub(super) fn check_and_repair(&self, repair: Repair) -> ImageResult<CheckReport> {
        if !self.read_only && self.written.load(Ordering::Acquire) {
            self.tell("writing metadata", self.flush_metadata(false))?;
            self.tell("writing refcounts", self.write_refcounts(&mut self.meta.lock()))?;
        }
        let end = self.file.size().div_ceil(self.cluster());
        let report = CheckReport {
            total_clusters: self.size.load(Ordering::Acquire).div_ceil(self.cluster()),
            ..CheckReport::default()
        };
        let mut walk = Walk { image: self, report, counts: Counts::default(), end, next_host: 0 };
        let result = walk.references().and_then(|()| walk.compare(repair));
        self.tell("checking", result)?;
        let report = walk.report;
        if repair == Repair::All && report.corruptions == 0 && report.check_errors == 0 {
            let mut meta = self.meta.lock();
            let marks = incompatible::DIRTY | incompatible::CORRUPT;
            if meta.header.version >= 3 && meta.header.incompatible & marks != 0 {
                meta.header.incompatible &= !marks;
                let header = meta.header.clone();
                self.tell("writing the header", self.write_header(&header))?;
            }
            self.broken.store(false, Ordering::Release);
        }
        Ok(report)
    }
}

impl Walk<'_> {
    fn corrupt(&mut self, text: impl FnOnce() -> String) {
        self.report.corruptions += 1;
        self.report.find(text);
    }

    fn refer(&mut self, clusters: Range<u64>, what: &'static str) {
        if clusters.end > self.end.max(self.image.meta.lock().refcounts.fresh) {
            let bits = self.image.geometry.cluster_bits;
            self.corrupt(|| {
                format!("ERROR {what} at {:#x} is beyond the end of the file", clusters.start << bits)
            });
            return;
        }
        clusters.for_each(|cluster| self.counts.add(cluster));
    }

    fn refer_bytes(&mut self, offset: u64, len: u64, what: &'static str) {
        let bits = self.image.geometry.cluster_bits;
        if len > 0 {
            self.refer(offset >> bits..((offset + len - 1) >> bits) + 1, what);
        }
    }

    /// Counts all references but those of the refcount structures.
    fn references(&mut self) -> Result<()> {
        let image = self.image;
        let header = image.meta.lock().header.clone();
        self.refer(0..1, "header");
        {
            let l1 = image.l1.read();
            self.refer_bytes(l1.offset, l1.place().bytes(), "L1 table");
            self.tree(l1.offset, l1.entries(), true)?;
        }
        match image.read_snapshots(&header) {
            Ok((rows, bytes)) => {
                self.refer_bytes(header.snapshots_offset, bytes, "snapshot table");
                for row in rows {
                    let l1 = row.l1;
                    self.refer_bytes(l1.offset, l1.bytes(), "snapshot's L1 table");
                    image.each_l1_part(l1, |first, part| self.tree(l1.offset + first * 8, part, false))?;
                }
            }
            Err(error) => self.corrupt(|| format!("ERROR {error}")),
        }
        if let Some((offset, len)) = header.encryption {
            self.refer_bytes(offset, len, "encryption header");
        }
        let mut found = Vec::new();
        let bitmaps = image.bitmap_references(&header, |offset, len| found.push((offset, len)));
        found.into_iter().for_each(|(offset, len)| self.refer_bytes(offset, len, "bitmap"));
        if let Err(error) = bitmaps {
            self.corrupt(|| format!("ERROR {error}"));
        }
        Ok(())
    }

    fn tree(&mut self, l1_offset: u64, entries: &[u64], active: bool) -> Result<()> {
        let image = self.image;
        for (number, entry) in entries.iter().enumerate().filter(|(_, entry)| **entry & OFFSET != 0) {
            if let Err(error) = image.check_table_offset(*entry, l1_offset + number as u64 * 8) {
                self.corrupt(|| format!("ERROR {error}"));
                continue;
            }
            let offset = entry & OFFSET;
            self.refer_bytes(offset, image.cluster(), "L2 table");
            let table = image.tables.get(&*image.file, offset)?;
            for index in 0..image.geometry.l2_entries() as usize {
                let entry = table.entry(&image.geometry, index);
                if let Some(problem) = entry.problem(&image.geometry) {
                    self.corrupt(|| format!("ERROR L2 entry {index} of the table at {offset:#x} {problem}"));
                    continue;
                }
                if active {
                    self.statistics(entry);
                }
                if let Some(clusters) = image.clusters_of(entry) {
                    self.refer(clusters, "data cluster");
                }
            }
        }
        Ok(())
    }

    fn statistics(&mut self, entry: Entry) {
        let geometry = &self.image.geometry;
        let report = &mut self.report;
        if entry.is_compressed() {
            report.allocated_clusters += 1;
            report.compressed_clusters += 1;
            report.fragmented_clusters += 1;
        } else if let Some(host) = entry.host(geometry)
            && (geometry.extended || entry.state(geometry, 0) == State::Data)
        {
            report.allocated_clusters += 1;
            if self.next_host != 0 && host != self.next_host {
                report.fragmented_clusters += 1;
            }
            self.next_host = host + geometry.cluster();
        }
    }

    fn compare(&mut self, repair: Repair) -> Result<()> {
        let image = self.image;
        let mut meta = image.meta.lock();
        let bits = image.geometry.cluster_bits;
        let broken = self.refcount_structures(&mut meta);
        let fix_all = repair == Repair::All;
        if broken > 0 {
            if !fix_all {
                self.report.corruptions += broken;
            } else {
                self.rebuild(&mut meta)?;
                self.report.corruptions_fixed += broken;
            }
        }
        let (mut changed, mut last) = (false, 0);
        for cluster in self.clusters_to_compare(&meta).into_iter().flatten() {
            let expected = u64::from(self.counts.get(cluster));
            let actual = match meta.refcounts.get(cluster) {
                Ok(actual) => actual,
                Err(_) => continue, // Its block was found to be wrong.
            };
            if actual > 0 || expected > 0 {
                last = last.max(cluster + 1);
            }
            if actual == expected {
                continue;
            }
            let leak = actual > expected;
            let fix = (fix_all || leak && repair == Repair::Leaks && broken == 0)
                && expected <= meta.refcounts.max();
            let mark = if fix {
                "Repairing"
            } else if leak {
                "Leaked"
            } else {
                "ERROR"
            };
            self.report.find(|| {
                format!("{mark} cluster {:#x}: refcount={actual} reference={expected}", cluster << bits)
            });
            match (leak, fix) {
                (true, false) => self.report.leaks += 1,
                (true, true) => self.report.leaks_fixed += 1,
                (false, false) => self.report.corruptions += 1,
                (false, true) => self.report.corruptions_fixed += 1,
            }
            if fix {
                meta.refcounts.set(cluster, expected)?;
                changed = true;
            }
        }
        self.report.image_end_offset = last << bits;
        if changed {
            image.write_refcounts(&mut meta)?;
        }
        drop(meta);
        self.copied_flags(fix_all)
    }

    /// All clusters that have, or should have, a refcount; where neither is, whole blocks are left out. In ranges: a
    /// block of 2 MiB can have the counts of 16 million clusters.
    fn clusters_to_compare(&self, meta: &Meta) -> Vec<Range<u64>> {
        let bits = self.image.geometry.cluster_bits + 3 - meta.header.refcount_order;
        let table = meta.refcounts.table();
        // What leads nowhere, or where something else is, was found already and has no counts.
        let is_block = |entry: u64| {
            let block = entry & OFFSET;
            block != 0
                && block.is_multiple_of(self.image.cluster())
                && self.counts.get(block / self.image.cluster()) == 1
        };
        let blocks: Vec<bool> = table.iter().map(|entry| is_block(*entry)).collect();
        let own = (0..)
            .zip(&blocks)
            .filter(|(_, block)| **block)
            .map(|(n, _): (u64, _)| n << bits..(n + 1) << bits);
        let others = self.counts.chunks().filter(|chunk| {
            usize::try_from(chunk.start >> bits).ok().and_then(|n| blocks.get(n)) != Some(&true)
        });
        let mut ranges: Vec<Range<u64>> = own.chain(others).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges
    }

    /// Checks table and blocks, and counts their references. Returns how many are wrong in a way that setting a count
    /// cannot mend.
    fn refcount_structures(&mut self, meta: &mut Meta) -> u64 {
        let image = self.image;
        let cluster = image.cluster();
        let mut broken = 0;
        let (offset, clusters) = (meta.refcounts.table_offset, meta.refcounts.table_clusters());
        let mut own: Vec<u64> = (0..clusters).map(|at| offset / cluster + at).collect();
        for (index, entry) in meta.refcounts.table().iter().enumerate().filter(|(_, entry)| **entry != 0) {
            let block = entry & OFFSET;
            if entry & !OFFSET != 0
                || !block.is_multiple_of(cluster)
                || block / cluster >= self.end
                || block == 0
            {
                broken += 1;
                self.report.find(|| format!("ERROR refcount table entry {index} is {entry:#x}"));
            } else {
                own.push(block / cluster);
            }
        }
        let bits = image.geometry.cluster_bits + 3 - meta.header.refcount_order;
        for cluster in &own {
            self.counts.add(*cluster);
        }
        for cluster in own {
            if self.counts.get(cluster) != 1 {
                broken += 1;
                let at = cluster * image.cluster();
                self.report.find(|| format!("ERROR refcount structure at {at:#x} is used otherwise"));
            }
        }
        let mut missing = BTreeSet::new();
        for (cluster, _) in self.counts.iter() {
            if meta.refcounts.table().get((cluster >> bits) as usize).is_none_or(|entry| entry & OFFSET == 0)
            {
                missing.insert(cluster >> bits);
            }
        }
        broken += missing.len() as u64;
        for index in missing {
            self.report.find(|| format!("ERROR refcount block {index} does not exist"));
        }
        broken
    }

    /// Makes all refcount structures new, and puts them in place.
    fn rebuild(&mut self, meta: &mut Meta) -> Result<()> {
        let image = self.image;
        let cluster = image.cluster();
        // The old structures are not counted: their clusters are free then.
        let mut counts = Counts::default();
        let mut old = Counts::default();
        let (offset, clusters) = (meta.refcounts.table_offset, meta.refcounts.table_clusters());
        (0..clusters).for_each(|at| old.add(offset / cluster + at));
        for block in meta.refcounts.block_offsets() {
            if block.is_multiple_of(cluster) && block / cluster < self.end {
                old.add(block / cluster);
            }
        }
        for (cluster, count) in self.counts.iter() {
            (old.get(cluster)..count).for_each(|_| counts.add(cluster));
        }
        let (offset, clusters) = meta.refcounts.rebuild(&counts)?;
        image.write_refcounts(meta)?;
        let mut header = meta.header.clone();
        (header.refcount_table_offset, header.refcount_table_clusters) = (offset, clusters);
        image.write_header(&header)?;
        meta.header = header;
        let own: Vec<u64> = meta.refcounts.block_offsets().map(|block| block / cluster).collect();
        own.into_iter().for_each(|block| counts.add(block));
        (0..u64::from(clusters)).for_each(|at| counts.add(offset / cluster + at));
        self.counts = counts;
        Ok(())
    }

    /// The copied flag says that a refcount is one. Only a flag that is there too much endangers data.
    fn copied_flags(&mut self, fix: bool) -> Result<()> {
        let image = self.image;
        if image.geometry.external {
            return Ok(());
        }
        let bits = image.geometry.cluster_bits;
        let l1 = image.l1.read();
        let mut wrong = 0;
        for entry in l1.entries().iter().filter(|entry| **entry & OFFSET != 0) {
            let offset = entry & OFFSET;
            if image.check_table_offset(*entry, offset).is_err() {
                continue;
            }
            let counts = &self.counts;
            let differs = |word: u64| (word & COPIED != 0) != (counts.get((word & OFFSET) >> bits) == 1);
            // Without the flag, a write copies more than it would have to: nothing is in danger.
            let how = |word: u64| if word & COPIED == 0 { "missing" } else { "present" };
            let mut texts = Vec::new();
            let word = *entry;
            if differs(word) {
                texts.push(format!("copied flag of the L2 table at {offset:#x} is wrongly {}", how(word)));
            }
            let table = image.tables.get(&*image.file, offset)?;
            for index in 0..image.geometry.l2_entries() as usize {
                let entry = table.entry(&image.geometry, index);
                if entry.problem(&image.geometry).is_none()
                    && !entry.is_compressed()
                    && entry.word & OFFSET != 0
                    && differs(entry.word)
                {
                    let how = how(entry.word);
                    texts.push(format!("copied flag of L2 entry {index} at {offset:#x} is wrongly {how}"));
                }
            }
            wrong += texts.len() as u64;
            let mark = if fix { "Repairing" } else { "ERROR" };
            texts.into_iter().for_each(|text| self.report.find(|| format!("{mark} {text}")));
        }
        drop(l1);
        if !fix || self.report.corruptions > 0 {
            self.report.corruptions += wrong;
        } else if wrong > 0 {
            image.set_copied_flags(false)?;
            image.flush_metadata(false)?;
            self.report.corruptions_fixed += wrong;
        }
        Ok(())
    }
}
