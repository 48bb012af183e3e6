//! What is stored on a member, and how.
//!
//! ```text
//! chunk 0      superblock (0), root slot 0 (4096), root slot 1 (8192)
//! two areas    each a run of chunks: checkpoint, then the log's batches, each beginning at a multiple of 4096
//! the rest     chunks of volumes
//! ```
//!
//! Everything is in a box: magic (8 bytes), length of the content (u32), CRC-32C over the 12 bytes before it and the
//! content (u32), content (postcard). The valid root with the higher epoch counts; it says which area holds the
//! checkpoint of that epoch. Batches of that epoch, numbered from 0, follow without a gap; the first box that is not
//! the expected one ends the log.

use super::record::Record;
use super::state::State;
use crate::BlockBackend;
use crate::crc32c::crc32c;
use crate::error::BlockError;
use crate::image::ImageResult;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::Result;
use std::path::Path;

/// Distance of what must not be torn by writing its neighbour: the largest physical sector in use.
pub(super) const BLOCK: u64 = 4096;
/// Version of everything stored.
const VERSION: u32 = 2;
const SUPERBLOCK: &[u8; 8] = b"VIREOPSB";
const ROOT: &[u8; 8] = b"VIREOPRT";
const CHECKPOINT: &[u8; 8] = b"VIREOPCP";
const BATCH: &[u8; 8] = b"VIREOPLG";
const HEAD: usize = 16;
const ROOTS: [u64; 2] = [BLOCK, 2 * BLOCK];

/// Smallest chunk: the superblock and the roots fit.
pub const CHUNK_MIN: u64 = 64 << 10;
/// Largest chunk.
pub const CHUNK_MAX: u64 = 64 << 20;
/// Bytes of an area that are for the log at least, and of a batch at most.
pub(super) const LOG: u64 = 256 << 10;

/// Bytes of an area with which a pool of this many chunks can always store its state.
pub(super) fn area_size(chunks: u64) -> u64 {
    LOG + (64 << 10) + chunks * 40
}

/// Bytes that the state of a pool of this many chunks may take.
pub(super) fn state_max(chunks: u64) -> u64 {
    area_size(chunks) - LOG - BLOCK
}

/// Bytes that a checkpoint may take on a member of this size. It bounds the memory that a forged member costs.
pub(super) fn checkpoint_max(size: u64) -> u64 {
    (size / 16).max(1 << 20)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Superblock {
    version: u32,
    pub pool: u128,
    pub member: u128,
    pub chunk: u64,
    /// Chunks of the member.
    pub chunks: u32,
}

impl Superblock {
    pub fn new(pool: u128, member: u128, chunk: u64, chunks: u32) -> Self {
        Superblock { version: VERSION, pool, member, chunk, chunks }
    }
}

/// A run of chunks for metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Area {
    pub start: u32,
    pub chunks: u32,
}

