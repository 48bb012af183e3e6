//! `vireo image check`.

use super::{Output, open};
use anyhow::Result;
use block::{BackingPolicy, CacheMode, OpenOptions, Repair};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Exit statuses, those of `qemu-img check`.
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const FAILED: u8 = 1;

#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 in order, 1 could not be checked, 2 corrupt, 3 only leaked space.")]
pub struct CheckArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// Repair: leaked space only, or everything
    #[arg(short, long, value_enum, num_args = 0..=1, default_missing_value = "all")]
    repair: Option<RepairKind>,
    /// How the image is read: none and directsync go past the host's page cache
    #[arg(short = 'T', value_name = "CACHE", default_value = "writeback", value_parser = CacheMode::named)]
    cache: CacheMode,
    /// Say nothing; the exit status tells
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
    /// Image
    file: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RepairKind {
    Leaks,
    All,
}

pub fn run(arguments: &CheckArgs) -> Result<u8> {
    let repair = match arguments.repair {
        None => Repair::Nothing,
        Some(RepairKind::Leaks) => Repair::Leaks,
        Some(RepairKind::All) => Repair::All,
    };
    let options = OpenOptions {
        read_only: repair == Repair::Nothing,
        backing: BackingPolicy::Ignore,
        for_check: true,
        cache: arguments.cache,
        ..OpenOptions::default()
    };
    let image = open(&arguments.file, arguments.format.as_deref(), &options)?;
    let report = image.check(repair)?;
    if arguments.output.is_json() {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if !arguments.quiet {
        report.findings.iter().for_each(|finding| println!("{finding}"));
        if report.corruptions_fixed + report.leaks_fixed > 0 {
            println!("Repaired: {} errors, {} leaked clusters", report.corruptions_fixed, report.leaks_fixed);
        }
        match (report.corruptions, report.leaks) {
            (0, 0) => println!("No errors were found on the image."),
            (0, leaks) => {
                println!("{leaks} leaked clusters were found: space is wasted, no data are in danger.")
            }
            (errors, leaks) => {
                println!("{errors} errors and {leaks} leaked clusters were found: data may be corrupt.")
            }
        }
        let total = report.total_clusters.max(1);
        println!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            report.allocated_clusters,
            report.total_clusters,
            report.allocated_clusters as f64 * 100.0 / total as f64,
            report.fragmented_clusters as f64 * 100.0 / report.allocated_clusters.max(1) as f64,
            report.compressed_clusters as f64 * 100.0 / report.allocated_clusters.max(1) as f64,
        );
        println!("Image end offset: {}", report.image_end_offset);
    }
    Ok(match &report {
        report if report.corruptions > 0 => CORRUPT,
        report if report.check_errors > 0 => FAILED,
        report if report.leaks > 0 => LEAKS,
        _ => 0,
    })
}
