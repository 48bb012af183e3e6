//! `vireo pool scrub` and `vireo pool rebuild`.

use super::{Common, count};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// The exit status of a scrub that leaves something wrong.
const FOUND: u8 = 2;

#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// Pool file
    pool: PathBuf,
    /// Write anew what is wrong: from a copy that is right by its checksum; without checksums, as most copies have it, or
    /// else the first
    #[arg(long)]
    repair: bool,
}

#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// Pool file
    pool: PathBuf,
}

pub fn scrub(arguments: &ScrubArgs, common: Common) -> Result<u8> {
    let pool = if arguments.repair { common.write(&arguments.pool) } else { common.read(&arguments.pool) }?;
    let report = pool.scrub(arguments.repair, &count)?;
    if common.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.findings.iter().for_each(|line| println!("{line}"));
        println!(
            "{} chunks read: {} differ, {} wrong by checksum, {} unreadable, {} lost, {} repaired; {} on too few \
             members",
            report.chunks,
            report.differing,
            report.rotten,
            report.unreadable,
            report.lost,
            report.repaired,
            report.degraded
        );
    }
    Ok(if report.is_clean() { 0 } else { FOUND })
}

pub fn rebuild(arguments: &RebuildArgs, common: Common) -> Result<()> {
    let copied = common.write(&arguments.pool)?.rebuild(&count)?;
    common.done("chunks-copied", copied);
    Ok(())
}
