//! `vireo image compare`.

use super::chain::read_or_zeros;
use super::progress::Progress;
use super::{Folders, Output, open};
use anyhow::Result;
use block::{CacheMode, DiskImage, OpenOptions};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

const DIFFERENT: u8 = 1;
const CHUNK: u64 = 2 << 20;

#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 identical, 1 different, 2 and more for errors.")]
pub struct CompareArgs {
    /// Format of the first image
    #[arg(short, long)]
    format: Option<String>,
    /// Format of the second image
    #[arg(short = 'F', long)]
    second_format: Option<String>,
    /// Other sizes are different, too
    #[arg(short, long)]
    strict: bool,
    /// Show progress on a terminal
    #[arg(short, long)]
    progress: bool,
    /// How both are read: none and directsync go past the host's page cache
    #[arg(short = 'T', value_name = "CACHE", default_value = "writeback", value_parser = CacheMode::named)]
    cache: CacheMode,
    /// Say nothing; the exit status tells
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
    /// One image
    first: PathBuf,
    /// The other
    second: PathBuf,
}

pub fn run(arguments: &CompareArgs, folders: &Folders) -> Result<u8> {
    let reading = |file: &PathBuf| OpenOptions { cache: arguments.cache, ..folders.reading(file) };
    let first = open(&arguments.first, arguments.format.as_deref(), &reading(&arguments.first))?;
    let second = open(&arguments.second, arguments.second_format.as_deref(), &reading(&arguments.second))?;
    let same_size = first.size() == second.size();
    let say = |identical: bool, offset: Option<u64>, text: &str| {
        let facts = json!({ "identical": identical, "same-size": same_size, "offset": offset });
        arguments.output.report(arguments.quiet, &facts, text)
    };
    if !same_size && arguments.strict {
        say(false, None, "Strict: the sizes differ!")?;
        return Ok(DIFFERENT);
    }
    if !same_size && !arguments.quiet && !arguments.output.is_json() {
        println!("Warning: the sizes differ!");
    }
    let progress = Progress::new(first.size().max(second.size()), arguments.progress && !arguments.quiet);
    let difference = difference(&*first, &*second, &progress)?;
    drop(progress);
    match difference {
        Some(at) => {
            say(false, Some(at), &format!("Content differs at offset {at}!"))?;
            Ok(DIFFERENT)
        }
        None => {
            say(true, None, "Images are identical.")?;
            Ok(0)
        }
    }
}

/// First byte that differs; what one of them does not have is zeros.
fn difference(first: &dyn DiskImage, second: &dyn DiskImage, progress: &Progress) -> Result<Option<u64>> {
    let size = first.size().max(second.size());
    let (mut a, mut b) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut at = 0;
    while at < size {
        let mut len = (size - at).min(CHUNK);
        let zero = |image: &dyn DiskImage, len: u64| -> Result<(bool, u64)> {
            if at >= image.size() {
                return Ok((true, len));
            }
            let extent = image.block_status(at, len.min(image.size() - at))?;
            Ok((extent.zero, extent.length))
        };
        let (first_zero, first_len) = zero(first, len)?;
        let (second_zero, second_len) = zero(second, first_len)?;
        len = first_len.min(second_len);
        if !(first_zero && second_zero) {
            let (a, b) = (&mut a[..len as usize], &mut b[..len as usize]);
            read_or_zeros(Some(first), at, a)?;
            read_or_zeros(Some(second), at, b)?;
            if a != b {
                return Ok(a.iter().zip(&*b).position(|(a, b)| a != b).map(|byte| at + byte as u64));
            }
        }
        at += len;
        progress.add(len);
    }
    Ok(None)
}
