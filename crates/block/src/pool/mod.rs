//! Pools: one or more files and block devices that volumes are made from.
//!
//! A pool's members are divided into chunks. A volume is a [`crate::BlockBackend`] whose chunks are on one member
//! after the other (linear), on several in turn (striped), or on several at once (mirrored). Snapshots redirect: a
//! chunk that a snapshot has is not written any more, the volume takes a new one.
//!
//! The metadata are a [`state::State`] that only [`record::Record`]s change. Every member stores all of it, as a
//! checkpoint and a log of the records since ([`stored`]). What makes a power loss harmless at any moment:
//!
//! - A flush makes the members' data durable first, then the records that lead to them ([`commit`]).
//! - A place that a record freed is used again only when that record is durable.
//! - What a snapshot has, and what an unflushed record still leads to, is never written in place.
//! - A mirrored chunk is written in place only after it is durable that its copies may differ ([`regions`]).
//! - A copy that missed a write is forgotten, durably, before the write is acknowledged ([`request`]).
//!
//! No lock is held across I/O but that of the commit, which only flushes take. Who writes or reads a chunk where it is
//! shares a hold on it, who gives it another place has it alone ([`holds`]).

mod clone;
mod clones;
mod commit;
mod file;
mod holds;
pub(crate) mod image;
mod info;
mod layers;
mod level;
mod manage;
mod members;
mod open;
mod record;
mod regions;
mod relocate;
mod request;
mod scrub;
mod space;
mod state;
mod stored;
mod summed;
mod sums;
mod volume;

pub use file::PoolFile;
pub use info::{MemberInfo, PoolInfo, PoolSnapshotInfo, VolumeInfo};
pub use open::OpenPool;
pub use record::{COPIES_MAX, Layout, Provisioning};
pub use scrub::ScrubReport;
pub use stored::{CHUNK_MAX, CHUNK_MIN};
pub use volume::PoolVolume;

use crate::BlockBackend;
use crate::error::BlockError;
use commit::Log;
use holds::{Hold, Holds};
use parking_lot::{Mutex, RwLock};
use record::{MemberId, Place, Record, VolumeId};
use regions::Regions;
use space::Space;
use state::{Contradiction, State};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Chunk size of a pool when nothing else is said.
pub const CHUNK_DEFAULT: u64 = 1 << 20;

/// A member's file. Without one, the member is missing.
#[derive(Clone)]
struct Disk {
    path: PathBuf,
    file: Option<Arc<dyn BlockBackend>>,
}

/// What is changed together.
struct Inner {
    state: State,
    /// Records the log does not have yet.
    queue: Vec<Record>,
    /// Places that these records freed.
    freed: Vec<Place>,
    space: Space,
}

/// An opened pool.
pub struct Pool {
    uuid: u128,
    chunk: u64,
    read_only: bool,
    disks: RwLock<BTreeMap<MemberId, Disk>>,
    inner: RwLock<Inner>,
    log: Mutex<Log>,
    /// Commits that began.
    commits: AtomicU64,
    holds: Holds,
    /// The same for the parts of chunks that have checksums, [`summed::STRIPE`] bytes each.
    stripes: Holds,
    /// Held while a table of checksums is made.
    making_table: Mutex<()>,
    regions: Mutex<Regions>,
    /// Taken for reading by requests, for writing by what concerns a whole volume; one for each family of clones.
    gates: Mutex<HashMap<VolumeId, Arc<RwLock<()>>>>,
    /// Volumes that are somebody's disk to write to.
    writers: Mutex<HashSet<VolumeId>>,
}

impl Pool {
    /// Bytes in a chunk.
    pub fn chunk_size(&self) -> u64 {
        self.chunk
    }

    /// Changes the state by some records at once.
    fn change(&self, records: Vec<Record>) -> Result<()> {
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        self.inner.write().change(records)
    }

    /// One for all volumes that share layers.
    fn gate(&self, volume: VolumeId) -> Arc<RwLock<()>> {
        let family = self.inner.read().state.family(volume);
        self.gates.lock().entry(family).or_default().clone()
    }

    /// Holds a chunk of a volume, and of those that share layers with it, together with others ([`Holds::share`]).
    fn share(&self, volume: VolumeId, chunk: u32) -> Hold<'_> {
        let family = self.inner.read().state.family(volume);
        self.holds.share(family, chunk.into())
    }

    /// The same without others ([`Holds::alone`]).
    fn alone(&self, volume: VolumeId, chunk: u32) -> Hold<'_> {
        let family = self.inner.read().state.family(volume);
        self.holds.alone(family, chunk.into())
    }

    /// The file of a member, which must not have failed.
    fn disk(&self, member: MemberId) -> Result<Arc<dyn BlockBackend>> {
        let file = self.disks.read().get(&member).and_then(|disk| disk.file.clone());
        file.ok_or_else(|| Error::other(format!("Member {} of the pool is missing", self.name_of(member))))
    }

    fn name_of(&self, member: MemberId) -> String {
        self.disks.read().get(&member).map_or_else(
            || format!("number {member}"),
            |disk| {
                if disk.path.as_os_str().is_empty() {
                    format!("number {member}")
                } else {
                    disk.path.display().to_string()
                }
            },
        )
    }

    /// Members that work, with their files.
    fn healthy_disks(&self) -> Vec<(MemberId, Arc<dyn BlockBackend>)> {
        let inner = self.inner.read();
        let disks = self.disks.read();
        let healthy = disks.iter().filter(|(member, _)| inner.state.is_healthy(**member));
        healthy.filter_map(|(member, disk)| Some((*member, disk.file.clone()?))).collect()
    }

    /// Byte of the member's file where a place begins.
    fn offset(&self, place: Place) -> u64 {
        u64::from(place.chunk) * self.chunk
    }
}

impl Inner {
    fn change(&mut self, records: Vec<Record>) -> Result<()> {
        let chunks: u64 = self.state.members.values().map(|member| u64::from(member.chunks)).sum();
        // Beyond the limit, only what makes the state smaller, or must be said, still goes.
        let grows = records.iter().any(|record| {
            use Record::{Cloned, Mapped, Snapshotted, VolumeCreated, VolumeResized};
            matches!(
                record,
                Mapped { .. }
                    | Snapshotted { .. }
                    | VolumeCreated { .. }
                    | VolumeResized { .. }
                    | Cloned { .. }
            )
        });
        let more = records.len() as u64 * 48 + 4096;
        if grows && self.state.stored_size() + more > stored::state_max(chunks) {
            let text = "The pool's metadata are full; delete snapshots or volumes, or add a member";
            return Err(Error::new(ErrorKind::StorageFull, text));
        }
        for record in records {
            let freed = self.state.apply(&record).map_err(refused)?;
            self.freed.extend(freed);
            self.queue.push(record);
        }
        Ok(())
    }
}

/// A record that does not fit is a request that does not.
fn refused(error: Contradiction) -> Error {
    Error::new(ErrorKind::InvalidInput, error)
}

fn wrong(problem: impl std::fmt::Display) -> BlockError {
    BlockError::option("Pool", problem)
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Nobody is left to hear of an error; without this, the next opening has more to do.
        drop(self.close());
    }
}
