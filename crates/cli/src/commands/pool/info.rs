//! `vireo pool info`.

use super::Common;
use crate::commands::image::human;
use anyhow::Result;
use block::pool::VolumeInfo;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Pool file
    pool: PathBuf,
}

pub fn run(arguments: &InfoArgs, common: Common) -> Result<()> {
    let info = common.read(&arguments.pool)?.info();
    if common.json {
        println!("{}", serde_json::to_string_pretty(&info)?);
        return Ok(());
    }
    println!("pool {}, chunks of {}", info.uuid, human(info.chunk_size));
    println!("{:>3} {:<32} {:>12} {:>12} {:>12} STATE", "NR", "MEMBER", "SIZE", "USED", "FREE");
    for member in &info.members {
        let path = member.path.display().to_string();
        let path = if path.is_empty() { "-" } else { &path };
        let (size, used, free) = (human(member.size), human(member.used), human(member.free));
        println!("{:>3} {path:<32} {size:>12} {used:>12} {free:>12} {}", member.number, member.state);
    }
    print_volumes(&info.volumes);
    Ok(())
}

/// A line for each volume and snapshot.
pub fn print_volumes(volumes: &[VolumeInfo]) {
    println!("{:<24} {:>12} {:>12} {:<20} PROVISIONING", "VOLUME", "SIZE", "ALLOCATED", "LAYOUT");
    for volume in volumes {
        let degraded = match volume.degraded_chunks {
            0 => String::new(),
            chunks => format!(", degraded: {chunks} chunks"),
        };
        let provisioning = format!("{:?}", volume.provisioning).to_lowercase();
        let template = if volume.template { ", template" } else { "" };
        let checksums = match (volume.checksums, volume.unchecked) {
            (false, _) => String::new(),
            (true, 0) => ", checksums".to_owned(),
            (true, bytes) => format!(", checksums, without: {}", human(bytes)),
        };
        println!(
            "{:<24} {:>12} {:>12} {:<20} {provisioning}{checksums}{template}{degraded}",
            volume.name,
            human(volume.size),
            human(volume.allocated),
            volume.layout.to_string()
        );
        if let Some(origin) = &volume.origin {
            println!("{:<24} {:>12} {:>12} shared with {origin}", "", "", human(volume.shared));
        }
        for snapshot in &volume.snapshots {
            let name = format!("  @{}", snapshot.name);
            let exclusive = human(snapshot.exclusive);
            println!("{name:<24} {:>12} {exclusive:>12} freed if it is deleted", human(snapshot.size));
        }
        if !volume.snapshots.is_empty() {
            println!("{:<24} {:>12} {:>12} written since", "", "", human(volume.redirected));
        }
    }
}
