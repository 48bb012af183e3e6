//! Making and opening pools.

use super::commit::{Log, MemberLog, write_zeros};
use super::record::{MemberId, Place, Record, Slot};
use super::space::Space;
use super::state::State;
use super::stored::{self, Area, CHUNK_MAX, CHUNK_MIN, Loaded, Superblock};
use super::{Disk, Inner, Pool, wrong};
use crate::BlockBackend;
use crate::error::BlockError;
use crate::image::ImageResult;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A member that is offered: its name for messages, and its file. `Err` says why it has none.
pub type Offered = (PathBuf, Result<Arc<dyn BlockBackend>, BlockError>);

/// How a pool is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenPool {
    /// Nothing is written, not even what a power loss left undone.
    pub read_only: bool,
    /// Members may be missing. What is written then is not written to them; they come back with a rebuild.
    pub degraded: bool,
}

/// Fewest chunks of a member.
const CHUNKS_MIN: u64 = 16;

/// Chunks a member of this many bytes has.
pub(super) fn chunks_of(path: &Path, size: u64, chunk: u64) -> ImageResult<u32> {
    let chunks = size / chunk;
    if chunks < CHUNKS_MIN {
        let least = CHUNKS_MIN * chunk;
        return Err(wrong(format!(
            "member {} has {size} bytes; at least {least} are needed",
            path.display()
        )));
    }
    u32::try_from(chunks)
        .map_err(|_| wrong(format!("member {} is too large for these chunks", path.display())))
}

/// Checks that all members can hold the metadata of a pool of this many chunks.
pub(super) fn check_room<'a>(
    members: impl Iterator<Item = (&'a Path, u32)>,
    chunk: u64,
    total: u64,
) -> ImageResult<()> {
    for (path, chunks) in members {
        let size = u64::from(chunks) * chunk;
        let area = stored::area_size(total).next_multiple_of(chunk);
        if stored::state_max(total) > stored::checkpoint_max(size)
            || area > (size / 8).max(2 << 20).max(chunk)
        {
            let text = format!(
                "member {} is too small beside the others to hold the pool's metadata",
                path.display()
            );
            return Err(wrong(text));
        }
    }
    Ok(())
}

/// The areas of a new member, whose log says nothing.
pub(super) fn new_areas(disk: &dyn BlockBackend, chunk: u64, total: u64) -> std::io::Result<MemberLog> {
    let chunks = stored::area_size(total).div_ceil(chunk) as u32;
    let areas = [Area { start: 1, chunks }, Area { start: 1 + chunks, chunks }];
    // The superblock and the roots of another life go first.
    write_zeros(disk, 0, 3 * stored::BLOCK)?;
    write_zeros(disk, chunk, 2 * u64::from(chunks) * chunk)?;
    disk.flush()?;
    Ok(MemberLog { areas, second: true, second_slot: true, at: 0, end: 0 })
}

impl Pool {
    /// Makes an empty pool of these members; what they hold is lost.
    ///
    /// # Errors
    /// When `chunk` is no power of two from [`CHUNK_MIN`] to [`CHUNK_MAX`], or a member is too small.
    pub fn create(members: &[(PathBuf, Arc<dyn BlockBackend>)], chunk: u64) -> ImageResult<u128> {
        if !chunk.is_power_of_two() || !(CHUNK_MIN..=CHUNK_MAX).contains(&chunk) {
            return Err(wrong(format!(
                "chunks of {chunk} bytes; a power of two from 64 KiB to 64 MiB is right"
            )));
        }
        let mut state = State::new(chunk);
        let mut sizes = Vec::new();
        for (path, disk) in members {
            sizes.push(chunks_of(path, disk.size(), chunk)?);
        }
        let total = sizes.iter().copied().map(u64::from).sum();
        check_room(members.iter().map(|(path, _)| path.as_path()).zip(sizes.iter().copied()), chunk, total)?;
        let uuid = u128::from_be_bytes(crate::mapped::random_uuid());
        let mut log = Log { must_checkpoint: true, ..Log::default() };
        let mut disks = BTreeMap::new();
        for (number, ((path, disk), chunks)) in members.iter().zip(sizes).enumerate() {
            let member = MemberId::try_from(number).map_err(wrong)?;
            let own = u128::from_be_bytes(crate::mapped::random_uuid());
            state.apply(&Record::MemberAdded { member, uuid: own, chunks }).map_err(wrong)?;
            let failed = |source| BlockError::io(path, "making it a member of the pool", source);
            log.members.insert(member, new_areas(&**disk, chunk, total).map_err(failed)?);
            stored::write_superblock(&**disk, &Superblock::new(uuid, own, chunk, chunks)).map_err(failed)?;
            disks.insert(member, Disk { path: path.clone(), file: Some(disk.clone()) });
        }
        if disks.is_empty() {
            return Err(wrong("a pool needs at least one member"));
        }
        let pool = Pool::assemble(uuid, state, disks, log, false)?;
        pool.commit()
            .map_err(|source| BlockError::io(Path::new("of the pool"), "writing the metadata", source))?;
        Ok(uuid)
    }

