//! `vireo image info`.

use super::{Folders, Output, human, open};
use anyhow::Result;
use block::{BackingPolicy, DiskImage, ImageInfo, OpenOptions};
use clap::Args;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// All images of the backing chain
    #[arg(long)]
    backing_chain: bool,
    /// Also while another process has it open
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    output: Output,
    /// Image
    file: PathBuf,
}

pub fn run(arguments: &InfoArgs, folders: &Folders) -> Result<u8> {
    let mut options = folders.reading(&arguments.file);
    options.ignore_locks = arguments.force_share;
    options.for_check = true;
    if !arguments.backing_chain {
        options.backing = BackingPolicy::Ignore;
    }
    let infos = chain(arguments, &options)?;
    if arguments.output.is_json() {
        let text = match infos.as_slice() {
            [info] if !arguments.backing_chain => serde_json::to_string_pretty(info)?,
            infos => serde_json::to_string_pretty(infos)?,
        };
        println!("{text}");
        return Ok(0);
    }
    for (number, info) in infos.iter().enumerate() {
        if number > 0 {
            println!();
        }
        print(info);
    }
    Ok(0)
}

fn chain(arguments: &InfoArgs, options: &OpenOptions) -> Result<Vec<ImageInfo>> {
    let first = open(&arguments.file, arguments.format.as_deref(), options)?;
    let mut image: Option<Arc<dyn DiskImage>> = Some(first);
    let mut infos = Vec::new();
    while let Some(current) = image {
        infos.push(current.info()?);
        image = current.backing();
    }
    Ok(infos)
}

fn print(info: &ImageInfo) {
    println!("image: {}", info.filename.display());
    println!("file format: {}", info.format);
    println!("virtual size: {} ({} bytes)", human(info.virtual_size), info.virtual_size);
    println!("disk size: {}", human(info.actual_size));
    if let Some(cluster) = info.cluster_size {
        println!("cluster_size: {cluster}");
    }
    if let Some(backing) = &info.backing_filename {
        println!("backing file: {backing}");
    }
    if let Some(format) = &info.backing_filename_format {
        println!("backing file format: {format}");
    }
    if info.encrypted {
        println!("encrypted: yes");
    }
    if info.dirty_flag {
        println!("not closed in order: yes");
    }
    super::snapshot::print(&info.snapshots);
    let Some(data) = info.format_specific.get("data").and_then(|data| data.as_object()) else { return };
    println!("Format specific information:");
    for (name, value) in data {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        println!("    {}: {text}", name.replace('-', " "));
    }
}
