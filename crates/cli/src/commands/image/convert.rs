//! `vireo image convert`.

use super::progress::Progress;
use super::{Folders, Output, TargetFormat, is_zero_when_made, open, size, wants_help};
use anyhow::{Context, Result, bail};
use block::{BackingPolicy, CacheMode, CopyOptions, DiskImage, OpenOptions};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vmm::disks::DiskElsewhere;

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Format of the source; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    #[command(flatten)]
    target_format: TargetFormat,
    /// Compress
    #[arg(short, long)]
    compress: bool,
    /// Show progress on a terminal
    #[arg(short, long)]
    progress: bool,
    /// Threads that read and write, 1 to 16; without, 8 where an image is on the network or past the page
    /// cache, else one more than there are processors, at most 8
    #[arg(short = 'm', value_name = "THREADS", value_parser = clap::value_parser!(u8).range(1..=16))]
    threads: Option<u8>,
    /// Write in any order: faster, and the target is more scattered
    #[arg(short = 'W')]
    any_order: bool,
    /// Zeros of at least this size make the target sparse; 0 writes them
    #[arg(short = 'S', value_name = "SIZE", default_value = "4k")]
    sparse: String,
    /// How the target is written. writeback: it is on the host's disk when the command ends; unsafe: the host writes it
    /// some time, as qemu-img does unless it is told otherwise; writethrough: every write waits for the disk; none and
    /// directsync: as writeback and writethrough, past the host's page cache
    #[arg(short = 't', value_name = "CACHE", default_value = "writeback", value_parser = CacheMode::named)]
    target_cache: CacheMode,
    /// How the source is read: none and directsync go past the host's page cache
    #[arg(short = 'T', value_name = "CACHE", default_value = "writeback", value_parser = CacheMode::named)]
    source_cache: CacheMode,
    /// The target exists: keep it and write into it
    #[arg(short = 'n')]
    no_create: bool,
    /// Backing file of the target; what reads the same there is not copied
    #[arg(short = 'B', value_name = "FILE")]
    backing: Option<String>,
    /// Format of the backing file
    #[arg(short = 'F', value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
    /// Image to read
    source: PathBuf,
    /// Image to make
    target: PathBuf,
}

pub fn run(arguments: &ConvertArgs, folders: &Folders) -> Result<u8> {
    if wants_help(&arguments.target_format.options, &arguments.target_format.name)? {
        return Ok(0);
    }
    let reading = OpenOptions { cache: arguments.source_cache, ..folders.reading(&arguments.source) };
    let source = open(&arguments.source, arguments.format.as_deref(), &reading)?;
    let target = target(arguments, folders, source.size())?;
    if target.size() < source.size() {
        bail!("{} is smaller than the source", arguments.target.display());
    }
    let flush_each = arguments.target_cache.flushes_writes();
    let find_zeros = size(&arguments.sparse)?;
    let progress = Progress::new(source.size(), arguments.progress && !arguments.quiet);
    if target.backing().is_some() {
        let copied = super::chain::copy_differences(&*source, &*target, flush_each, &progress);
        copied.context("copying what differs from the backing file")?;
    } else {
        let options = CopyOptions {
            threads: threads(arguments)?,
            compress: arguments.compress,
            any_order: arguments.any_order,
            target_is_zero: !arguments.no_create
                && is_zero_when_made(&arguments.target, &arguments.target_format.name),
            find_zeros,
            flush_each,
            progress: &|bytes| progress.add(bytes),
        };
        block::copy(&*source, 0..source.size(), &*target, &options).with_context(|| {
            let (source, target) = (arguments.source.display(), arguments.target.display());
            format!("copying {source} to {target}, which is not complete")
        })?;
    }
    target.flush().with_context(|| format!("writing {} to its disk", arguments.target.display()))?;
    drop(progress);
    let facts = json!({
        "source": arguments.source,
        "target": arguments.target,
        "format": arguments.target_format.name,
        "virtual-size": source.size(),
    });
    arguments.output.report(true, &facts, "")?;
    Ok(0)
}

/// Few threads keep their bytes in the processors' caches; many have more requests under way where those take long.
fn threads(arguments: &ConvertArgs) -> Result<usize> {
    const MANY: usize = 8;
    let mut slow = arguments.source_cache.bypasses_host() || arguments.target_cache.bypasses_host();
    for path in [&arguments.source, &arguments.target] {
        slow |= http_disk::is_address(path) || DiskElsewhere::parse(path)?.is_some();
    }
    let processors = std::thread::available_parallelism().map_or(MANY, usize::from);
    Ok(match arguments.threads {
        Some(threads) => threads.into(),
        None if slow => MANY,
        None => (processors + 1).min(MANY),
    })
}

fn target(arguments: &ConvertArgs, folders: &Folders, size: u64) -> Result<Arc<dyn DiskImage>> {
    let path: &Path = &arguments.target;
    let cache = arguments.target_cache;
    let mut passphrase = folders.passphrase.clone();
    if DiskElsewhere::parse(path)?.is_some() {
        if !arguments.no_create && arguments.target_format.name != "raw" {
            bail!(
                "An image cannot be made on an NBD server or an iSCSI target; write into the one that is there with -n"
            );
        }
        let open_options =
            OpenOptions { backing: BackingPolicy::Anywhere, passphrase, cache, ..OpenOptions::default() };
        return open(path, Some(&arguments.target_format.name), &open_options);
    }
    if !arguments.no_create {
        if is_same_file(path, &arguments.source) {
            bail!("Source and target are the same file");
        }
        let mut options = folders.creating(size, &arguments.target_format.options)?;
        passphrase.clone_from(&options.passphrase);
        let backing = arguments.backing.clone().or_else(|| options.take("backing_file"));
        let format = arguments.backing_format.clone().or_else(|| options.take("backing_fmt"));
        if let Some(name) = backing {
            options.backing = Some((name, format.context("A backing file needs its format: -F FORMAT")?));
        }
        options.cache = cache;
        block::create(path, &arguments.target_format.name, options)?;
    }
    let open = OpenOptions { backing: BackingPolicy::Anywhere, passphrase, cache, ..OpenOptions::default() };
    Ok(block::open(path, &arguments.target_format.name, &open)?)
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
