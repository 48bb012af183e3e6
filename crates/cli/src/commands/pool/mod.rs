//! `vireo pool`: pools of disks, and the volumes in them.

mod info;
mod maintain;
mod volume;

use crate::commands::image::size;
use anyhow::Result;
use block::pool::{CHUNK_DEFAULT, OpenPool, Pool, PoolFile};
use clap::{Args, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  truncate -s 100G a.img b.img
  vireo pool create web.pool --member a.img --member b.img
  vireo pool volume create web.pool root --size 20G --layout mirrored
  vireo image convert -O pool -o layout=striped disk.qcow2 web.pool/data
  vireo run --disk web.pool/root,format=pool …
  vireo pool volume snapshot web.pool root before-upgrade
  vireo pool volume revert web.pool root before-upgrade
  vireo pool volume clone web.pool root@before-upgrade test
  vireo pool volume checksums web.pool root on
  vireo pool add web.pool c.img && vireo pool remove web.pool a.img")]
pub struct PoolArgs {
    /// Use the pool without members that are missing; what is written then reaches them by a rebuild
    #[arg(long, global = true)]
    degraded: bool,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Make an empty pool of files or block devices, and the pool file that names them
    Create(CreateArgs),
    /// Tell what is in a pool, and what it costs
    Info(info::InfoArgs),
    /// Add a member; what it holds is lost
    Add(AddArgs),
    /// Move everything off a member and take it out of the pool
    Remove(RemoveArgs),
    /// Make, list, change, clone and delete volumes and their snapshots
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Read everything, check it by its checksums, and compare the copies of mirrored volumes
    Scrub(maintain::ScrubArgs),
    /// Take members that came back into use, and make the copies that are missing
    Rebuild(maintain::RebuildArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Pool file to make
    pool: PathBuf,
    /// File or block device; relative paths begin at the pool file's directory. Repeat for several
    #[arg(long, value_name = "PATH", required = true)]
    member: Vec<PathBuf>,
    /// Bytes of a chunk, the unit of space: a power of two from 64k to 64M; without, 1M
    #[arg(long, value_name = "SIZE")]
    chunk: Option<String>,
    /// Take members of other pools, and replace a pool file
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct AddArgs {
    /// Pool file
    pool: PathBuf,
    /// File or block device; a relative path begins at the pool file's directory
    member: PathBuf,
    /// Take a member of another pool
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// Pool file
    pool: PathBuf,
    /// Its path, or the number that pool info shows
    member: String,
}

/// What every command has in common.
#[derive(Clone, Copy)]
struct Common {
    degraded: bool,
    json: bool,
}

impl Common {
    fn read(self, path: &std::path::Path) -> Result<Arc<Pool>> {
        Ok(PoolFile::open(path, OpenPool { read_only: true, degraded: self.degraded })?)
    }

    fn write(self, path: &std::path::Path) -> Result<Arc<Pool>> {
        Ok(PoolFile::open(path, OpenPool { read_only: false, degraded: self.degraded })?)
    }

    /// Says what was done.
    fn done(self, what: &str, number: u64) {
        if self.json {
            println!("{{\"{what}\": {number}}}");
        } else {
            println!("{number} {}", what.replace('-', " "));
        }
    }
}

/// Counts on a terminal.
fn count(number: u64) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{number} chunks ");
        let _ = std::io::stderr().flush();
    }
}

pub fn run(arguments: &PoolArgs) -> Result<u8> {
    let common = Common { degraded: arguments.degraded, json: arguments.json };
    match &arguments.command {
        PoolCommand::Create(arguments) => {
            let chunk = arguments.chunk.as_deref().map_or(Ok(CHUNK_DEFAULT), size)?;
            PoolFile::create(&arguments.pool, &arguments.member, chunk, arguments.force)?;
        }
        PoolCommand::Info(arguments) => info::run(arguments, common)?,
        PoolCommand::Add(arguments) => {
            let pool = common.write(&arguments.pool)?;
            PoolFile::add(&arguments.pool, &pool, &arguments.member, arguments.force)?;
        }
        PoolCommand::Remove(arguments) => {
            let pool = common.write(&arguments.pool)?;
            PoolFile::remove(&arguments.pool, &pool, &arguments.member, &count)?;
        }
        PoolCommand::Volume(command) => volume::run(command, common)?,
        PoolCommand::Scrub(arguments) => return maintain::scrub(arguments, common),
        PoolCommand::Rebuild(arguments) => maintain::rebuild(arguments, common)?,
    }
    Ok(0)
}
