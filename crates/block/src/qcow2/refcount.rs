//! Refcounts of host clusters, and the allocator (qcow2 specification, "Host cluster management").
//!
//! All changes are made in memory; [`Refcounts::take_dirty`] hands them to the flush, which writes them before any
//! table that refers to the clusters. A block that does not exist yet is put at the first cluster it counts, so that
//! it counts itself.

use super::bits::OFFSET;
use super::words::{PAGE, Writes, bytes, read_words, take_pages};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use std::collections::{BTreeMap, HashMap};
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Largest refcount table in bytes.
const TABLE_MAX: usize = 8 << 20;

struct Block {
    offset: u64,
    data: Vec<u8>,
    /// Pages to be written.
    dirty: Vec<bool>,
    used: u64,
}

/// The refcounts of one image.
pub(super) struct Refcounts {
    file: Arc<dyn BlockBackend>,
    path: PathBuf,
    cluster_bits: u32,
    order: u32,
    pub table_offset: u64,
    table: Vec<u64>,
    table_dirty: bool,
    blocks: HashMap<u64, Block>,
    blocks_max: usize,
    clock: u64,
    /// No cluster before this one is free.
    first_free: u64,
    /// No cluster from here on was ever in use: its bytes are zeros if the file had none there.
    pub fresh: u64,
    /// The table was moved: the header has to say so.
    pub moved: Option<(u64, u32)>,
}

impl Refcounts {
    pub fn new(
        file: Arc<dyn BlockBackend>,
        path: PathBuf,
        cluster_bits: u32,
        order: u32,
        cache: u64,
    ) -> Self {
        let fresh = file.size().div_ceil(1 << cluster_bits);
        Refcounts {
            file,
            path,
            cluster_bits,
            order,
            table_offset: 0,
            table: Vec::new(),
            table_dirty: false,
            blocks: HashMap::new(),
            blocks_max: ((cache >> cluster_bits) as usize).max(4),
            clock: 0,
            first_free: 0,
            fresh,
            moved: None,
        }
    }

    /// Reads the table; its place was checked with the header.
    pub fn load(&mut self, offset: u64, clusters: u32) -> Result<()> {
        self.table = read_words(&*self.file, offset, (clusters as usize) << (self.cluster_bits - 3))?;
        self.table_offset = offset;
        Ok(())
    }

    /// Starts a new image: the header, a table of one cluster, and the first block.
    pub fn start(&mut self) -> Result<()> {
        self.table_offset = 1 << self.cluster_bits;
        self.table = vec![0; 1 << (self.cluster_bits - 3)];
        self.table[0] = 2 << self.cluster_bits;
        self.table_dirty = true;
        self.put(0, self.table[0], vec![0; 1 << self.cluster_bits], true);
        (0..3).try_for_each(|cluster| self.set(cluster, 1))
    }

    pub fn max(&self) -> u64 {
        if self.order == 6 { u64::MAX } else { (1 << (1 << self.order)) - 1 }
    }

