//! [`TranslationStore`]: translations that survive the run that made them.
//!
//! A store is a directory with one file for each set of [`Dependencies`]. A machine reads its file when it starts,
//! takes translations from it instead of making them, adds those that it had to make, and writes the file anew when
//! it ends. Processors of a machine share the store, so what one has translated the others take, too.
//!
//! # When a translation may be used
//! Never because of an address or a name: a translation is found by the guest's bytes at the place of the page where
//! it is wanted, and used only if all bytes that it was made of are there, in the same mode. What else it depends on,
//! this very program, the features of the host and of the guest's processor, is in the name and in the head of the
//! file.
//!
//! # Trust
//! What is in a file runs with the rights of the process, so a store is trusted as the program itself is: directory and
//! file must belong to the user who runs Vireo, and nobody else may write to them; anything else is refused. A file
//! has a SHA-256 sum over everything in it. One that is damaged, or no store at all, is not used, and replaced at the
//! end. A guest decides which of its bytes are translated, never what becomes of them.
//!
//! Files hold bytes of guests' code, and are readable for their owner only.

mod file;
mod prepare;
#[cfg(test)]
mod tests;

pub use file::StoreError;
pub use prepare::{Preparation, PrepareError, Prepared};

use super::AddressMap;
use super::portable::Portable;
use super::unit::PAGE;
use crate::system::SystemState;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that translations of one file may have.
pub const LARGEST: usize = 128 << 20;

/// Guest bytes in the key of a translation.
const KEY_BYTES: usize = 16;

/// What translations depend on besides the guest's bytes.
pub(crate) type Dependencies = [u8; 32];

/// Translations by key, as they are in the file.
struct Records {
    /// A file's content; its head is only filled in when it is written.
    bytes: Vec<u8>,
    /// Where records start, by key; of several with one key, the others have the next numbers that are free.
    index: AddressMap<u32>,
    /// Bytes that translations may have.
    room: usize,
    /// Translations that had no room.
    left_out: u64,
}

impl Records {
    fn new() -> Self {
        Records { bytes: vec![0; file::HEAD], index: AddressMap::default(), room: LARGEST, left_out: 0 }
    }

    /// The translations with a key, and perhaps others.
    fn at(&self, key: u64) -> impl Iterator<Item = &[u8]> {
        let starts = (0..).map_while(move |number| self.index.get(&key.wrapping_add(number)));
        starts.filter_map(|&start| Some(file::record(&self.bytes, start as usize)?.1))
    }

    /// Adds a translation, unless it is there; whether it was added.
    fn add(&mut self, key: u64, translation: &[u8]) -> bool {
        if self.at(key).any(|there| there == translation) {
            return false;
        }
        let start = self.bytes.len();
        if start + file::RECORD_HEAD + translation.len() > file::HEAD + self.room {
            self.left_out += 1;
            return false;
        }
        file::append(&mut self.bytes, key, translation);
        self.note(key, start);
        true
    }

    /// A record with the key starts there.
    fn note(&mut self, key: u64, start: usize) {
        let free = (0..).map(|number| key.wrapping_add(number)).find(|key| !self.index.contains_key(key));
        self.index.insert(free.unwrap_or(key), start as u32);
    }
}

/// A store, as one set of dependencies sees it.
pub struct TranslationStore {
    directory: PathBuf,
    /// Set when the first processor asks.
    opened: std::sync::OnceLock<Opened>,
}

struct Opened {
    dependencies: Dependencies,
    records: RwLock<Records>,
    /// Something was added.
    changed: AtomicBool,
}

impl std::fmt::Debug for TranslationStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TranslationStore").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Digest of this program: translations hold offsets of its structures.
fn program() -> std::io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    std::io::copy(&mut std::fs::File::open("/proc/self/exe")?, &mut digest)?;
    Ok(digest.finalize().into())
}

/// Digest of everything that translations depend on besides the guest's bytes.
fn dependencies(system: &SystemState) -> std::io::Result<Dependencies> {
    let mut digest = Sha256::new();
    digest.update(program()?);
    digest.update(super::thunks::host_features().map(u8::from));
    digest.update(system.instruction_features().iter().map(|&has| u8::from(has)).collect::<Vec<_>>());
    Ok(digest.finalize().into())
}

/// The first bytes of code at an address in a page, perhaps with [`PLAIN`](super::share::PLAIN).
pub(super) fn head(start: u16, page: &[u8]) -> &[u8] {
    let first = usize::from(start & !super::share::PLAIN);
    page.get(first..page.len().min(first + KEY_BYTES)).unwrap_or_default()
}

/// Key of a translation in a mode, at an address in a page, perhaps with [`PLAIN`](super::share::PLAIN).
fn key(mode: u8, start: u16, page: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (mode, start, head(start, page)).hash(&mut hasher);
    hasher.finish()
}

impl TranslationStore {
    /// The store in a directory, which is made if it is not there.
    ///
    /// # Errors
    /// When the directory cannot be made, is somebody else's, or others may write to it.
    pub fn open(directory: &Path) -> Result<Arc<Self>, StoreError> {
        file::check_directory(directory)?;
        Ok(Arc::new(TranslationStore { directory: directory.to_owned(), opened: std::sync::OnceLock::new() }))
    }

    /// Reads what there is for a processor. All processors of a machine have one model, so the first decides.
    pub(super) fn load(&self, system: &SystemState) {
        self.opened.get_or_init(|| {
            let read = dependencies(system).map_err(|source| StoreError::Io {
                path: "/proc/self/exe".into(),
                doing: "reading",
                source,
            });
            let (dependencies, records) = match read {
                Ok(dependencies) => {
                    let records = file::read(&self.directory, &dependencies);
                    (dependencies, records)
                }
                Err(error) => ([0; 32], Err(error)),
            };
            let records = records.unwrap_or_else(|error| {
                tracing::error!("{error}; translations are made anew");
                Records::new()
            });
            Opened { dependencies, records: RwLock::new(records), changed: AtomicBool::new(false) }
        });
    }

    /// Gives the translation of the code at an address of a page to `take`, if there is one.
    pub(super) fn find<R>(
        &self,
        mode: u8,
        start: u16,
        page: &[u8; PAGE],
        take: impl FnOnce(&Portable<'_>) -> R,
    ) -> Option<R> {
        let records = self.opened.get()?.records.read();
        let found = records.at(key(mode, start, page)).find_map(|record| {
            let block: Portable<'_> = postcard::from_bytes(record).ok()?;
            (block.mode == mode && block.start == start && block.is_of(page)).then_some(block)
        })?;
        Some(take(&found))
    }

    /// Keeps a translation, if there is room and no other processor added it meanwhile.
    pub(super) fn add(&self, page: &[u8; PAGE], block: &Portable<'_>) {
        let (Some(opened), Ok(record)) = (self.opened.get(), postcard::to_stdvec(block)) else { return };
        if opened.records.write().add(key(block.mode, block.start, page), &record) {
            opened.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Writes what was added. What another machine wrote meanwhile stays.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self) -> Result<(), StoreError> {
        let Some(opened) = self.opened.get() else { return Ok(()) };
        if !opened.changed.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        file::write(&self.directory, &opened.dependencies, &mut opened.records.write())
    }

    /// Translations that were made, or that another machine wrote, and had no room in [`LARGEST`] bytes.
    pub fn left_out(&self) -> u64 {
        self.opened.get().map_or(0, |opened| opened.records.read().left_out)
    }

    /// Translations in it, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let Some(opened) = self.opened.get() else { return (0, 0) };
        let records = opened.records.read();
        (records.index.len(), records.bytes.len())
    }
}
