//! `vireo image partitions`.

use super::{Folders, Output, human, open};
use anyhow::Result;
use block::{Partition, PartitionTable};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is mounted. Start and size are in sectors; --json has the names of sfdisk --json.")]
pub struct PartitionsArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// Also while another process has it open
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    output: Output,
    /// Image
    file: PathBuf,
}

pub fn run(arguments: &PartitionsArgs, folders: &Folders) -> Result<u8> {
    let mut options = folders.reading(&arguments.file);
    options.ignore_locks = arguments.force_share;
    let image = open(&arguments.file, arguments.format.as_deref(), &options)?;
    let table = block::partitions(&*image)?;
    // Without a table the disk may be one file system.
    let whole = match table {
        Some(_) => None,
        None => block::file_system(&*image, 0, image.size())?,
    };
    if arguments.output.is_json() {
        let result = json!({ "partitiontable": table, "filesystem": whole });
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(0);
    }
    match (&table, whole) {
        (Some(table), _) => print(table),
        (None, Some(name)) => println!("No partition table; the whole disk is {name}."),
        (None, None) => println!("No partition table, and nothing that is recognized."),
    }
    Ok(0)
}

fn print(table: &PartitionTable) {
    let label = serde_json::to_value(table.label).ok();
    let label = label.as_ref().and_then(|label| label.as_str()).unwrap_or_default();
    println!("{label}, {}, sectors of {} bytes", table.id, table.sectorsize);
    println!(
        "{:>4} {:>12} {:>12} {:>10}  {:<36} {:<12} NAME",
        "NR", "START", "SECTORS", "SIZE", "TYPE", "CONTENT"
    );
    for partition in &table.partitions {
        let Partition { number, start, size, kind, name, filesystem, bootable, .. } = partition;
        let bytes = human(size.saturating_mul(table.sectorsize));
        let content = filesystem.unwrap_or("-");
        let name = name.as_deref().unwrap_or(if *bootable { "(bootable)" } else { "" });
        println!("{number:>4} {start:>12} {size:>12} {bytes:>10}  {kind:<36} {content:<12} {name}");
    }
    for problem in &table.problems {
        println!("Problem: {problem}");
    }
}