    /// Clusters one block counts, as a power of two.
    fn span_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.order
    }

    pub fn table(&self) -> &[u64] {
        &self.table
    }

    pub fn table_clusters(&self) -> u64 {
        (self.table.len() as u64 * 8) >> self.cluster_bits
    }

    fn block_offset(&self, index: u64) -> Result<Option<u64>> {
        let Some(entry) = self.table.get(index as usize) else { return Ok(None) };
        let offset = entry & OFFSET;
        if offset == 0 {
            return Ok(None);
        }
        let cluster = 1 << self.cluster_bits;
        if !offset.is_multiple_of(cluster)
            || entry & !OFFSET != 0
            || offset >= self.file.size() && !self.blocks.contains_key(&index)
        {
            let problem = format!("is {entry:#x}: not a cluster inside the file");
            let at = self.table_offset + index * 8;
            return Err(BlockError::metadata(&self.path, at, "refcount table entry", problem).into());
        }
        Ok(Some(offset))
    }

    /// The block that counts `cluster`, from the cache or the file.
    fn block(&mut self, index: u64) -> Result<Option<&mut Block>> {
        let Some(offset) = self.block_offset(index)? else { return Ok(None) };
        self.clock += 1;
        if !self.blocks.contains_key(&index) {
            self.keep(self.blocks_max - 1);
            let mut data = vec![0; 1 << self.cluster_bits];
            self.file.read_bytes(offset, &mut data)?;
            self.put(index, offset, data, false);
        }
        let clock = self.clock;
        let Some(block) = self.blocks.get_mut(&index) else { return Ok(None) };
        block.used = clock;
        Ok(Some(block))
    }

    fn put(&mut self, index: u64, offset: u64, data: Vec<u8>, dirty: bool) {
        let dirty = vec![dirty; data.len().div_ceil(PAGE)];
        self.blocks.insert(index, Block { offset, data, dirty, used: self.clock });
    }

    /// Forgets clean blocks, those first that were not used for the longest time, until so many are left.
    fn keep(&mut self, most: usize) {
        let excess = self.blocks.len().saturating_sub(most);
        if excess == 0 {
            return;
        }
        let clean = self.blocks.iter().filter(|(_, block)| !block.dirty.contains(&true));
        let mut clean: Vec<(u64, u64)> = clean.map(|(index, block)| (block.used, *index)).collect();
        clean.sort_unstable();
        for (_, index) in clean.into_iter().take(excess) {
            self.blocks.remove(&index);
        }
    }

    /// Forgets what was written and is too much.
    pub fn trim(&mut self) {
        self.keep(self.blocks_max);
    }

    pub fn get(&mut self, cluster: u64) -> Result<u64> {
        let (order, bits) = (self.order, self.span_bits());
        let block = self.block(cluster >> bits)?;
        Ok(block.map_or(0, |block| read_count(&block.data, cluster & ((1 << bits) - 1), order)))
    }

    /// Sets a count; the block is made if there is none.
    pub fn set(&mut self, cluster: u64, count: u64) -> Result<()> {
        let (order, bits) = (self.order, self.span_bits());
        let index = cluster >> bits;
        if self.block_offset(index)?.is_none() {
            if count == 0 {
                return Ok(());
            }
            self.make_block(index, Some(cluster))?;
        }
        let Some(block) = self.block(index)? else { return Err(ErrorKind::InvalidData.into()) };
        let byte = write_count(&mut block.data, cluster & ((1 << bits) - 1), order, count);
        block.dirty[byte / PAGE] = true;
        if count == 0 {
            self.first_free = self.first_free.min(cluster);
        } else {
            self.fresh = self.fresh.max(cluster + 1);
        }
        Ok(())
    }

    /// Changes the counts of clusters by one. On an error, nothing was changed.
    pub fn add(&mut self, clusters: Range<u64>) -> Result<()> {
        for cluster in clusters.clone() {
            let count = self.get(cluster)?;
            if count >= self.max() {
                for done in clusters.start..cluster {
                    self.sub(done)?;
                }
                let problem =
                    format!("of cluster {cluster:#x} is at its limit {count}; wider refcounts are needed");
                return Err(self.wrong(cluster, problem));
            }
            self.set(cluster, count + 1)?;
        }
        Ok(())
    }

    /// Lowers the count of a cluster by one and returns what is left.
    pub fn sub(&mut self, cluster: u64) -> Result<u64> {
        let count = self.get(cluster)?;
        if count == 0 {
            return Err(self.wrong(cluster, format!("of cluster {cluster:#x} is 0 though it is in use")));
        }
        self.set(cluster, count - 1)?;
        Ok(count - 1)
    }

    fn wrong(&self, cluster: u64, problem: String) -> Error {
        BlockError::metadata(&self.path, cluster << self.cluster_bits, "refcount", problem).into()
    }

    /// Makes the block `index` at the first cluster it counts which is not `wanted`.
    fn make_block(&mut self, index: u64, wanted: Option<u64>) -> Result<()> {
        if index as usize >= self.table.len() {
            self.grow_table(index, 0)?;
            if self.table[index as usize] != 0 {
                return Ok(());
            }
        }
        let (order, bits) = (self.order, self.span_bits());
        let mut cluster = index << bits;
        if index == 0 {
            // The header is there. Only a broken image has no first block.
            let problem =
                "of the first clusters do not exist; repair the image with: vireo image check --repair all";
            return Err(BlockError::metadata(&self.path, self.table_offset, "refcounts", problem).into());
        }
        if wanted == Some(cluster) {
            cluster += 1;
        }
        let mut data = vec![0; 1 << self.cluster_bits];
        write_count(&mut data, cluster & ((1 << bits) - 1), order, 1);
        self.put(index, cluster << self.cluster_bits, data, true);
        self.table[index as usize] = cluster << self.cluster_bits;
        self.table_dirty = true;
        self.fresh = self.fresh.max(cluster + 1);
        Ok(())
    }

    /// Moves the table to a larger place, at the first clusters that the present one does not cover, behind the blocks
    /// that count this place, with room for `more` blocks behind these. Everything is in the file when this returns
    /// except the header, which `moved` asks for.
    fn grow_table(&mut self, index: u64, more: u64) -> Result<()> {
        let bits = self.span_bits();
        let per_cluster = 1_u64 << (self.cluster_bits - 3);
        let (mut blocks, mut clusters) = (1, 1);
        loop {
            let needed =
                (index + blocks + 1 + more).max(self.table.len() as u64 * 3 / 2).div_ceil(per_cluster);
            let own = (blocks + needed).div_ceil(1 << bits);
            if (needed, own) == (clusters, blocks) {
                break;
            }
            (clusters, blocks) = (needed, own.max(blocks));
        }
        if (clusters << self.cluster_bits) as usize > TABLE_MAX.max(2 << self.cluster_bits) {
            return Err(Error::new(ErrorKind::StorageFull, "the refcount table is at its limit"));
        }
        let (old_offset, old_clusters, old_len) =
            (self.table_offset, self.table_clusters(), self.table.len());
        let start = index << bits;
        self.table.resize((clusters * per_cluster) as usize, 0);
        for at in 0..blocks {
            let offset = (start + at) << self.cluster_bits;
            self.table[(index + at) as usize] = offset;
            self.put(index + at, offset, vec![0; 1 << self.cluster_bits], true);
        }
        let done = (|| {
            for cluster in start..start + blocks + clusters {
                self.set(cluster, 1)?;
            }
            let offset = (start + blocks) << self.cluster_bits;
            self.table_offset = offset;
            let writes = self.dirty_blocks();
            let written = self
                .file
                .write_bytes(offset, &bytes(&self.table))
                .and_then(|()| writes.iter().try_for_each(|(at, data)| self.file.write_bytes(*at, data)))
                .and_then(|()| self.file.flush());
            if written.is_err() {
                self.mark_dirty(&writes, false);
            }
            written
        })();
        if let Err(error) = done {
            self.table.truncate(old_len);
            self.blocks.retain(|index, _| (*index as usize) < old_len);
            self.table_offset = old_offset;
            return Err(error);
        }
        self.table_dirty = false;
        self.moved = Some((old_offset, old_clusters as u32));
        Ok(())
    }

    /// Takes `count` clusters that follow each other.
    pub fn allocate(&mut self, count: u64) -> Result<u64> {
        let start = if count < 1 << self.span_bits() {
            self.find(count, count)?.start
        } else if let Some(start) = self.find_old(count)? {
            start
        } else {
            self.make_room(count)?
        };
        self.take(start..start + count)
    }

    /// A run of free clusters that have blocks already.
    fn find_old(&mut self, count: u64) -> Result<Option<u64>> {
        let bits = self.span_bits();
        let mut cluster = self.first_free;
        let mut start = cluster;
        while cluster >> bits < self.table.len() as u64 {
            if self.block_offset(cluster >> bits)?.is_none() {
                cluster = ((cluster >> bits) + 1) << bits;
                start = cluster;
                continue;
            }
            cluster += 1;
            if self.get(cluster - 1)? != 0 {
                start = cluster;
            } else if cluster - start == count {
                return Ok(Some(start));
            }
        }
        Ok(None)
    }

    /// Makes blocks for a run that is longer than what one block counts: all of them are in front of it, behind
    /// everything that has a block. Returns where the run begins.
    fn make_room(&mut self, count: u64) -> Result<u64> {
        let bits = self.span_bits();
        let mut blocks = 1;
        while blocks << bits < blocks + count {
            blocks = (blocks + count).div_ceil(1 << bits);
        }
        let behind =
            |table: &[u64]| table.iter().rposition(|entry| *entry != 0).map_or(0, |last| last + 1) as u64;
        if behind(&self.table) + blocks > self.table.len() as u64 {
            self.grow_table(self.table.len() as u64, blocks)?;
        }
        let index = behind(&self.table);
        let start = index << bits;
        for at in 0..blocks {
            let offset = (start + at) << self.cluster_bits;
            let Some(entry) = self.table.get_mut((index + at) as usize) else {
                return Err(ErrorKind::StorageFull.into());
            };
            *entry = offset;
            self.put(index + at, offset, vec![0; 1 << self.cluster_bits], true);
        }
        self.table_dirty = true;
        self.take(start..start + blocks)?;
        Ok(start + blocks)
    }

    /// Takes 1 to `count` clusters that follow each other, as many as there are at the first free place.
    pub fn allocate_some(&mut self, count: u64) -> Result<Range<u64>> {
        let found = self.find(1, count)?;
        let start = self.take(found.clone())?;
        Ok(start..start + (found.end - found.start))
    }

    /// Takes the cluster if it is free.
    pub fn allocate_at(&mut self, cluster: u64) -> Result<bool> {
        if self.get(cluster)? != 0 {
            return Ok(false);
        }
        self.set(cluster, 1)?;
        // A block that had to be made may have taken the neighbour; the cluster itself is ours.
        Ok(true)
    }

    fn take(&mut self, clusters: Range<u64>) -> Result<u64> {
        for cluster in clusters.clone() {
            self.set(cluster, 1)?;
        }
        if self.first_free >= clusters.start {
            self.first_free = clusters.end.max(self.first_free);
        }
        Ok(clusters.start)
    }

    /// Free clusters: at least `least`, at most `most`. Their blocks exist when this returns.
    fn find(&mut self, least: u64, most: u64) -> Result<Range<u64>> {
        let bits = self.span_bits();
        let limit = (OFFSET >> self.cluster_bits).min(i64::MAX as u64 >> self.cluster_bits);
        let mut cluster = self.first_free;
        let mut run = cluster..cluster;
        let mut first_seen = false;
        while run.end - run.start < most {
            if cluster >= limit {
                return Err(ErrorKind::StorageFull.into());
            }
            if self.block_offset(cluster >> bits)?.is_none() {
                // A new block takes a cluster for itself, the first of its range.
                self.make_block(cluster >> bits, None)?;
            }
            if self.get(cluster)? == 0 {
                if !first_seen {
                    first_seen = true;
                    self.first_free = cluster;
                }
                run.end = cluster + 1;
            } else if run.end - run.start >= least {
                break;
            } else {
                run = cluster + 1..cluster + 1;
            }
            cluster += 1;
        }
        Ok(run)
    }

    /// Whether more blocks are in memory than there should be: all of them wait to be written.
    pub fn is_crowded(&self) -> bool {
        self.blocks.len() > self.blocks_max
    }

    fn dirty_blocks(&mut self) -> Writes {
        let mut writes = Vec::new();
        for block in self.blocks.values_mut() {
            let (offset, data) = (block.offset, &block.data);
            writes.extend(take_pages(&mut block.dirty, |range| {
                let range = range.start..range.end.min(data.len());
                (offset + range.start as u64, data[range].to_vec())
            }));
        }
        writes.sort_by_key(|(offset, _)| *offset);
        writes
    }

    /// Blocks, and the table, that have to be written; they count as written from now on.
    pub fn take_dirty(&mut self) -> (Writes, Option<(u64, Vec<u8>)>) {
        let blocks = self.dirty_blocks();
        let table = std::mem::take(&mut self.table_dirty).then(|| (self.table_offset, bytes(&self.table)));
        (blocks, table)
    }

    /// Takes back that `writes` were written.
    pub fn mark_dirty(&mut self, writes: &Writes, table: bool) {
        self.table_dirty |= table;
        let by_offset: BTreeMap<u64, u64> =
            self.blocks.iter().map(|(index, block)| (block.offset, *index)).collect();
        for (offset, data) in writes {
            let Some((start, index)) = by_offset.range(..=offset).next_back() else { continue };
            if let Some(block) = self.blocks.get_mut(index) {
                let first = (offset - start) as usize / PAGE;
                block
                    .dirty
                    .iter_mut()
                    .skip(first)
                    .take(data.len().div_ceil(PAGE))
                    .for_each(|page| *page = true);
            }
        }
    }

    /// Offsets of all blocks.
    pub fn block_offsets(&self) -> impl Iterator<Item = u64> {
        self.table.iter().map(|entry| entry & OFFSET).filter(|offset| *offset != 0)
    }

    /// Whether a byte range holds the table or a block.
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        let table = self.table_offset..self.table_offset + self.table.len() as u64 * 8;
        if range.start < table.end && table.start < range.end {
            return true;
        }
        let bits = self.span_bits();
        let clusters = (range.start >> self.cluster_bits)..=((range.end - 1) >> self.cluster_bits);
        // Blocks mostly are where they count; the others are found by looking at all that are cached.
        let near = (clusters.start() >> bits)..=(clusters.end() >> bits);
        near.into_iter().any(|index| {
            self.table.get(index as usize).is_some_and(|entry| range.contains(&(entry & OFFSET)))
        }) || self.blocks.len() < 64 && self.blocks.values().any(|block| range.contains(&block.offset))
    }

    /// Replaces all refcounts by `counts` (by cluster, without those of refcount structures), in new blocks and a new
    /// table behind everything else; the old ones are left alone. Returns the table's place and clusters.
    pub fn rebuild(&mut self, counts: &Counts) -> Result<(u64, u32)> {
        let bits = self.span_bits();
        let end = counts.iter().last().map_or(1, |(last, _)| last + 1).max(self.fresh);
        let per_cluster = 1_u64 << (self.cluster_bits - 3);
        let mut blocks: Vec<u64> = counts.iter().map(|(cluster, _)| cluster >> bits).collect();
        blocks.dedup();
        // The new structures count themselves: more of them until all fit.
        let (mut own, mut table) = (1, 1);
        loop {
            let last = (end + own + table) >> bits;
            let mut all: Vec<u64> = blocks.iter().copied().chain((end >> bits)..=last).collect();
            all.sort_unstable();
            all.dedup();
            let needed = (last + 1).div_ceil(per_cluster);
            if all.len() as u64 <= own && needed <= table {
                blocks = all;
                break;
            }
            (own, table) = (own.max(all.len() as u64), table.max(needed));
        }
        if (table << self.cluster_bits) as usize > TABLE_MAX.max(1 << self.cluster_bits) {
            return Err(Error::new(ErrorKind::StorageFull, "the refcount table is at its limit"));
        }
        self.blocks.clear();
        self.table = vec![0; (table * per_cluster) as usize];
        self.table_offset = end << self.cluster_bits;
        for (at, index) in blocks.iter().enumerate() {
            let offset = (end + table + at as u64) << self.cluster_bits;
            self.table[*index as usize] = offset;
            self.put(*index, offset, vec![0; 1 << self.cluster_bits], true);
        }
        self.first_free = 0;
        for (cluster, count) in counts.iter() {
            self.set(cluster, u64::from(count).min(self.max()))?;
        }
        for cluster in end..end + table + blocks.len() as u64 {
            self.set(cluster, 1)?;
        }
        self.table_dirty = true;
        Ok((self.table_offset, table as u32))
    }
}