    /// Opens the pool that these members belong to. What a power loss left undone is done: members that are behind
    /// are brought up to date, and mirrored copies that may differ are made equal.
    ///
    /// # Errors
    /// When a member is missing and that was not allowed, when members belong to different pools or went different
    /// ways, or when the metadata are wrong.
    pub fn open(members: Vec<Offered>, options: OpenPool) -> ImageResult<Arc<Pool>> {
        let mut found = Found::default();
        for (path, file) in members {
            match file.and_then(|file| found.look_at(&path, file)) {
                Ok(()) => {}
                Err(error) if error_is_about_content(&error) => return Err(error),
                Err(error) => {
                    found.unusable.push(format!("{}: {}", path.display(), crate::with_causes(&error)))
                }
            }
        }
        let Some(best) = found.best.take() else {
            return Err(wrong(format!("no member can be used: {}", found.unusable.join("; "))));
        };
        let state = best.state;
        let mut disks = BTreeMap::new();
        let mut log = Log { epoch: best.root.epoch, must_checkpoint: true, ..Log::default() };
        for (id, member) in &state.members {
            let present = found.members.remove(&member.uuid);
            if let Some(present) = &present
                && present.chunks != member.chunks
            {
                let text = format!("{} chunks; its fellows know {}", present.chunks, member.chunks);
                return Err(BlockError::metadata(
                    &present.path,
                    0,
                    "the pool's superblock",
                    format!("says {text}"),
                ));
            }
            let disk = match present {
                Some(present) => {
                    log.epoch = log.epoch.max(present.log.as_ref().map_or(0, |(epoch, _)| *epoch));
                    if let Some((_, own)) = present.log {
                        log.members.insert(*id, own);
                    }
                    Disk { path: present.path, file: Some(present.file) }
                }
                None if member.failed || options.degraded => Disk { path: PathBuf::new(), file: None },
                None => {
                    let why = match found.unusable.as_slice() {
                        [] => "the pool file does not name it".to_owned(),
                        reasons => reasons.join("; "),
                    };
                    let text =
                        format!("member {id} is missing ({why}); open the pool without it with --degraded");
                    return Err(wrong(text));
                }
            };
            disks.insert(*id, disk);
        }
        let pool = Pool::assemble(found.pool, state, disks, log, options.read_only)?;
        pool.recover().map_err(|source| BlockError::io(Path::new("of the pool"), "recovering it", source))?;
        Ok(Arc::new(pool))
    }

    fn assemble(
        uuid: u128,
        state: State,
        disks: BTreeMap<MemberId, Disk>,
        mut log: Log,
        read_only: bool,
    ) -> ImageResult<Pool> {
        let mut space = Space::default();
        for (id, member) in &state.members {
            space.add(*id, member.chunks, member.failed);
        }
        let slots = state.layers.values().flat_map(|layer| layer.map.values());
        for place in slots.flat_map(Slot::places) {
            space.claim(*place);
        }
        for ((member, _), chunk) in &state.tables {
            space.claim(Place { member: *member, chunk: *chunk });
        }
        for (member, own) in &mut log.members {
            for (number, area) in own.areas.iter_mut().enumerate() {
                let places: Vec<Place> =
                    (area.start..area.end()).map(|chunk| Place { member: *member, chunk }).collect();
                let claimed = places.iter().take_while(|place| space.claim(**place)).count();
                if claimed == places.len() {
                    continue;
                }
                places.iter().take(claimed).for_each(|place| space.give_back(*place));
                if number == usize::from(own.second) {
                    let path = disks.get(member).map(|disk| disk.path.clone()).unwrap_or_default();
                    let offset = u64::from(area.start) * state.chunk;
                    return Err(BlockError::metadata(
                        &path,
                        offset,
                        "the pool's metadata",
                        "lie where a volume is",
                    ));
                }
                // It was given up before the last checkpoint, which this member missed.
                *area = Area { start: 0, chunks: 0 };
            }
        }
        let inner = Inner { queue: Vec::new(), freed: Vec::new(), space, state };
        Ok(Pool {
            uuid,
            chunk: inner.state.chunk,
            read_only,
            disks: RwLock::new(disks),
            inner: RwLock::new(inner),
            log: Mutex::new(log),
            commits: 0.into(),
            holds: super::Holds::default(),
            stripes: super::Holds::default(),
            making_table: Mutex::default(),
            regions: Mutex::default(),
            gates: Mutex::default(),
            writers: Mutex::default(),
        })
    }

