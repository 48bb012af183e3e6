//! `vireo image resize`.

use super::{Folders, Output, human, open, size};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// Allow a smaller size: what is beyond it is lost
    #[arg(long)]
    shrink: bool,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
    /// Image
    file: PathBuf,
    /// New size (20G), or how much more (+2G) or less (-2G)
    #[arg(allow_hyphen_values = true)]
    size: String,
}

pub fn run(arguments: &ResizeArgs, folders: &Folders) -> Result<u8> {
    let image = open(&arguments.file, arguments.format.as_deref(), &folders.writing(&arguments.file))?;
    let old = image.size();
    let new = match arguments.size.split_at_checked(1) {
        Some(("+", more)) => old.checked_add(size(more)?).context("The size is beyond 16 EiB")?,
        Some(("-", less)) => old.checked_sub(size(less)?).context("The size is below 0")?,
        _ => size(&arguments.size)?,
    };
    let new = new.next_multiple_of(512);
    if new < old && !arguments.shrink {
        bail!(
            "{} bytes are less than the present {old}; what is beyond is lost: allow it with --shrink",
            new
        );
    }
    image.resize(new)?;
    image.flush()?;
    let facts = json!({ "filename": arguments.file, "virtual-size": new });
    let text = format!("{}: {}", arguments.file.display(), human(new));
    arguments.output.report(arguments.quiet, &facts, &text)?;
    Ok(0)
}
