//! Copying the content of one disk to another: sparse, by several threads.

use crate::backend::Extent;
use crate::image::DiskImage;
use parking_lot::{Condvar, Mutex};
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes that one thread takes at a time: few enough that they are still in the processor's cache when they are
/// written, and so many that threads seldom wait for each other.
const CHUNK: u64 = 1 << 20;
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
    /// Threads need not begin their writes in the order of the disk.
    pub any_order: bool,
    /// The target reads as zeros everywhere.
    pub target_is_zero: bool,
    /// Bytes of zeros that are looked for in data; 0: data are written as they are.
    pub find_zeros: u64,
    /// Each piece that is written is flushed before the next.
    pub flush_each: bool,
    /// Told the bytes that are done, from any thread.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

struct Copy<'a> {
    source: &'a dyn DiskImage,
    target: &'a dyn DiskImage,
    options: &'a CopyOptions<'a>,
    range: Range<u64>,
    chunk: u64,
    /// The next chunk that nobody reads yet.
    next: AtomicU64,
    stop: AtomicBool,
    /// The chunk whose write begins next.
    turn: Mutex<u64>,
    /// Where the threads that wait for their turns sleep, by the number of their chunk: chunks that are read at a time
    /// follow each other, and each turn wakes nobody but whose it is.
    waiting: [Condvar; THREADS_MAX],
}

/// Bytes that have been read.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// How many of them are the chunk's.
    len: usize,
    /// The source says that all are zeros; `bytes` are others.
    zero: bool,
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
    let chunk = CHUNK.max(target.cluster_size());
    let chunks = (range.end - range.start).div_ceil(chunk);
    let copy = Copy {
        source,
        target,
        options,
        chunk,
        next: AtomicU64::new(0),
        range,
        stop: AtomicBool::new(false),
        turn: Mutex::new(0),
        waiting: Default::default(),
    };
    let threads = options.threads.clamp(1, THREADS_MAX).min(chunks.max(1) as usize);
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        // This thread is one of them.
        let threads: Vec<_> = (1..threads).map(|_| scope.spawn(|| copy.work())).collect();
        let own = copy.work();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|_| Err(Error::other("a copying thread failed")))
        };
        std::iter::once(own).chain(threads.into_iter().map(join)).collect()
    });
    results.into_iter().collect()
}