impl Area {
    pub fn end(self) -> u32 {
        self.start.saturating_add(self.chunks)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Root {
    pub epoch: u64,
    pub areas: [Area; 2],
    /// The second area holds the checkpoint of this epoch.
    pub second: bool,
    /// Bytes of the checkpoint, with its box.
    pub checkpoint: u64,
}

impl Root {
    pub fn area(&self) -> Area {
        self.areas[usize::from(self.second)]
    }
}

#[derive(Serialize, Deserialize)]
struct Checkpoint {
    epoch: u64,
    state: State,
}

#[derive(Serialize, Deserialize)]
struct Batch {
    epoch: u64,
    number: u64,
    records: Vec<Record>,
}

fn boxed(magic: &[u8; 8], content: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = magic.to_vec();
    bytes.resize(HEAD, 0);
    let mut bytes = postcard::to_extend(content, bytes).map_err(std::io::Error::other)?;
    let len = u32::try_from(bytes.len() - HEAD)
        .map_err(|_| std::io::Error::other("The pool's metadata are more than 4 GiB"))?;
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    let sum = sum_of(&bytes);
    bytes[12..HEAD].copy_from_slice(&sum.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
    Ok(bytes)
}

/// Of a box whose length is right.
fn sum_of(bytes: &[u8]) -> u32 {
    let head = crc32c(bytes.get(..12).unwrap_or_default());
    head.rotate_left(1) ^ crc32c(bytes.get(HEAD..).unwrap_or_default())
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a box that lies in a range of the member; `None` when there is none that is whole.
fn unbox<T: DeserializeOwned>(
    file: &dyn BlockBackend,
    magic: &[u8; 8],
    at: u64,
    max: u64,
) -> Result<Option<(T, u64)>> {
    if max < BLOCK {
        return Ok(None);
    }
    let mut head = [0; HEAD];
    file.read_bytes(at, &mut head)?;
    let len = number(&head, 8).map_or(u64::MAX, u64::from).saturating_add(HEAD as u64);
    if !head.starts_with(magic) || len > max {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    file.read_bytes(at, &mut bytes)?;
    if number(&bytes, 12) != Some(sum_of(&bytes)) {
        return Ok(None);
    }
    let content = postcard::take_from_bytes(bytes.get(HEAD..).unwrap_or_default());
    Ok(content.ok().map(|(content, _)| (content, len.next_multiple_of(BLOCK))))
}

pub(super) fn write_superblock(file: &dyn BlockBackend, superblock: &Superblock) -> Result<()> {
    file.write_bytes(0, &boxed(SUPERBLOCK, superblock)?)
}

/// Reads a member's superblock and compares it with the member's real size.
pub(super) fn read_superblock(file: &dyn BlockBackend, path: &Path) -> ImageResult<Superblock> {
    let wrong = |problem: String| BlockError::metadata(path, 0, "the pool's superblock", problem);
    let found = if file.size() < CHUNK_MIN { Ok(None) } else { unbox(file, SUPERBLOCK, 0, BLOCK) };
    let found: Option<(Superblock, u64)> =
        found.map_err(|source| BlockError::io(path, "reading the superblock", source))?;
    let Some((found, _)) = found else { return Err(wrong("is missing; this is no member of a pool".into())) };
    if found.version != VERSION {
        return Err(wrong(format!("has version {}; this program knows version {VERSION}", found.version)));
    }
    if !found.chunk.is_power_of_two() || !(CHUNK_MIN..=CHUNK_MAX).contains(&found.chunk) {
        return Err(wrong(format!(
            "says chunks of {} bytes; a power of two from 64 KiB to 64 MiB is right",
            found.chunk
        )));
    }
    if u64::from(found.chunks).saturating_mul(found.chunk) > file.size() || found.chunks < 2 {
        let (chunks, size) = (found.chunks, file.size());
        return Err(wrong(format!(
            "says {chunks} chunks of {} bytes; the member has {size} bytes",
            found.chunk
        )));
    }
    Ok(found)
}

/// Whether a file looks like a member of any pool.
pub(super) fn is_member(file: &dyn BlockBackend) -> bool {
    file.size() >= CHUNK_MIN && matches!(unbox::<Superblock>(file, SUPERBLOCK, 0, BLOCK), Ok(Some(_)))
}

/// What a member knew last.
pub(super) struct Loaded {
    pub root: Root,
    /// The root is in the second of its slots.
    pub second_slot: bool,
    pub state: State,
    /// Batches after the checkpoint.
    pub batches: u64,
}

/// Reads the newest root whose checkpoint is whole, and the log that follows.
pub(super) fn load(file: &dyn BlockBackend, path: &Path, superblock: &Superblock) -> ImageResult<Loaded> {
    let failed = |source| BlockError::io(path, "reading the metadata", source);
    let mut roots: Vec<(Root, bool)> = Vec::new();
    for (at, second_slot) in ROOTS.into_iter().zip([false, true]) {
        let root: Option<(Root, u64)> = unbox(file, ROOT, at, BLOCK).map_err(failed)?;
        roots.extend(root.map(|(root, _)| (root, second_slot)));
    }
    roots.sort_by_key(|(root, _)| std::cmp::Reverse(root.epoch));
    for (root, second_slot) in roots {
        check_root(&root, path, superblock)?;
        let area = root.area();
        let (at, max) = (u64::from(area.start) * superblock.chunk, u64::from(area.chunks) * superblock.chunk);
        let found: Option<(Checkpoint, u64)> =
            unbox(file, CHECKPOINT, at, max.min(root.checkpoint)).map_err(failed)?;
        let Some((checkpoint, len)) = found.filter(|(found, _)| found.epoch == root.epoch) else { continue };
        let state = checkpoint.state;
        let mut loaded = Loaded { root, second_slot, state, batches: 0 };
        let wrong =
            |error| BlockError::metadata(path, at, "the pool's checkpoint", format!("is wrong: {error}"));
        if loaded.state.chunk != superblock.chunk {
            return Err(wrong(super::state::contradiction(
                "its chunks are not as large as the superblock says",
            )));
        }
        loaded.state.verify().map_err(wrong)?;
        replay(file, path, &mut loaded, at + len, at + max)?;
        return Ok(loaded);
    }
    Err(BlockError::metadata(
        path,
        BLOCK,
        "the pool's root",
        "is missing: neither slot leads to a checkpoint",
    ))
}

fn check_root(root: &Root, path: &Path, superblock: &Superblock) -> ImageResult<()> {
    let real = u64::from(superblock.chunks) * superblock.chunk;
    let inside = |area: &Area| {
        area.start > 0
            && area.end() <= superblock.chunks
            && u64::from(area.chunks) * superblock.chunk <= (real / 8).max(2 << 20)
    };
    let [first, second] = &root.areas;
    let apart = first.end() <= second.start || second.end() <= first.start;
    if root.areas.iter().all(inside) && apart && root.checkpoint <= checkpoint_max(real) {
        return Ok(());
    }
    let problem =
        format!("names impossible areas: {:?}, checkpoint of {} bytes", root.areas, root.checkpoint);
    Err(BlockError::metadata(path, BLOCK, "the pool's root", problem))
}

fn replay(
    file: &dyn BlockBackend,
    path: &Path,
    loaded: &mut Loaded,
    mut at: u64,
    end: u64,
) -> ImageResult<()> {
    loop {
        let found: Option<(Batch, u64)> = unbox(file, BATCH, at, end.saturating_sub(at).min(LOG))
            .map_err(|source| BlockError::io(path, "reading the log", source))?;
        let expected = |batch: &Batch| batch.epoch == loaded.root.epoch && batch.number == loaded.batches;
        let Some((batch, len)) = found.filter(|(batch, _)| expected(batch)) else { return Ok(()) };
        for record in &batch.records {
            loaded.state.apply(record).map_err(|error| {
                BlockError::metadata(
                    path,
                    at,
                    "the pool's log",
                    format!("contradicts what was before: {error}"),
                )
            })?;
        }
        at += len;
        loaded.batches += 1;
    }
}

/// A state in its box.
pub(super) fn checkpoint(epoch: u64, state: &State) -> Result<Vec<u8>> {
    boxed(CHECKPOINT, &(epoch, state))
}

/// Records in their box.
pub(super) fn batch(epoch: u64, number: u64, records: &[Record]) -> Result<Vec<u8>> {
    boxed(BATCH, &(epoch, number, records))
}

/// Writes the root into one of its slots.
pub(super) fn write_root(file: &dyn BlockBackend, root: &Root, second_slot: bool) -> Result<()> {
    file.write_bytes(ROOTS[usize::from(second_slot)], &boxed(ROOT, root)?)
}