/// How often clusters are referred to; for most, never.
#[derive(Default)]
pub(super) struct Counts {
    chunks: BTreeMap<u64, [u32; 64]>,
}

impl Counts {
    pub fn add(&mut self, cluster: u64) {
        let count = &mut self.chunks.entry(cluster / 64).or_insert([0; 64])[cluster as usize % 64];
        *count = count.saturating_add(1);
    }
    pub fn get(&self, cluster: u64) -> u32 {
        self.chunks.get(&(cluster / 64)).map_or(0, |chunk| chunk[cluster as usize % 64])
    }
    /// Ranges of 64 clusters with all that are referred to, in order.
    pub fn chunks(&self) -> impl Iterator<Item = Range<u64>> {
        self.chunks.keys().map(|index| index * 64..(index + 1) * 64)
    }
    /// Those that are referred to, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        let chunk = |(index, counts): (&u64, &[u32; 64])| (*index, *counts);
        let spread =
            |(index, counts): (u64, [u32; 64])| (0..64).map(move |at| (index * 64 + at, counts[at as usize]));
        self.chunks.iter().map(chunk).flat_map(spread).filter(|(_, count)| *count > 0)
    }
}

/// Entries below a byte are filled from the least significant bit on.
fn read_count(data: &[u8], index: u64, order: u32) -> u64 {
    let index = index as usize;
    match order {
        0..=2 => {
            let (bits, per_byte) = (1 << order, 8 >> order);
            u64::from(data[index / per_byte] >> (index % per_byte * bits)) & ((1 << bits) - 1)
        }
        _ => {
            let len = 1 << (order - 3);
            data[index * len..][..len].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        }
    }
}

/// Returns the first byte that was changed.
fn write_count(data: &mut [u8], index: u64, order: u32, count: u64) -> usize {
    let index = index as usize;
    match order {
        0..=2 => {
            let (bits, per_byte) = (1 << order, 8 >> order);
            let (byte, shift) = (index / per_byte, index % per_byte * bits);
            let mask = ((1_u16 << bits) - 1) as u8;
            data[byte] = data[byte] & !(mask << shift) | ((count as u8 & mask) << shift);
            byte
        }
        _ => {
            let len = 1 << (order - 3);
            data[index * len..][..len].copy_from_slice(&count.to_be_bytes()[8 - len..]);
            index * len
        }
    }
}
