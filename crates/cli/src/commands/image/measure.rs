//! `vireo image measure`.

use super::{Folders, Output, TargetFormat, open, size, wants_help};
use anyhow::{Result, bail};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct MeasureArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    #[command(flatten)]
    target_format: TargetFormat,
    /// Size of an empty disk, instead of an image
    #[arg(long)]
    size: Option<String>,
    #[command(flatten)]
    output: Output,
    /// Image
    file: Option<PathBuf>,
}

pub fn run(arguments: &MeasureArgs, folders: &Folders) -> Result<u8> {
    if wants_help(&arguments.target_format.options, &arguments.target_format.name)? {
        return Ok(0);
    }
    let (disk, extents) = match (&arguments.file, &arguments.size) {
        (Some(file), None) => {
            let image = open(file, arguments.format.as_deref(), &folders.reading(file))?;
            (image.size(), block::extents(&*image, 0..image.size())?)
        }
        (None, Some(text)) => (size(text)?, Vec::new()),
        _ => bail!("Either an image or --size is needed"),
    };
    let data =
        extents.iter().filter(|extent| !extent.zero).map(|extent| extent.start..extent.start + extent.length);
    let options = folders.creating(disk, &arguments.target_format.options)?;
    let measure =
        block::driver(&arguments.target_format.name)?.measure(options, &data.collect::<Vec<_>>())?;
    if arguments.output.is_json() {
        println!("{}", serde_json::to_string_pretty(&measure)?);
    } else {
        println!("required size: {}", measure.required);
        println!("fully allocated size: {}", measure.fully_allocated);
    }
    Ok(0)
}
