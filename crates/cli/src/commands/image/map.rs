//! `vireo image map`.

use super::{Folders, Output, open, size};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct MapArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// First byte of the disk
    #[arg(short, long, default_value = "0")]
    start_offset: String,
    /// Bytes from there on; without, all
    #[arg(short = 'l', long)]
    max_length: Option<String>,
    #[command(flatten)]
    output: Output,
    /// Image
    file: PathBuf,
}

pub fn run(arguments: &MapArgs, folders: &Folders) -> Result<u8> {
    let image = open(&arguments.file, arguments.format.as_deref(), &folders.reading(&arguments.file))?;
    let start = size(&arguments.start_offset)?.min(image.size());
    let length = arguments.max_length.as_deref().map(size).transpose()?.unwrap_or(u64::MAX);
    let end = start.saturating_add(length).min(image.size());
    let extents = block::extents(&*image, start..end)?;
    if arguments.output.is_json() {
        println!("{}", serde_json::to_string(&extents)?.replace("},{", "},\n{"));
        return Ok(0);
    }
    println!("{:<16} {:<16} {:<16} {:<6} File", "Offset", "Length", "Mapped to", "Layer");
    let mut files = vec![arguments.file.clone()];
    let mut layer = image.backing();
    while let Some(image) = layer {
        files.push(image.info()?.filename);
        layer = image.backing();
    }
    for extent in extents.iter().filter(|extent| extent.data) {
        let place = extent.offset.map_or("compressed".to_owned(), |offset| format!("{offset:#x}"));
        let file =
            files.get(extent.depth as usize).map(|file| file.display().to_string()).unwrap_or_default();
        println!("{:<#16x} {:<#16x} {place:<16} {:<6} {file}", extent.start, extent.length, extent.depth);
    }
    Ok(0)
}
