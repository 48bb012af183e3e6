//! Files of a store.
//!
//! ```text
//! 16  magic
//! 32  dependencies
//! 32  SHA-256 of everything else
//!     records: key (8), length (4), translation
//! ```
//! Numbers are little-endian. The name is the first half of the dependencies in hexadecimal.

use super::{Dependencies, LARGEST, Records};
use sha2::{Digest, Sha256};
use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const MAGIC: &[u8; 16] = b"vireo translate1";
const DEPENDENCIES: usize = 16;
const SUM: usize = 48;
pub(super) const HEAD: usize = 80;
/// Bytes before each translation.
pub(super) const RECORD_HEAD: usize = 12;
/// What the names of files end with.
const EXTENSION: &str = "translations";
/// Files that a directory keeps, the newest ones: other programs' and models'.
const MOST_FILES: usize = 8;

/// Why a store, or a file of it, is not used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Belongs to another user.
    #[error(
        "The translation store {path} belongs to user {owner}, not to {user}, who runs this: choose another"
    )]
    Owner {
        /// Directory or file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Effective user.
        user: u32,
    },
    /// Others could change it.
    #[error(
        "The translation store {path} may be written to by others (mode {mode:03o}): what is in it runs as this \
         program does, so take that right away (chmod go-w)"
    )]
    Writable {
        /// Directory or file.
        path: PathBuf,
        /// Permissions.
        mode: u32,
    },
    /// Not what it should be.
    #[error("{path} is no {wanted}")]
    Kind {
        /// Path.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// Damaged, or never one of ours.
    #[error("{path} is no file of a translation store, or it is damaged: {what} at byte {offset}")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: usize,
    },
    /// The host's error.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// Path.
        path: PathBuf,
        /// What was done.
        doing: &'static str,
        /// Error.
        source: io::Error,
    },
}

fn error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path, doing, source }
}

/// Whether nobody but the user who runs this could have written it.
fn check_owner(path: &Path, found: &Metadata) -> Result<(), StoreError> {
    #![expect(unsafe_code, reason = "asks for the user")]
    // SAFETY: a plain query.
    let user = unsafe { libc::geteuid() };
    let path = path.to_owned();
    if found.uid() != user {
        return Err(StoreError::Owner { path, owner: found.uid(), user });
    }
    let mode = found.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(StoreError::Writable { path, mode });
    }
    Ok(())
}

/// Makes the directory if need be, and looks at whose it is.
pub(super) fn check_directory(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(error(path, "making the directory"))?;
    let found = path.metadata().map_err(error(path, "looking at it"))?;
    if !found.is_dir() {
        return Err(StoreError::Kind { path: path.to_owned(), wanted: "directory" });
    }
    check_owner(path, &found)
}

fn name(directory: &Path, dependencies: &Dependencies) -> PathBuf {
    let hex: String = dependencies.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    directory.join(hex).with_extension(EXTENSION)
}

/// Bytes of a file, if it is there and nobody else could have written it.
fn bytes(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(error(path, "opening"))?,
    };
    let found = file.metadata().map_err(error(path, "looking at it"))?;
    if !found.is_file() {
        return Err(StoreError::Kind { path: path.to_owned(), wanted: "regular file" });
    }
    check_owner(path, &found)?;
    let most = HEAD + LARGEST + LARGEST / 4;
    if found.len() > most as u64 {
        let what = "more than a store may have";
        return Err(StoreError::Damaged { path: path.to_owned(), what, offset: most });
    }
    let mut bytes = Vec::with_capacity(found.len() as usize);
    file.read_to_end(&mut bytes).map_err(error(path, "reading"))?;
    Ok(Some(bytes))
}

/// Sum of a file's content but for the sum itself.
fn sum(bytes: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(&bytes[..SUM]);
    digest.update(&bytes[HEAD..]);
    digest.finalize().into()
}

/// Key and translation of the record at an offset.
pub(super) fn record(bytes: &[u8], start: usize) -> Option<(u64, &[u8])> {
    let (key, rest) = bytes.get(start..)?.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*key), rest.get(..u32::from_le_bytes(*len) as usize)?))
}

/// Adds a record.
pub(super) fn append(bytes: &mut Vec<u8>, key: u64, translation: &[u8]) {
    bytes.extend_from_slice(&key.to_le_bytes());
    bytes.extend_from_slice(&(translation.len() as u32).to_le_bytes());
    bytes.extend_from_slice(translation);
}