impl Copy<'_> {
    fn work(&self) -> Result<()> {
        let mut work = Work { copy: self, whole: false };
        let done = self.chunks();
        work.whole = done.is_ok();
        done
    }

    fn chunks(&self) -> Result<()> {
        let in_turn = !self.options.any_order && !self.options.compress && self.options.threads > 1;
        let mut chunk = Chunk::default();
        while !self.stop.load(Ordering::Acquire) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(range) = self.range_of(number) else { break };
            self.read(range, &mut chunk)?;
            if in_turn && !self.take_turn(number) {
                break;
            }
            self.write_chunk(number, &chunk)?;
        }
        Ok(())
    }

    /// Where a chunk is on the source; `None` behind the last.
    fn range_of(&self, number: u64) -> Option<Range<u64>> {
        let start = self.range.start.checked_add(number.checked_mul(self.chunk)?)?;
        (start < self.range.end).then(|| start..self.range.end.min(start + self.chunk))
    }

    /// Waits until all chunks before this one have begun to be written. `false`: it must not be written any more.
    ///
    /// The next one may begin at once: an image takes its clusters when a write begins, so that they are in order, and
    /// nobody hands a chunk over to another processor, which would have to fetch its bytes.
    fn take_turn(&self, number: u64) -> bool {
        let mut turn = self.turn.lock();
        while *turn != number {
            if self.stop.load(Ordering::Acquire) {
                return false;
            }
            self.place(number).wait(&mut turn);
        }
        *turn += 1;
        self.place(number + 1).notify_one();
        true
    }

    fn place(&self, number: u64) -> &Condvar {
        &self.waiting[(number % THREADS_MAX as u64) as usize]
    }

    fn read(&self, range: Range<u64>, chunk: &mut Chunk) -> Result<()> {
        chunk.len = (range.end - range.start) as usize;
        let mut at = range.start;
        while at < range.end {
            let extent = self.source.block_status(at, range.end - at)?;
            let length = extent.length.clamp(1, range.end - at);
            chunk.zero = extent.zero && length == range.end - range.start;
            if chunk.zero {
                return Ok(());
            }
            if chunk.bytes.len() < chunk.len {
                chunk.bytes.resize(self.chunk as usize, 0);
            }
            let start = (at - range.start) as usize;
            let part = &mut chunk.bytes[start..start + length as usize];
            if extent.zero {
                part.fill(0);
            } else {
                self.source.read_bytes(at, part)?;
            }
            at += length;
        }
        Ok(())
    }

    fn write_chunk(&self, number: u64, chunk: &Chunk) -> Result<()> {
        let offset = number * self.chunk;
        if chunk.zero {
            self.zeros(offset, chunk.len as u64)?;
        } else {
            self.write(offset, &chunk.bytes[..chunk.len])?;
        }
        if self.options.flush_each {
            self.target.flush()?;
        }
        (self.options.progress)(chunk.len as u64);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let cluster = self.target.cluster_size();
        let unit = cluster.max(self.options.find_zeros).max(ZEROS_LEAST).min(data.len().max(1) as u64);
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

/// A thread at work: unless it did all its chunks, nobody goes on, nor waits for its turn to pass.
struct Work<'a> {
    copy: &'a Copy<'a>,
    whole: bool,
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if self.whole {
            return;
        }
        self.copy.stop.store(true, Ordering::Release);
        // Under the lock, so that nobody misses it between looking and waiting.
        drop(self.copy.turn.lock());
        for place in &self.copy.waiting {
            place.notify_all();
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{BlockBackend, Capabilities};
    use crate::raw::RawImage;
    use std::io::{IoSlice, IoSliceMut};
    use std::path::Path;
    use std::sync::Arc;

    const SIZE: u64 = 24 << 20;

    /// A disk in memory.
    struct Memory {
        bytes: Mutex<Vec<u8>>,
        /// Reads and writes from here on fail.
        broken_from: u64,
        /// Something has been written.
        written: AtomicBool,
        /// Called with the offset of every read.
        on_read: Box<dyn Fn(u64) + Send + Sync>,
    }

    impl Memory {
        fn new(bytes: Vec<u8>, broken_from: u64) -> Arc<Self> {
            Memory::watched(bytes, broken_from, |_| ())
        }

        fn watched(
            bytes: Vec<u8>,
            broken_from: u64,
            on_read: impl Fn(u64) + Send + Sync + 'static,
        ) -> Arc<Self> {
            let (bytes, on_read) = (Mutex::new(bytes), Box::new(on_read));
            Arc::new(Memory { bytes, broken_from, written: AtomicBool::new(false), on_read })
        }

        fn check(&self, offset: u64) -> Result<usize> {
            if offset >= self.broken_from { Err(ErrorKind::StorageFull.into()) } else { Ok(offset as usize) }
        }
    }

    impl BlockBackend for Memory {
        fn size(&self) -> u64 {
            self.bytes.lock().len() as u64
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities { read_only: false, discard: false, zero_alignment: 1, growable: false }
        }
        fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
            (self.on_read)(offset);
            let mut at = self.check(offset)?;
            for buffer in buffers {
                let end = at + buffer.len();
                buffer.copy_from_slice(&self.bytes.lock()[at..end]);
                at = end;
            }
            Ok(())
        }
        fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
            let mut at = self.check(offset)?;
            self.written.store(true, Ordering::Release);
            for buffer in buffers {
                self.bytes.lock()[at..at + buffer.len()].copy_from_slice(buffer);
                at += buffer.len();
            }
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
            Ok(())
        }
        fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
            self.write_bytes(offset, &vec![0; len as usize])
        }
        fn resize(&self, _size: u64) -> Result<()> {
            Err(ErrorKind::Unsupported.into())
        }
        fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
            // Every fifth MiB is a hole.
            let end = (offset | 0xf_ffff) + 1;
            let len = len.min(end - offset);
            Ok(if (offset >> 20) % 5 == 4 {
                Extent::hole(offset, len)
            } else {
                Extent::data(offset, len, None)
            })
        }
    }

    /// Noise, and zeros in every third run of 64 KiB and in every fifth MiB.
    fn content() -> Vec<u8> {
        let mut seed = 7_u32;
        let byte = |at: u64| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if (at >> 16) % 3 == 1 || (at >> 20) % 5 == 4 { 0 } else { (seed >> 24) as u8 }
        };
        (0..SIZE).map(byte).collect()
    }

    fn copied(
        source: &Arc<Memory>,
        target: &Arc<Memory>,
        threads: usize,
        any_order: bool,
    ) -> (Result<()>, u64) {
        let done = AtomicU64::new(0);
        let image = |memory: &Arc<Memory>| RawImage::new(memory.clone(), Path::new("memory"));
        let options = CopyOptions {
            threads,
            compress: false,
            any_order,
            target_is_zero: false,
            find_zeros: 4096,
            flush_each: false,
            progress: &|bytes| {
                done.fetch_add(bytes, Ordering::Relaxed);
            },
        };
        let result = copy(&image(source), 0..SIZE, &image(target), &options);
        (result, done.load(Ordering::Relaxed))
    }

    #[test]
    fn all_is_copied() {
        let content = content();
        for (threads, any_order) in [(1, false), (2, false), (8, false), (16, false), (8, true)] {
            let source = Memory::new(content.clone(), u64::MAX);
            let target = Memory::new(vec![0xee; SIZE as usize], u64::MAX);
            let (result, done) = copied(&source, &target, threads, any_order);
            result.unwrap();
            assert_eq!(done, SIZE);
            assert!(*target.bytes.lock() == content, "{threads} threads: other bytes");
        }
    }

    #[test]
    fn an_error_of_either_side_ends_every_thread() {
        let content = content();
        for (source_end, target_end) in
            [(8 << 20, u64::MAX), (u64::MAX, 5 << 20), (0, u64::MAX), (u64::MAX, 0)]
        {
            let source = Memory::new(content.clone(), source_end);
            let target = Memory::new(vec![0xee; SIZE as usize], target_end);
            let (result, done) = copied(&source, &target, 8, false);
            assert_eq!(result.unwrap_err().kind(), ErrorKind::StorageFull);
            assert!(done <= source_end.min(target_end));
            assert!(target.bytes.lock()[..done as usize] == content[..done as usize]);
        }
    }

    #[test]
    fn no_chunk_is_written_before_those_in_front_of_it() {
        for threads in [1, 2, 8, 16] {
            let target = Memory::new(vec![0xee; SIZE as usize], u64::MAX);
            let (watched, others) = (target.clone(), AtomicU64::new(0));
            // The first chunk is read until many others have been.
            let source = Memory::watched(content(), u64::MAX, move |offset| {
                if offset > 0 {
                    others.fetch_add(1, Ordering::Release);
                    return;
                }
                while others.load(Ordering::Acquire) < threads as u64 / 2 {
                    std::thread::yield_now();
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
                assert!(!watched.written.load(Ordering::Acquire), "{threads} threads");
            });
            copied(&source, &target, threads, false).0.unwrap();
        }
    }

    #[test]
    fn a_thread_that_panics_leaves_nobody_waiting() {
        let source = Memory::watched(content(), u64::MAX, |offset| {
            assert!(offset != 0, "a panic that a test asked for");
        });
        let target = Memory::new(vec![0xee; SIZE as usize], u64::MAX);
        // It may be this thread, which is one of those that copy.
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| copied(&source, &target, 8, false).0));
        assert!(!matches!(result, Ok(Ok(()))));
        assert!(!target.written.load(Ordering::Acquire));
    }
}