    /// What is to be done after a power loss, and when members are missing.
    fn recover(&self) -> std::io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let missing: Vec<MemberId> = self
            .disks
            .read()
            .iter()
            .filter(|(_, disk)| disk.file.is_none())
            .map(|(member, _)| *member)
            .collect();
        for member in missing {
            self.fail_member(member, std::io::Error::other("No member is left"))?;
        }
        self.commit_with(&mut self.log.lock())?;
        let dirty = self.inner.read().state.dirty.clone();
        self.resync(dirty)
    }
}

/// Wrong content, as opposed to a file that cannot be read.
fn error_is_about_content(error: &BlockError) -> bool {
    matches!(error, BlockError::Option { .. })
}

struct Present {
    path: PathBuf,
    file: Arc<dyn BlockBackend>,
    chunks: u32,
    log: Option<(u64, MemberLog)>,
}

/// What the offered members say.
#[derive(Default)]
struct Found {
    pool: u128,
    chunk: u64,
    members: BTreeMap<u128, Present>,
    unusable: Vec<String>,
    /// The newest state, and whose it is.
    best: Option<Loaded>,
    best_of: u128,
    /// Members that thought others had failed, with these.
    accusers: Vec<(u128, Vec<u128>)>,
}

impl Found {
    fn look_at(&mut self, path: &Path, file: Arc<dyn BlockBackend>) -> ImageResult<()> {
        let superblock = stored::read_superblock(&*file, path)?;
        if self.pool == 0 {
            (self.pool, self.chunk) = (superblock.pool, superblock.chunk);
        }
        if (self.pool, self.chunk) != (superblock.pool, superblock.chunk) {
            return Err(wrong(format!(
                "{} belongs to another pool than the members before it",
                path.display()
            )));
        }
        if self.members.contains_key(&superblock.member) {
            return Err(wrong(format!("{} is a copy of another member, or named twice", path.display())));
        }
        let loaded = stored::load(&*file, path, &superblock);
        let mut present = Present { path: path.to_owned(), file, chunks: superblock.chunks, log: None };
        match loaded {
            Ok(loaded) => {
                let root = &loaded.root;
                let (areas, second, second_slot) = (root.areas, root.second, loaded.second_slot);
                present.log = Some((root.epoch, MemberLog { areas, second, second_slot, at: 0, end: 0 }));
                self.compare(superblock.member, loaded)?;
                self.members.insert(superblock.member, present);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps what is newer.
    fn compare(&mut self, member: u128, loaded: Loaded) -> ImageResult<()> {
        let failed: Vec<u128> =
            loaded.state.members.values().filter(|member| member.failed).map(|member| member.uuid).collect();
        // Two that went on without each other: neither has all that was written.
        let split =
            self.accusers.iter().find(|(other, accused)| accused.contains(&member) && failed.contains(other));
        if split.is_some() {
            let text = "its members were used without each other, each for itself, and differ; name only one side \
                        of them in the pool file and open it with --degraded";
            return Err(wrong(text));
        }
        self.accusers.push((member, failed));
        let newer = |best: &Loaded| (loaded.root.epoch, loaded.batches) > (best.root.epoch, best.batches);
        let accused = |accusers: &[(u128, Vec<u128>)], by: u128, whom: u128| {
            accusers.iter().any(|(other, accused)| *other == by && accused.contains(&whom))
        };
        let replace = match &self.best {
            None => true,
            // Whoever was given up may have counted on for itself, but it does not speak for the pool.
            Some(_) if accused(&self.accusers, self.best_of, member) => false,
            Some(_) if accused(&self.accusers, member, self.best_of) => true,
            Some(best) => newer(best),
        };
        if replace {
            (self.best, self.best_of) = (Some(loaded), member);
        }
        Ok(())
    }
}