/// Checks a file as a whole, and gives its dependencies.
fn check(path: &Path, bytes: &[u8]) -> Result<Dependencies, StoreError> {
    let damaged = |what, offset| StoreError::Damaged { path: path.to_owned(), what, offset };
    if bytes.len() < HEAD {
        return Err(damaged("the end", bytes.len()));
    }
    if bytes[..DEPENDENCIES] != *MAGIC {
        return Err(damaged("another magic", 0));
    }
    if sum(bytes) != bytes[SUM..HEAD] {
        return Err(damaged("a sum that is not the content's", SUM));
    }
    let mut dependencies = [0; 32];
    dependencies.copy_from_slice(&bytes[DEPENDENCIES..SUM]);
    Ok(dependencies)
}

/// Goes through the records of a checked file: offset, key, translation.
fn each(path: &Path, bytes: &[u8], mut take: impl FnMut(usize, u64, &[u8])) -> Result<(), StoreError> {
    let mut at = HEAD;
    while at < bytes.len() {
        let Some((key, translation)) = record(bytes, at) else {
            let what = "a translation that is cut off";
            return Err(StoreError::Damaged { path: path.to_owned(), what, offset: at });
        };
        take(at, key, translation);
        at += RECORD_HEAD + translation.len();
    }
    Ok(())
}

/// What the store has for these dependencies.
pub(super) fn read(directory: &Path, dependencies: &Dependencies) -> Result<Records, StoreError> {
    let path = name(directory, dependencies);
    let mut records = Records::new();
    let Some(bytes) = bytes(&path)? else { return Ok(records) };
    if check(&path, &bytes)? != *dependencies {
        let what = "another program's or processor's name";
        return Err(StoreError::Damaged { path, what, offset: DEPENDENCIES });
    }
    each(&path, &bytes, |at, key, _| records.note(key, at))?;
    records.bytes = bytes;
    Ok(records)
}

/// Every translation of any file of a store, to be made again by this program.
pub(super) fn read_any(path: &Path, mut take: impl FnMut(&[u8])) -> Result<(), StoreError> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let bytes = bytes(path)?.ok_or_else(missing).map_err(error(path, "opening"))?;
    check(path, &bytes)?;
    each(path, &bytes, |_, _, translation| take(translation))
}

/// Takes over what others wrote since the store was read. A file that is not whole has nothing to be kept.
fn merge(directory: &Path, dependencies: &Dependencies, records: &mut Records) {
    let Ok(theirs) = read(directory, dependencies) else { return };
    for &start in theirs.index.values() {
        let Some((key, translation)) = record(&theirs.bytes, start as usize) else { continue };
        records.add(key, translation);
    }
}

/// Writes a store's file; what others added to it since it was read stays.
pub(super) fn write(
    directory: &Path,
    dependencies: &Dependencies,
    records: &mut Records,
) -> Result<(), StoreError> {
    check_directory(directory)?;
    let path = name(directory, dependencies);
    let lock = File::open(directory).map_err(error(directory, "opening"))?;
    lock.lock().map_err(error(directory, "locking"))?;
    merge(directory, dependencies, records);
    let bytes = &mut records.bytes;
    bytes[..DEPENDENCIES].copy_from_slice(MAGIC);
    bytes[DEPENDENCIES..SUM].copy_from_slice(dependencies);
    let sum = sum(bytes);
    bytes[SUM..HEAD].copy_from_slice(&sum);
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let made = File::options().write(true).create_new(true).mode(0o600).open(&new);
    let mut file = made.map_err(error(&new, "making the file"))?;
    let written = file.write_all(bytes).and_then(|()| std::fs::rename(&new, &path));
    written.inspect_err(|_| drop(std::fs::remove_file(&new))).map_err(error(&new, "writing"))?;
    forget_old(directory);
    Ok(())
}

/// Removes the files that were not written for longest: other versions of this program's.
fn forget_old(directory: &Path) {
    let Ok(entries) = directory.read_dir() else { return };
    let mut files: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == EXTENSION))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort();
    let most = files.len().saturating_sub(MOST_FILES);
    for (_, path) in files.into_iter().take(most) {
        // Another machine may have been faster.
        let _ = std::fs::remove_file(path);
    }
}
