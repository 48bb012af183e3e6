//! `vireo image dd`.

use super::{Folders, Output, is_zero_when_made, open, size};
use anyhow::{Context, Result, bail};
use block::CopyOptions;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct DdArgs {
    /// Format of the source; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// Format of the target
    #[arg(short = 'O', long, value_name = "FORMAT", default_value = "raw")]
    target_format: String,
    #[command(flatten)]
    output: Output,
    /// if=FILE of=FILE [bs=SIZE] [count=BLOCKS] [skip=BLOCKS]
    #[arg(required = true)]
    operands: Vec<String>,
}

pub fn run(arguments: &DdArgs, folders: &Folders) -> Result<u8> {
    let (mut input, mut output, mut block_size, mut count, mut skip) = (None, None, 512, None, 0);
    for operand in &arguments.operands {
        match operand.split_once('=') {
            Some(("if", file)) => input = Some(PathBuf::from(file)),
            Some(("of", file)) => output = Some(PathBuf::from(file)),
            Some(("bs", text)) => block_size = size(text)?,
            Some(("count", text)) => count = Some(size(text)?),
            Some(("skip", text)) => skip = size(text)?,
            _ => bail!("{operand:?} is no operand; known: if=, of=, bs=, count=, skip="),
        }
    }
    let input = input.context("if=FILE is needed")?;
    let output: &Path = &output.context("of=FILE is needed")?;
    if block_size == 0 || !block_size.is_multiple_of(512) {
        bail!("bs={block_size} is no multiple of 512");
    }
    let source = open(&input, arguments.format.as_deref(), &folders.reading(&input))?;
    let bytes = |blocks: u64| blocks.saturating_mul(block_size);
    let start = bytes(skip).min(source.size());
    let end = count.map_or(u64::MAX, |count| start.saturating_add(bytes(count))).min(source.size());
    if output.exists() && output.canonicalize()? == input.canonicalize()? {
        bail!("Source and target are the same file");
    }
    let options = folders.creating(end - start, &[])?;
    block::create(output, &arguments.target_format, options)?;
    let target = block::open(output, &arguments.target_format, &folders.writing(output))?;
    let options = CopyOptions {
        threads: 1,
        compress: false,
        any_order: false,
        target_is_zero: is_zero_when_made(output, &arguments.target_format),
        find_zeros: 4096,
        flush_each: false,
        progress: &|_| {},
    };
    let copied = block::copy(&*source, start..end, &*target, &options).and_then(|()| target.flush());
    copied.with_context(|| {
        format!("copying {} to {}, which is not complete", input.display(), output.display())
    })?;
    let facts = json!({ "source": input, "target": output, "bytes": end - start });
    arguments.output.report(true, &facts, "")?;
    Ok(0)
}
