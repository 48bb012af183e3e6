//! `vireo image bench`: how fast requests to an image are. Options are those of `qemu-img bench`.

use super::{Folders, Output, open, size};
use anyhow::{Result, bail};
use block::{Aio, BlockBackend, Buffers, CacheMode, OpenOptions, Transfer};
use clap::Args;
use serde_json::json;
use std::io::{IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Buffers begin at multiples of this, as those of a guest's page cache do.
const ALIGNMENT: usize = 4096;
/// Requests of a batch.
const LANE: usize = 8;
/// Most bytes of all buffers.
const BUFFERS_MAX: u64 = 1 << 30;

#[derive(Debug, Args)]
#[command(after_help = "\
Requests are given to the image in batches of up to 8, as many batches at the same time as --depth allows, as with a
guest that has several queues; with --flush-interval one batch of --depth at a time. With -w the image is overwritten.

Example:
  vireo image bench -f raw -t none -i io_uring -d 32 -c 100000 disk.raw")]
pub struct BenchArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// Requests
    #[arg(short, long, value_name = "NUMBER", default_value_t = 75000)]
    count: u64,
    /// Requests at a time
    #[arg(short, long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Bytes of a request
    #[arg(short = 's', long, value_name = "SIZE", default_value = "4k")]
    buffer_size: String,
    /// Bytes from one request to the next; without, the size of a request
    #[arg(short = 'S', long, value_name = "SIZE")]
    step_size: Option<String>,
    /// First byte of the disk
    #[arg(short, long, value_name = "OFFSET", default_value = "0")]
    offset: String,
    /// Write
    #[arg(short, long)]
    write: bool,
    /// Flush after so many requests; 0: only at the end
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    flush_interval: u64,
    /// How the image is kept: writeback, writethrough, none, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", default_value = "writeback", value_parser = CacheMode::named)]
    cache: CacheMode,
    /// How requests are done: auto, threads or io_uring
    #[arg(short = 'i', value_name = "AIO", default_value = "auto", value_parser = Aio::named)]
    aio: Aio,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
    /// Image
    file: PathBuf,
}

pub fn run(arguments: &BenchArgs, folders: &Folders) -> Result<u8> {
    let options = OpenOptions {
        read_only: !arguments.write,
        cache: arguments.cache,
        aio: arguments.aio,
        ..folders.writing(&arguments.file)
    };
    let disk = open(&arguments.file, arguments.format.as_deref(), &options)?;
    let disk = block::with_cache_mode(disk, arguments.cache);
    let len = size(&arguments.buffer_size)?;
    let step = arguments.step_size.as_deref().map_or(Ok(len), size)?;
    let start = size(&arguments.offset)?;
    if len == 0 || step == 0 || start.saturating_add(len) > disk.size() {
        bail!("No request of {len} bytes at {start} fits on a disk of {} bytes", disk.size());
    }
    if len.saturating_mul(arguments.depth.into()) > BUFFERS_MAX {
        bail!("{} requests of {len} bytes take more than 1 GiB of memory", arguments.depth);
    }
    let began = Instant::now();
    let rounds = Rounds { disk: &*disk, len, step, start };
    rounds.run(arguments)?;
    let seconds = began.elapsed().as_secs_f64();
    let rate = arguments.count as f64 / seconds;
    if arguments.output.is_json() {
        let result = json!({
            "seconds": seconds,
            "requests": arguments.count,
            "requests-per-second": rate,
            "bytes-per-second": rate * len as f64,
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else if !arguments.quiet {
        println!("Run completed in {seconds:.3} seconds: {rate:.0} requests a second.");
    }
    Ok(0)
}

/// Where requests go.
struct Rounds<'a> {
    disk: &'a dyn BlockBackend,
    len: u64,
    step: u64,
    start: u64,
}

/// What is to be done still.
struct Left {
    /// Where the next request goes.
    at: u64,
    count: u64,
}

impl Rounds<'_> {
    fn run(&self, arguments: &BenchArgs) -> Result<()> {
        let depth = usize::from(arguments.depth);
        // A batch ends with its slowest request: with several of them, others are under way meanwhile. A flush is for
        // what was before it.
        let lanes = if arguments.flush_interval > 0 { 1 } else { depth.div_ceil(LANE) };
        let left = Mutex::new(Left { at: self.start, count: arguments.count });
        thread::scope(|scope| {
            let lane = |number: usize| {
                let share = depth / lanes + usize::from(number < depth % lanes);
                let left = &left;
                scope.spawn(move || self.lane(arguments, share, left))
            };
            let others: Vec<_> = (1..lanes).map(lane).collect();
            let first = self.lane(arguments, depth.div_ceil(lanes), &left);
            others.into_iter().fold(first, |result, other| {
                result.and(other.join().unwrap_or_else(|_| bail!("A thread of the benchmark panicked")))
            })
        })?;
        if arguments.write {
            self.disk.flush()?
        }
        Ok(())
    }

    /// Offsets of the next requests, so many at most.
    fn take(&self, left: &Mutex<Left>, most: usize) -> Vec<u64> {
        let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
        let now = left.count.min(most as u64);
        left.count -= now;
        let next = |_| {
            let at = left.at;
            left.at += self.step;
            if left.at.saturating_add(self.len) > self.disk.size() {
                left.at = self.start;
            }
            at
        };
        (0..now).map(next).collect()
    }

    /// Does requests, so many at the same time, until none is left.
    fn lane(&self, arguments: &BenchArgs, depth: usize, left: &Mutex<Left>) -> Result<()> {
        let len = self.len as usize;
        let mut memory = vec![0; len.next_multiple_of(ALIGNMENT) * depth + ALIGNMENT];
        let skip = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let mut unflushed = 0;
        loop {
            let offsets = self.take(left, depth);
            if offsets.is_empty() {
                return Ok(());
            }
            unflushed += offsets.len() as u64;
            let buffers = memory[skip..].chunks_exact_mut(len.next_multiple_of(ALIGNMENT));
            let transfer = |(at, buffer)| {
                let buffer: &mut [u8] = buffer;
                let buffer = &mut buffer[..len];
                let bytes = match arguments.write {
                    true => Buffers::Write(vec![IoSlice::new(buffer)]),
                    false => Buffers::Read(vec![IoSliceMut::new(buffer)]),
                };
                Transfer::new(at, bytes)
            };
            let mut batch: Vec<Transfer<'_>> = offsets.into_iter().zip(buffers).map(transfer).collect();
            self.disk.transfer(&mut batch.iter_mut().collect::<Vec<_>>());
            batch.into_iter().try_for_each(|transfer| transfer.result)?;
            if arguments.flush_interval > 0 && unflushed >= arguments.flush_interval {
                self.disk.flush()?;
                unflushed = 0;
            }
        }
    }
}
