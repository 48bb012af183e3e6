//! `vireo lvm`: volumes of LVM volume groups, made and removed by the `lvm` tools.

use crate::commands::image::{human, size};
use anyhow::Result;
use block::lvm::{VolumeName, groups, volumes};
use clap::{Args, Subcommand};
use serde_json::json;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vireo lvm list
  vireo lvm create vg0/web --size 20G
  vireo lvm create vg0/test --size 100G --pool thinpool
  vireo image convert -n -O raw web.qcow2 lvm:vg0/web
  vireo run --disk lvm:vg0/web,cache=none …
  vireo lvm snapshot vg0/test before-upgrade
LVM_SYSTEM_DIR and the rest of LVM's configuration are the tools' own.")]
pub struct LvmArgs {
    #[command(subcommand)]
    command: LvmCommand,
}

#[derive(Debug, Subcommand)]
enum LvmCommand {
    /// List volume groups and their volumes
    List {
        /// This group only
        group: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a volume; what its space held before is not erased, unless it is thin
    Create {
        /// GROUP/VOLUME
        volume: String,
        /// Bytes, with K, M, G, T; rounded up to the group's extents
        #[arg(long)]
        size: String,
        /// Make it thin, in this thin pool of the group
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
    },
    /// Make a volume larger
    Grow {
        /// GROUP/VOLUME
        volume: String,
        /// New size in bytes, with K, M, G, T
        #[arg(long)]
        size: String,
    },
    /// Remove a volume; what it holds is lost
    Remove {
        /// GROUP/VOLUME
        volume: String,
    },
    /// Keep a volume's present content as another volume
    Snapshot {
        /// GROUP/VOLUME
        volume: String,
        /// Name of the snapshot in the same group
        name: String,
        /// Bytes for what changes, with K, M, G, T; for volumes that are not thin
        #[arg(long)]
        size: Option<String>,
    },
}

pub fn run(arguments: &LvmArgs) -> Result<u8> {
    match &arguments.command {
        LvmCommand::List { group, json } => list(group.as_deref(), *json)?,
        LvmCommand::Create { volume, size: bytes, pool } => {
            VolumeName::parse(volume)?.create(size(bytes)?, pool.as_deref())?;
        }
        LvmCommand::Grow { volume, size: bytes } => VolumeName::parse(volume)?.grow(size(bytes)?)?,
        LvmCommand::Remove { volume } => VolumeName::parse(volume)?.remove()?,
        LvmCommand::Snapshot { volume, name, size: bytes } => {
            VolumeName::parse(volume)?.snapshot(name, bytes.as_deref().map(size).transpose()?)?;
        }
    }
    Ok(0)
}

fn list(group: Option<&str>, json: bool) -> Result<()> {
    let (groups, volumes) = (groups(group)?, volumes(group)?);
    if json {
        println!("{}", serde_json::to_string_pretty(&json!({ "groups": groups, "volumes": volumes }))?);
        return Ok(());
    }
    for group in &groups {
        println!("{}: {}, {} free", group.name, human(group.size), human(group.free));
        for volume in volumes.iter().filter(|volume| volume.group == group.name) {
            let mut more = String::new();
            for (word, value) in [("pool", &volume.pool), ("snapshot of", &volume.origin)] {
                if !value.is_empty() {
                    more += &format!(", {word} {value}");
                }
            }
            if !volume.used_percent.is_empty() {
                more += &format!(", {} % used", volume.used_percent);
            }
            let state = if volume.is_active() { ", active" } else { "" };
            println!("  {}: {}, {}{more}{state}", volume.name, human(volume.size), volume.layout);
        }
    }
    Ok(())
}
