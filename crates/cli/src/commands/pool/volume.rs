//! `vireo pool volume`.

use super::info::print_volumes;
use super::{Common, count};
use crate::commands::image::size;
use anyhow::{Result, bail};
use block::BlockBackend;
use block::pool::{Layout, Provisioning};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make an empty volume
    Create(CreateArgs),
    /// List volumes, their snapshots, and what they cost
    List {
        /// Pool file
        pool: PathBuf,
    },
    /// Delete a volume, or a snapshot (NAME@SNAPSHOT)
    Delete(DeleteArgs),
    /// Change the size of a volume
    Resize(ResizeArgs),
    /// Keep a volume's content under a name
    Snapshot(SnapshotArgs),
    /// Go back to a snapshot: what was written since is lost
    Revert(SnapshotArgs),
    /// Make a volume that shares the content of a snapshot or a template, and takes space for what it writes
    Clone(CloneArgs),
    /// Copy what a clone shares with its source, so that it shares nothing any more
    Flatten(FlattenArgs),
    /// Make a volume a template: it is not written to any more, and clones are made of it by its name
    Template(TemplateArgs),
    /// Turn a volume's checksums on or off; on computes those of what it and its snapshots have
    Checksums(ChecksumsArgs),
    /// Move a volume to other members
    Move(MoveArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LayoutName {
    /// One member is filled after the other
    Linear,
    /// Chunks go round the members
    Striped,
    /// Every chunk is on several members
    Mirrored,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProvisioningName {
    /// Space is taken when it is written to
    Thin,
    /// All space is taken at once, and zeroed when it is written to
    Lazy,
    /// All space is taken and zeroed at once
    Eager,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Pool file
    pool: PathBuf,
    /// Name: letters, digits, '.', '_' and '-'
    name: String,
    /// Bytes of the disk
    #[arg(long)]
    size: String,
    /// Where chunks go
    #[arg(long, value_enum, default_value = "linear")]
    layout: LayoutName,
    /// Copies of a mirrored volume, 2 or 3; without, 2
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=3))]
    copies: Option<u8>,
    /// When space is taken
    #[arg(long, value_enum, default_value = "thin")]
    provisioning: ProvisioningName,
    /// Keep a checksum of every 4 KiB: what rots on a member is an error, or read from another copy
    #[arg(long)]
    checksums: bool,
    /// Member that it may be on, by path or number; repeat for several. Without, all
    #[arg(long = "on", value_name = "MEMBER")]
    members: Vec<String>,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Pool file
    pool: PathBuf,
    /// Volume, or VOLUME@SNAPSHOT
    name: String,
    /// Delete the volume's snapshots with it
    #[arg(long)]
    with_snapshots: bool,
}

#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// Pool file
    pool: PathBuf,
    /// Volume
    name: String,
    /// New size; +SIZE grows and -SIZE shrinks by that
    #[arg(allow_hyphen_values = true)]
    size: String,
    /// Allow a smaller size: what is beyond is lost
    #[arg(long)]
    shrink: bool,
}

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Pool file
    pool: PathBuf,
    /// Volume
    name: String,
    /// Snapshot
    snapshot: String,
}

#[derive(Debug, Args)]
pub struct CloneArgs {
    /// Pool file
    pool: PathBuf,
    /// VOLUME@SNAPSHOT, or a template
    source: String,
    /// Name of the new volume
    name: String,
}

#[derive(Debug, Args)]
pub struct FlattenArgs {
    /// Pool file
    pool: PathBuf,
    /// Clone
    name: String,
}

