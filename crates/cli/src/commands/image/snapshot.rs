//! `vireo image snapshot`.

use super::{Folders, Output, human, open};
use anyhow::{Context, Result};
use block::{BackingPolicy, SnapshotInfo};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    #[command(flatten)]
    action: Action,
    #[command(flatten)]
    output: Output,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    /// Image
    file: PathBuf,
}

#[derive(Debug, Args)]
#[group(required = false, multiple = false)]
struct Action {
    /// List the snapshots; this is done without any other option
    #[arg(short)]
    list: bool,
    /// Make a snapshot
    #[arg(short, value_name = "NAME")]
    create: Option<String>,
    /// Go back to a snapshot; changes since then are lost
    #[arg(short, value_name = "NAME")]
    apply: Option<String>,
    /// Delete a snapshot
    #[arg(short, value_name = "NAME")]
    delete: Option<String>,
}

pub fn run(arguments: &SnapshotArgs, folders: &Folders) -> Result<u8> {
    let action = &arguments.action;
    let list = action.create.is_none() && action.apply.is_none() && action.delete.is_none();
    let mut options = if list { folders.reading(&arguments.file) } else { folders.writing(&arguments.file) };
    // Snapshots of a chain's top do not concern what is below.
    options.backing = BackingPolicy::Ignore;
    let image = open(&arguments.file, arguments.format.as_deref(), &options)?;
    let snapshots = image
        .snapshots()
        .with_context(|| format!("{}: this format has no snapshots", arguments.file.display()))?;
    if let Some(name) = &action.create {
        snapshots.create(name)?;
    } else if let Some(name) = &action.apply {
        snapshots.revert(name)?;
    } else if let Some(name) = &action.delete {
        snapshots.delete(name)?;
    } else if !arguments.output.is_json() {
        print(&snapshots.list()?);
    }
    if arguments.output.is_json() {
        println!("{}", serde_json::to_string_pretty(&snapshots.list()?)?);
    }
    Ok(0)
}

pub fn print(list: &[SnapshotInfo]) {
    if list.is_empty() {
        return;
    }
    println!("Snapshot list:");
    println!("{:<6} {:<20} {:>12} {:>12} {:>20}", "ID", "NAME", "VM STATE", "DISK", "DATE (UTC)");
    for snapshot in list {
        println!(
            "{:<6} {:<20} {:>12} {:>12} {:>20}",
            snapshot.id,
            snapshot.name,
            human(snapshot.vm_state_size),
            human(snapshot.disk_size),
            date(snapshot.date_sec)
        );
    }
}

/// Date and time of the proleptic Gregorian calendar.
fn date(seconds: u32) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let (mut year, mut day) = (1970, days);
    let leap = |year: u32| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = |year: u32| if leap(year) { 366 } else { 365 };
    while day >= length(year) {
        day -= length(year);
        year += 1;
    }
    let mut month = 0;
    let february = length(year) - 337;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    format!(
        "{year}-{:02}-{:02} {:02}:{:02}:{:02}",
        month + 1,
        day + 1,
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::date;

    /// Checked with `date -u -d @N`.
    #[test]
    fn seconds_become_dates() {
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(date(1_735_689_599), "2024-12-31 23:59:59");
    }
}
