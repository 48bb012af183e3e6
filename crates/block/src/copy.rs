//! Copying the content of one disk to another: sparse, by several threads.

use crate::backend::Extent;
use crate::image::DiskImage;
use parking_lot::{Condvar, Mutex};
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes that one thread takes at a time: few enough that they are still in the processor's cache when they are
/// written.
const CHUNK: u64 = 512 << 10;
/// Most threads.
const THREADS_MAX: usize = 16;
/// Zeros shorter than this are written.
const ZEROS_LEAST: u64 = 4096;

/// How to copy.
pub struct CopyOptions<'a> {
    /// Threads, 1 to 16.
    pub threads: usize,
    /// Write compressed clusters.
    pub compress: bool,
    /// Threads need not wait for each other to keep the order of writes.
    pub any_order: bool,
    /// The target reads as zeros everywhere.
    pub target_is_zero: bool,
    /// Bytes of zeros that are looked for in data; 0: data are written as they are.
    pub find_zeros: u64,
    /// Told the bytes that are done, from any thread.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

struct Copy<'a> {
    source: &'a dyn DiskImage,
    target: &'a dyn DiskImage,
    options: &'a CopyOptions<'a>,
    range: Range<u64>,
    next: AtomicU64,
    stop: AtomicBool,
    /// The chunk whose turn it is to be written.
    turn: Mutex<u64>,
    /// Each wakes who waits with one chunk: threads have as many chunks in a row at most as there are threads.
    turned: [Condvar; THREADS_MAX],
}

/// Copies a range of `source` to `target`, to the same offsets minus the range's start.
pub fn copy(
    source: &dyn DiskImage,
    range: Range<u64>,
    target: &dyn DiskImage,
    options: &CopyOptions<'_>,
) -> Result<()> {
    if range.end > source.size() || range.end - range.start > target.size() {
        return Err(Error::new(ErrorKind::InvalidInput, "the range leaves a disk"));
    }
    let copy = Copy {
        source,
        target,
        options,
        next: AtomicU64::new(0),
        range,
        stop: AtomicBool::new(false),
        turn: Mutex::new(0),
        turned: [const { Condvar::new() }; THREADS_MAX],
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..options.threads.clamp(1, THREADS_MAX)).map(|_| scope.spawn(|| copy.work())).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|_| Err(Error::other("a copying thread failed")))
        };
        threads.into_iter().map(join).collect()
    });
    results.into_iter().collect()
}

impl Copy<'_> {
    fn work(&self) -> Result<()> {
        let chunk = CHUNK.max(self.target.cluster_size());
        let mut buffer = vec![0; chunk as usize];
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let start = self.range.start + number * chunk;
            if start >= self.range.end {
                break;
            }
            let end = self.range.end.min(start + chunk);
            let done = self.chunk(number, start..end, &mut buffer[..(end - start) as usize]);
            // The next in turn must not wait for one that failed.
            self.pass(number);
            if let Err(error) = done {
                self.stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
            (self.options.progress)(end - start);
        }
        Ok(())
    }

    fn ordered(&self) -> bool {
        !self.options.any_order && !self.options.compress && self.options.threads > 1
    }

    fn turned(&self, number: u64) -> &Condvar {
        &self.turned[(number % THREADS_MAX as u64) as usize]
    }

    fn wait_for_turn(&self, number: u64) {
        if self.ordered() {
            let mut turn = self.turn.lock();
            while *turn < number {
                self.turned(number).wait(&mut turn);
            }
        }
    }

    fn pass(&self, number: u64) {
        if self.ordered() {
            self.wait_for_turn(number);
            *self.turn.lock() = number + 1;
            self.turned(number + 1).notify_one();
        }
    }

    fn chunk(&self, number: u64, range: Range<u64>, buffer: &mut [u8]) -> Result<()> {
        let mut at = range.start;
        let mut zeros: Vec<Range<u64>> = Vec::new();
        while at < range.end {
            let extent = self.source.block_status(at, range.end - at)?;
            let length = extent.length.clamp(1, range.end - at);
            let part = &mut buffer[(at - range.start) as usize..(at + length - range.start) as usize];
            if extent.zero {
                part.fill(0);
                zeros.push(at..at + length);
            } else {
                self.source.read_bytes(at, part)?;
            }
            at += length;
        }
        self.wait_for_turn(number);
        self.write(range.start - self.range.start, buffer, zeros.len() == 1 && zeros[0] == range)
    }

    fn write(&self, offset: u64, data: &[u8], all_zero: bool) -> Result<()> {
        let cluster = self.target.cluster_size();
        let unit = cluster.max(self.options.find_zeros).max(ZEROS_LEAST).min(data.len().max(1) as u64);
        if all_zero {
            return self.zeros(offset, data.len() as u64);
        }
        let find = self.options.find_zeros > 0;
        let mut at = 0;
        while at < data.len() {
            let step = if self.options.compress { cluster as usize } else { unit as usize };
            let zero = find && is_zero(&data[at..data.len().min(at + step)]);
            let mut end = data.len().min(at + step);
            // Compressed clusters are written one by one, everything else in runs.
            while end < data.len() && (zero || !self.options.compress) {
                let next = data.len().min(end + step);
                if (find && is_zero(&data[end..next])) != zero {
                    break;
                }
                end = next;
            }
            if zero {
                self.zeros(offset + at as u64, (end - at) as u64)?;
            } else if self.options.compress {
                self.target.write_compressed(offset + at as u64, &data[at..end])?;
            } else {
                self.target.write_bytes(offset + at as u64, &data[at..end])?;
            }
            at = end;
        }
        Ok(())
    }

    fn zeros(&self, offset: u64, len: u64) -> Result<()> {
        if self.options.target_is_zero { Ok(()) } else { self.target.write_zeroes(offset, len, true) }
    }
}

/// Whether all bytes are zero.
pub fn is_zero(data: &[u8]) -> bool {
    // A block at a time, so that the compiler can use wide registers.
    let (blocks, rest) = data.as_chunks::<256>();
    blocks.iter().all(|block| block.iter().fold(0, |sum, byte| sum | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// All extents of a range, neighbours of the same kind put together.
pub fn extents(image: &dyn DiskImage, range: Range<u64>) -> Result<Vec<Extent>> {
    let mut out: Vec<Extent> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let extent = image.block_status(at, range.end - at)?;
        at += extent.length.max(1);
        match out.last_mut() {
            Some(last) if last.continues_with(&extent) => last.length += extent.length,
            _ => out.push(extent),
        }
    }
    Ok(out)
}
