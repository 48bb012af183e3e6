//! What a disk did so far.

use crate::transfer::Transfer;
use serde::{Deserialize, Serialize};
use std::io::Result;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Requests so far, those of the guest and of nobody else. Failed ones count as requests without bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct DiskCounts {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Time spent reading, in nanoseconds, summed over all requests.
    pub read_nanoseconds: u64,
    /// Writes, and requests for zeros.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Time spent writing, as for reads.
    pub write_nanoseconds: u64,
    /// Flushes.
    pub flushes: u64,
    /// Time spent flushing, as for reads.
    pub flush_nanoseconds: u64,
    /// Discards.
    pub discards: u64,
    /// Bytes discarded.
    pub discarded_bytes: u64,
}

#[derive(Default)]
struct Kind {
    requests: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Kind {
    fn count(&self, bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        let result = work();
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.note(bytes, nanoseconds, result.is_ok());
        result
    }

    fn note(&self, bytes: u64, nanoseconds: u64, succeeded: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        if succeeded {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn get(&self) -> (u64, u64, u64) {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        (get(&self.requests), get(&self.bytes), get(&self.nanoseconds))
    }
}

#[derive(Default)]
pub(super) struct Counters {
    reads: Kind,
    writes: Kind,
    flushes: Kind,
    discards: Kind,
}

impl Counters {
    pub fn read(&self, bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.reads.count(bytes, work)
    }

    pub fn write(&self, bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.writes.count(bytes, work)
    }

    /// Several transfers that `work` does: each counts with its part of the time.
    pub fn batch(&self, batch: &mut [&mut Transfer<'_>], work: impl FnOnce(&mut [&mut Transfer<'_>])) {
        // What is read into says less of itself afterwards.
        let bytes: Vec<u64> = batch.iter().map(|transfer| transfer.bytes()).collect();
        let start = Instant::now();
        work(batch);
        let each = start.elapsed().as_nanos() / (batch.len() as u128).max(1);
        let each = u64::try_from(each).unwrap_or(u64::MAX);
        for (transfer, bytes) in batch.iter().zip(bytes) {
            let kind = if transfer.is_write() { &self.writes } else { &self.reads };
            kind.note(bytes, each, transfer.result.is_ok());
        }
    }

    pub fn flush(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.flushes.count(0, work)
    }

    pub fn discard(&self, bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.discards.count(bytes, work)
    }

    pub fn get(&self) -> DiskCounts {
        let (reads, read_bytes, read_nanoseconds) = self.reads.get();
        let (writes, written_bytes, write_nanoseconds) = self.writes.get();
        let (flushes, _, flush_nanoseconds) = self.flushes.get();
        let (discards, discarded_bytes, _) = self.discards.get();
        DiskCounts {
            reads,
            read_bytes,
            read_nanoseconds,
            writes,
            written_bytes,
            write_nanoseconds,
            flushes,
            flush_nanoseconds,
            discards,
            discarded_bytes,
        }
    }
}
