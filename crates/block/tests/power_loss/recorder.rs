//! A file in memory that remembers what was not flushed, and loses some of it.

use crate::random::Random;
use block::{BlockBackend, Capabilities, Extent};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;

#[derive(Default)]
struct Content {
    now: Vec<u8>,
    /// As of the last flush.
    safe: Vec<u8>,
    /// Sectors written since, in order.
    pending: Vec<(usize, [u8; SECTOR])>,
}

/// The file.
pub struct Recorder {
    content: Mutex<Content>,
    seed: u64,
    /// Writes and flushes until the power goes: from then on, everything fails.
    left: Arc<AtomicI64>,
    broken: AtomicBool,
    /// Bytes that there is no space for, and whether the next write there arrives in part.
    no_space: Mutex<(Range<usize>, bool)>,
}

impl Recorder {
    pub fn new(bytes: Vec<u8>, seed: u64) -> Self {
        let content = Content { safe: bytes.clone(), now: bytes, pending: Vec::new() };
        Recorder {
            content: Mutex::new(content),
            seed,
            left: Arc::new(AtomicI64::new(i64::MAX)),
            broken: AtomicBool::new(false),
            no_space: Mutex::default(),
        }
    }

    /// Hangs on the power of another one.
    pub fn share_power(&mut self, other: &Recorder) {
        self.left = other.left.clone();
    }

    /// From now on, everything fails, or nothing does.
    pub fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    /// From now on, what is written to these bytes finds the file system full. Of the first such write, what is in front
    /// of them arrives, of those that follow nothing.
    pub fn set_no_space(&self, bytes: Range<usize>) {
        *self.no_space.lock().unwrap() = (bytes, true);
    }

    /// The power goes after so many writes and flushes.
    pub fn lose_power_after(&self, count: i64) {
        self.left.store(count, Ordering::SeqCst);
    }

    pub fn has_power(&self) -> bool {
        self.left.load(Ordering::SeqCst) > 0
    }

    fn check_broken(&self) -> Result<()> {
        if self.broken.load(Ordering::SeqCst) { Err(Error::other("broken")) } else { Ok(()) }
    }

    fn step(&self) -> Result<()> {
        self.check_broken()?;
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 { Ok(()) } else { Err(Error::other("no power")) }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.content.lock().unwrap().now.clone()
    }

    /// A bit changes without anybody writing.
    pub fn flip(&self, at: usize) {
        let mut content = self.content.lock().unwrap();
        content.now[at] ^= 1;
        if let Some(byte) = content.safe.get_mut(at) {
            *byte ^= 1;
        }
    }

    /// The file after its power was lost: of the sectors that wait, any subset arrived.
    pub fn after_power_loss(&self) -> Recorder {
        let content = self.content.lock().unwrap();
        let mut random = Random(self.seed ^ 0xdead);
        let share = random.below(101);
        let mut bytes = content.safe.clone();
        for (sector, data) in content.pending.iter().filter(|_| random.below(100) < share) {
            let at = sector * SECTOR;
            if bytes.len() < at + SECTOR {
                bytes.resize(at + SECTOR, 0);
            }
            bytes[at..at + SECTOR].copy_from_slice(data);
        }
        Recorder::new(bytes, self.seed + 1)
    }

    fn put(content: &mut Content, at: usize, data: &[u8]) {
        let end = at + data.len();
        if content.now.len() < end {
            content.now.resize(end.next_multiple_of(SECTOR), 0);
        }
        content.now[at..end].copy_from_slice(data);
        for sector in at / SECTOR..end.div_ceil(SECTOR) {
            let mut copy = [0; SECTOR];
            copy.copy_from_slice(&content.now[sector * SECTOR..][..SECTOR]);
            content.pending.push((sector, copy));
        }
    }
}

impl BlockBackend for Recorder {
    fn size(&self) -> u64 {
        self.content.lock().unwrap().now.len() as u64
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: false, discard: true, zero_alignment: 512, growable: true }
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check_broken()?;
        let content = self.content.lock().unwrap();
        let mut at = offset as usize;
        for buffer in buffers {
            for (number, byte) in buffer.iter_mut().enumerate() {
                *byte = content.now.get(at + number).copied().unwrap_or(0);
            }
            at += buffer.len();
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.step()?;
        let mut content = self.content.lock().unwrap();
        let mut bytes = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect::<Vec<_>>();
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        let mut no_space = self.no_space.lock().unwrap();
        let (missing, first) = &mut *no_space;
        let fits = missing.start == missing.end || end <= missing.start || missing.end <= start;
        if !fits {
            bytes.truncate(if std::mem::take(first) { missing.start.saturating_sub(start) } else { 0 });
        }
        Self::put(&mut content, start, &bytes);
        if fits { Ok(()) } else { Err(ErrorKind::StorageFull.into()) }
    }
    fn flush(&self) -> Result<()> {
        self.step()?;
        let mut content = self.content.lock().unwrap();
        let Content { now, safe, pending } = &mut *content;
        if safe.len() == now.len() {
            for (sector, data) in pending.iter() {
                safe[sector * SECTOR..][..SECTOR].copy_from_slice(data);
            }
        } else {
            safe.clone_from(now);
        }
        pending.clear();
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        // The worst that may happen: other bytes.
        self.write_bytes(offset, &vec![0xdd; len as usize])
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        self.write_bytes(offset, &vec![0; len as usize])
    }
    fn resize(&self, size: u64) -> Result<()> {
        self.content.lock().unwrap().now.resize(size as usize, 0);
        Ok(())
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent::data(offset, len, Some(offset)))
    }
}
