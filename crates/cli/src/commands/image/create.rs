//! `vireo image create`.

use super::{Folders, Output, size, wants_help};
use anyhow::{Context, Result, bail};
use block::{BackingPolicy, OpenOptions};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Format of the image
    #[arg(short, long, default_value = "raw")]
    format: String,
    /// Options of the format (name=value,…); "help" lists them
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Backing file, as it shall be written into the image
    #[arg(short, long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the backing file
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Do not look at the backing file
    #[arg(short = 'u')]
    unsafe_backing: bool,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
    /// File to make; what is there is lost
    file: PathBuf,
    /// Size of the disk (20G); without, that of the backing file
    size: Option<String>,
}

pub fn run(arguments: &CreateArgs, folders: &Folders) -> Result<u8> {
    if wants_help(&arguments.options, &arguments.format)? {
        return Ok(0);
    }
    let mut options = folders.creating(0, &arguments.options)?;
    let name = arguments.backing.clone().or_else(|| options.take("backing_file"));
    let format = arguments.backing_format.clone().or_else(|| options.take("backing_fmt"));
    let mut backing_size = None;
    if let Some(name) = name {
        let format = format.context("A backing file needs its format: -F FORMAT")?;
        if !arguments.unsafe_backing {
            let file = arguments.file.parent().map_or(PathBuf::from(&name), |folder| folder.join(&name));
            let open = OpenOptions { backing: BackingPolicy::Anywhere, ..folders.reading(&file) };
            backing_size = Some(block::open(&file, &format, &open)?.size());
        }
        options.backing = Some((name, format));
    }
    options.size = match (&arguments.size, backing_size) {
        (Some(text), _) => size(text)?.next_multiple_of(512),
        (None, Some(size)) => size,
        (None, None) => bail!("The size of the disk is needed, for example 20G"),
    };
    let size = options.size;
    block::create(&arguments.file, &arguments.format, options)?;
    let facts = json!({ "filename": arguments.file, "format": arguments.format, "virtual-size": size });
    let text = format!("{}: {} of {}", arguments.file.display(), arguments.format, super::human(size));
    arguments.output.report(arguments.quiet, &facts, &text)?;
    Ok(0)
}