#[derive(Debug, Args)]
pub struct TemplateArgs {
    /// Pool file
    pool: PathBuf,
    /// Volume
    name: String,
    /// Let it be written to again; clones that were made of it do not change
    #[arg(long)]
    off: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
pub struct ChecksumsArgs {
    /// Pool file
    pool: PathBuf,
    /// Volume
    name: String,
    /// Off forgets those that there are
    #[arg(value_enum)]
    switch: Switch,
}

#[derive(Debug, Args)]
pub struct MoveArgs {
    /// Pool file
    pool: PathBuf,
    /// Volume
    name: String,
    /// Member to move it to, by path or number; repeat for several
    #[arg(long, value_name = "MEMBER", required = true)]
    to: Vec<String>,
}

pub fn run(command: &VolumeCommand, common: Common) -> Result<()> {
    match command {
        VolumeCommand::Create(arguments) => create(arguments, common)?,
        VolumeCommand::List { pool } => {
            let volumes = common.read(pool)?.info().volumes;
            if common.json {
                println!("{}", serde_json::to_string_pretty(&volumes)?);
            } else {
                print_volumes(&volumes);
            }
        }
        VolumeCommand::Delete(arguments) => {
            let pool = common.write(&arguments.pool)?;
            match arguments.name.split_once('@') {
                Some((volume, snapshot)) => pool.delete_snapshot(volume, snapshot)?,
                None => pool.delete_volume(&arguments.name, arguments.with_snapshots)?,
            }
        }
        VolumeCommand::Resize(arguments) => resize(arguments, common)?,
        VolumeCommand::Snapshot(arguments) => {
            common.write(&arguments.pool)?.create_snapshot(&arguments.name, &arguments.snapshot)?;
        }
        VolumeCommand::Revert(arguments) => {
            common.write(&arguments.pool)?.revert(&arguments.name, &arguments.snapshot)?;
        }
        VolumeCommand::Clone(arguments) => {
            common.write(&arguments.pool)?.clone_volume(&arguments.source, &arguments.name)?;
        }
        VolumeCommand::Flatten(arguments) => {
            let copied = common.write(&arguments.pool)?.flatten(&arguments.name, &count)?;
            common.done("chunks-copied", copied);
        }
        VolumeCommand::Template(arguments) => {
            common.write(&arguments.pool)?.set_template(&arguments.name, !arguments.off)?;
        }
        VolumeCommand::Checksums(arguments) => {
            let pool = common.write(&arguments.pool)?;
            let on = arguments.switch == Switch::On;
            let summed = pool.set_checksums(&arguments.name, on, &count)?;
            common.done("chunks-summed", summed);
        }
        VolumeCommand::Move(arguments) => {
            let pool = common.write(&arguments.pool)?;
            let moved = pool.move_volume(&arguments.name, &arguments.to, &count)?;
            common.done("chunks-moved", moved);
        }
    }
    Ok(())
}

fn create(arguments: &CreateArgs, common: Common) -> Result<()> {
    let layout = match (arguments.layout, arguments.copies) {
        (LayoutName::Mirrored, copies) => Layout::Mirrored(copies.unwrap_or(2)),
        (_, Some(_)) => bail!("--copies is for --layout mirrored"),
        (LayoutName::Linear, None) => Layout::Linear,
        (LayoutName::Striped, None) => Layout::Striped,
    };
    let provisioning = match arguments.provisioning {
        ProvisioningName::Thin => Provisioning::Thin,
        ProvisioningName::Lazy => Provisioning::Lazy,
        ProvisioningName::Eager => Provisioning::Eager,
    };
    let bytes = size(&arguments.size)?;
    let pool = common.write(&arguments.pool)?;
    pool.create_volume(&arguments.name, bytes, layout, provisioning, &arguments.members)?;
    if arguments.checksums {
        pool.set_checksums(&arguments.name, true, &count)?;
    }
    Ok(())
}

fn resize(arguments: &ResizeArgs, common: Common) -> Result<()> {
    let pool = common.write(&arguments.pool)?;
    let volume = pool.volume(&arguments.name, false)?;
    let old = volume.size();
    let new = match (arguments.size.strip_prefix('+'), arguments.size.strip_prefix('-')) {
        (Some(more), _) => old.saturating_add(size(more)?),
        (_, Some(less)) => old.saturating_sub(size(less)?),
        _ => size(&arguments.size)?,
    };
    if new < old && !arguments.shrink {
        bail!("Volume {} would lose what is beyond {new} bytes; --shrink allows that", arguments.name);
    }
    Ok(volume.resize(new)?)
}
