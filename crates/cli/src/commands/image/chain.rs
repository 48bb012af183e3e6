//! `vireo image commit` and `rebase`.

use super::progress::Progress;
use super::{Folders, Output, format_of, open};
use anyhow::{Context, Result, bail};
use block::{BackingPolicy, CacheMode, DiskImage, OpenOptions};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Bytes that are looked at together.
const CHUNK: u64 = 1 << 20;

#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// Keep the changes in the image as well
    #[arg(short = 'd')]
    keep: bool,
    /// How the backing file is written: writeback, writethrough, none, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", default_value = "writeback", value_parser = CacheMode::named)]
    cache: CacheMode,
    /// Show progress on a terminal
    #[arg(short, long)]
    progress: bool,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
    /// Image
    file: PathBuf,
}

pub fn commit(arguments: &CommitArgs, folders: &Folders) -> Result<u8> {
    let path = &arguments.file;
    // What the image itself has is all that is needed of it.
    let cache = arguments.cache;
    let alone = OpenOptions { backing: BackingPolicy::Ignore, cache, ..OpenOptions::default() };
    let image = open(path, arguments.format.as_deref(), &alone)?;
    let info = image.info()?;
    let (Some(name), Some(format)) = (&info.backing_filename, &info.backing_filename_format) else {
        bail!("{} names no backing file with its format", path.display());
    };
    let base_path = block::referred_file(path, name, &folders.writing(path))?;
    let base = block::open(&base_path, format, &OpenOptions { cache, ..folders.writing(&base_path) })?;
    if base.size() < image.size() {
        base.resize(image.size())?;
    }
    let progress = Progress::new(image.size(), arguments.progress && !arguments.quiet);
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < image.size() {
        let extent = image.block_status(at, (image.size() - at).min(CHUNK))?;
        let part = &mut buffer[..extent.length as usize];
        if extent.present && extent.zero {
            base.write_zeroes(at, extent.length, true)?;
        } else if extent.present {
            image.read_bytes(at, part)?;
            base.write_bytes(at, part)?;
        }
        if extent.present && cache.flushes_writes() {
            base.flush()?;
        }
        at += extent.length;
        progress.add(extent.length);
    }
    base.flush()?;
    if !arguments.keep {
        image.make_empty()?;
        image.flush()?;
    }
    drop(progress);
    let facts = json!({ "filename": path, "committed-to": base_path });
    let text = format!("Image committed to {}", base_path.display());
    arguments.output.report(arguments.quiet, &facts, &text)?;
    Ok(0)
}

#[derive(Debug, Args)]
pub struct RebaseArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// The new backing file, as it shall be written into the image; empty: none any more
    #[arg(short, long, value_name = "FILE")]
    backing: String,
    /// Its format
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Only change the name: the content of both must be the same
    #[arg(short = 'u')]
    only_name: bool,
    /// How the image is written: writeback, writethrough, none, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", default_value = "writeback", value_parser = CacheMode::named)]
    cache: CacheMode,
    /// How the new backing file is read
    #[arg(short = 'T', value_name = "CACHE", default_value = "writeback", value_parser = CacheMode::named)]
    source_cache: CacheMode,
    /// Show progress on a terminal
    #[arg(short, long)]
    progress: bool,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
    /// Image
    file: PathBuf,
}

pub fn rebase(arguments: &RebaseArgs, folders: &Folders) -> Result<u8> {
    let path = &arguments.file;
    let format = format_of(path, arguments.format.as_deref())?;
    let backing = match (arguments.backing.as_str(), &arguments.backing_format) {
        ("", _) => None,
        (name, Some(format)) => Some((name, format.as_str())),
        (_, None) => bail!("A backing file needs its format: -F FORMAT"),
    };
    let mut options = OpenOptions { cache: arguments.cache, ..folders.writing(path) };
    if arguments.only_name {
        options.backing = BackingPolicy::Ignore;
    }
    let image = block::open(path, &format, &options)?;
    if !arguments.only_name {
        let base = match backing {
            Some((name, format)) => {
                let file = path.parent().map_or(PathBuf::from(name), |folder| folder.join(name));
                let cache = arguments.source_cache;
                let policy =
                    OpenOptions { backing: BackingPolicy::Anywhere, cache, ..OpenOptions::reading() };
                Some(block::open(&file, format, &policy).context("the new backing file")?)
            }
            None => None,
        };
        let progress = Progress::new(image.size(), arguments.progress && !arguments.quiet);
        keep_content(&*image, base.as_deref(), arguments.cache.flushes_writes(), &progress)?;
    }
    image.set_backing(backing)?;
    image.flush()?;
    let (name, format) = backing.unzip();
    let facts = json!({ "filename": path, "backing-filename": name, "backing-filename-format": format });
    arguments.output.report(arguments.quiet, &facts, "")?;
    Ok(0)
}

/// Writes into the image what reads differently in its new base.
fn keep_content(
    image: &dyn DiskImage,
    base: Option<&dyn DiskImage>,
    flush_each: bool,
    progress: &Progress,
) -> Result<()> {
    let (mut old, mut new) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut at = 0;
    while at < image.size() {
        let extent = image.block_status(at, (image.size() - at).min(CHUNK))?;
        let len = extent.length;
        if !extent.present || extent.depth > 0 {
            let (old, new) = (&mut old[..len as usize], &mut new[..len as usize]);
            image.read_bytes(at, old)?;
            read_or_zeros(base, at, new)?;
            write_differences(image, at, old, new, flush_each)?;
        }
        at += len;
        progress.add(len);
    }
    Ok(())
}

/// Writes to `target` what `source` has otherwise.
pub fn copy_differences(
    source: &dyn DiskImage,
    target: &dyn DiskImage,
    flush_each: bool,
    progress: &Progress,
) -> Result<()> {
    let (mut wanted, mut there) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut at = 0;
    while at < source.size() {
        let len = (source.size() - at).min(CHUNK);
        let (wanted, there) = (&mut wanted[..len as usize], &mut there[..len as usize]);
        source.read_bytes(at, wanted)?;
        target.read_bytes(at, there)?;
        write_differences(target, at, wanted, there, flush_each)?;
        at += len;
        progress.add(len);
    }
    Ok(())
}

/// Writes the clusters of `wanted` that `there` has otherwise.
fn write_differences(
    target: &dyn DiskImage,
    at: u64,
    wanted: &[u8],
    there: &[u8],
    flush_each: bool,
) -> Result<()> {
    let cluster = target.cluster_size().clamp(4096, CHUNK) as usize;
    for start in (0..wanted.len()).step_by(cluster) {
        let range = start..wanted.len().min(start + cluster);
        let part = &wanted[range.clone()];
        if part == &there[range] {
            continue;
        }
        if block::is_zero(part) {
            target.write_zeroes(at + start as u64, part.len() as u64, true)?;
        } else {
            target.write_bytes(at + start as u64, part)?;
        }
        if flush_each {
            target.flush()?;
        }
    }
    Ok(())
}

/// Reads an image that may end earlier.
pub fn read_or_zeros(image: Option<&dyn DiskImage>, at: u64, buffer: &mut [u8]) -> Result<()> {
    let there = image.map_or(0, |image| image.size().saturating_sub(at).min(buffer.len() as u64)) as usize;
    let (first, rest) = buffer.split_at_mut(there);
    if let Some(image) = image
        && there > 0
    {
        image.read_bytes(at, first)?;
    }
    rest.fill(0);
    Ok(())
}
