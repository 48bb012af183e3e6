//! `vireo image bitmap`.

use super::{Folders, Output, human, open, size};
use anyhow::{Context, Result};
use clap::{ArgGroup, Args};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("action").multiple(false).required(true))]
pub struct BitmapArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// Make a bitmap, which records from now on
    #[arg(long, group = "action")]
    add: bool,
    /// Remove a bitmap
    #[arg(long, group = "action")]
    remove: bool,
    /// Unmark everything
    #[arg(long, group = "action")]
    clear: bool,
    /// Record writes
    #[arg(long, group = "action")]
    enable: bool,
    /// Stop recording
    #[arg(long, group = "action")]
    disable: bool,
    /// Also mark what is marked in this other bitmap of the image
    #[arg(long, value_name = "NAME", group = "action")]
    merge: Option<String>,
    /// List the bitmaps
    #[arg(long, group = "action")]
    list: bool,
    /// Bytes that one bit stands for, of a new bitmap
    #[arg(short, long, value_name = "SIZE", requires = "add")]
    granularity: Option<String>,
    #[command(flatten)]
    output: Output,
    /// Image
    file: PathBuf,
    /// Bitmap
    #[arg(required_unless_present = "list")]
    name: Option<String>,
}

pub fn run(arguments: &BitmapArgs, folders: &Folders) -> Result<u8> {
    let mut options = folders.writing(&arguments.file);
    options.read_only = arguments.list;
    let image = open(&arguments.file, arguments.format.as_deref(), &options)?;
    let bitmaps = image
        .bitmaps()
        .with_context(|| format!("{}: this format has no bitmaps", arguments.file.display()))?;
    let name = arguments.name.as_deref().unwrap_or_default();
    if arguments.add {
        bitmaps.add(name, arguments.granularity.as_deref().map(size).transpose()?, true)?;
    } else if arguments.remove {
        bitmaps.remove(name)?;
    } else if arguments.clear {
        bitmaps.clear(name)?;
    } else if arguments.enable || arguments.disable {
        bitmaps.enable(name, arguments.enable)?;
    } else if let Some(source) = &arguments.merge {
        bitmaps.merge(name, &bitmaps.dirty_ranges(source)?)?;
    } else if !arguments.output.is_json() {
        println!("{:<24} {:>12} {:>12} STATE", "NAME", "GRANULARITY", "DIRTY");
        for bitmap in bitmaps.list()? {
            let state = match (bitmap.in_use, bitmap.enabled) {
                (true, _) => "not stored in order",
                (false, true) => "recording",
                (false, false) => "stopped",
            };
            println!(
                "{:<24} {:>12} {:>12} {state}",
                bitmap.name,
                human(bitmap.granularity),
                human(bitmap.dirty)
            );
        }
    }
    if arguments.output.is_json() {
        println!("{}", serde_json::to_string_pretty(&bitmaps.list()?)?);
    }
    Ok(0)
}
