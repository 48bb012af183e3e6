//! LUKS containers, versions 1 and 2: a header with key slots, then the encrypted disk.
//!
//! A random key encrypts the sectors. Each slot has that key, spread over many stripes and encrypted with a key from
//! a passphrase; so passphrases come and go without the disk being written again. A discard does nothing here: what
//! it leaves would be decrypted to noise.

mod cipher;
mod image;
mod keys;
mod luks1;
mod luks2;
mod new;
mod sectors;

pub use image::LuksImage;
pub use keys::KeyLimits;
pub(crate) use new::{LuksFormat, NewContainer};
pub(crate) use sectors::EncryptedFile;

use crate::backend::{BlockBackend, SECTOR_SIZE};
use crate::error::BlockError;
use crate::image::ImageResult;
use crate::mapped::{Fields, random_uuid};
use cipher::Cipher;
use luks1::Luks1;
use luks2::Luks2;
use std::path::Path;
use std::sync::Arc;

const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";

/// A key slot in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Its number.
    pub number: usize,
    /// How its key comes from the passphrase.
    pub kdf: String,
}

/// How a new slot's key comes from the passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kdf {
    /// PBKDF2 with as many iterations as take this many milliseconds here. The only one of version 1.
    Pbkdf2(u32),
    /// Argon2id (version 2 only).
    Argon2id {
        /// Passes.
        time: u32,
        /// Memory in KiB.
        memory_kib: u32,
        /// Lanes.
        lanes: u32,
    },
}

impl Kdf {
    fn milliseconds(&self) -> u32 {
        match self {
            Kdf::Pbkdf2(milliseconds) => *milliseconds,
            Kdf::Argon2id { .. } => 1000,
        }
    }
}

/// What encrypts the content, and where that is.
struct Lock {
    /// Name of the encryption.
    name: String,
    /// First byte in the file.
    start: u64,
    /// Bytes; `None`: to the file's end.
    len: Option<u64>,
    /// Bytes of a sector.
    sector: u64,
    /// Number of the first sector, in units of 512 bytes.
    first: u64,
}

impl Lock {
    fn open(&self, path: &Path, key: &[u8]) -> ImageResult<Unlocked> {
        let cipher = Cipher::new(&self.name, key, self.sector as usize)
            .map_err(|what| BlockError::unsupported(path, what))?;
        Ok(Unlocked { cipher, start: self.start, sector: self.sector, first: self.first })
    }
}

/// The content with its key.
struct Unlocked {
    cipher: Cipher,
    /// First byte in the file.
    start: u64,
    /// Bytes of a sector.
    sector: u64,
    /// Number of the first sector, in units of 512 bytes.
    first: u64,
}

fn needs_passphrase(path: &Path) -> BlockError {
    BlockError::option("passphrase", format!("is needed: {} is encrypted", path.display()))
}

fn wrong_passphrase(path: &Path) -> BlockError {
    BlockError::option("passphrase", format!("no key slot of {} opens with it", path.display()))
}

/// The stripes of a key as they are without the slot's encryption, of which the last sector is part as a whole.
fn key_material(
    file: &dyn BlockBackend,
    path: &Path,
    at: u64,
    len: usize,
    cipher: &Cipher,
) -> ImageResult<Vec<u8>> {
    let mut material = vec![0; len.next_multiple_of(SECTOR_SIZE as usize)];
    file.read_bytes(at, &mut material)
        .map_err(|source| BlockError::io(path, "reading the key material", source))?;
    cipher.decrypt(0, &mut material);
    material.truncate(len);
    Ok(material)
}

fn new_uuid() -> String {
    let hex: Vec<String> = random_uuid().iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().concat();
    [part(0..4), part(4..6), part(6..8), part(8..10), part(10..16)].join("-")
}

enum Header {
    One(Luks1),
    Two(Luks2),
}

impl Header {
    fn read(file: &dyn BlockBackend, path: &Path) -> ImageResult<Self> {
        let fields = Fields::read(file, path, 0, 8, "LUKS header")?;
        let magic: [u8; 6] = fields.array(0);
        match (magic == *MAGIC, fields.u16_be(6)) {
            (true, 1) => Luks1::read(file, path).map(Header::One),
            // The second copy helps when the first is damaged.
            (true, 2) | (false, _) => Luks2::read(file, path).map(Header::Two),
            (true, other) => Err(fields.wrong(6, "version", format!("is {other}; 1 and 2 are known"))),
        }
    }

    fn unlock(
        &self,
        file: &dyn BlockBackend,
        path: &Path,
        passphrase: &[u8],
        limits: KeyLimits,
    ) -> ImageResult<(Vec<u8>, usize)> {
        match self {
            Header::One(header) => header.unlock(file, path, passphrase, limits),
            Header::Two(header) => header.unlock(file, path, passphrase, limits),
        }
    }

    fn lock(&self, path: &Path) -> ImageResult<Lock> {
        match self {
            Header::One(header) => Ok(header.lock()),
            Header::Two(header) => header.lock(path),
        }
    }

    fn slots(&self) -> Vec<SlotInfo> {
        match self {
            Header::One(header) => header.slots(),
            Header::Two(header) => header.slots(),
        }
    }
}

/// The key slots in use.
pub fn slots(file: &dyn BlockBackend, path: &Path) -> ImageResult<Vec<SlotInfo>> {
    Header::read(file, path).map(|header| header.slots())
}

/// Lets a container be opened with one more passphrase. Returns the new slot.
pub fn add_key(
    file: &dyn BlockBackend,
    path: &Path,
    known: &[u8],
    new: &[u8],
    kdf: Kdf,
) -> ImageResult<usize> {
    let mut header = Header::read(file, path)?;
    let (key, _) = header.unlock(file, path, known, KeyLimits::default())?;
    match (&mut header, kdf) {
        (Header::One(_), Kdf::Argon2id { .. }) => {
            Err(BlockError::option("key derivation", "LUKS1 has only pbkdf2"))
        }
        (Header::One(header), kdf) => header.add(file, path, &key, new, kdf.milliseconds()),
        (Header::Two(header), kdf) => header.add(file, path, &key, new, &kdf),
    }
}

/// Removes the slot that a passphrase opens, and overwrites its key material. The last one stays: without it the
/// disk would be lost. Returns the slot.
pub fn remove_key(file: &dyn BlockBackend, path: &Path, passphrase: &[u8]) -> ImageResult<usize> {
    let mut header = Header::read(file, path)?;
    let (_, slot) = header.unlock(file, path, passphrase, KeyLimits::default())?;
    if header.slots().len() < 2 {
        return Err(BlockError::option("passphrase", "is that of the last key slot: the disk would be lost"));
    }
    match &mut header {
        Header::One(header) => header.remove(file, path, slot)?,
        Header::Two(header) => header.remove(file, path, slot)?,
    }
    Ok(slot)
}

/// What decrypts the clusters of a qcow2 image, whose header has a LUKS header at `start`, `len` bytes long (the
/// encryption method 2 of the qcow2 specification). Sectors are numbered by their place in `data`.
pub(crate) fn open_inside(
    file: &dyn BlockBackend,
    (start, len): (u64, u64),
    data: Arc<dyn BlockBackend>,
    path: &Path,
    passphrase: Option<&[u8]>,
    limits: KeyLimits,
) -> ImageResult<EncryptedFile> {
    let passphrase = passphrase.ok_or_else(|| needs_passphrase(path))?;
    let section = sectors::Section { file, start, len };
    let header = Header::read(&section, path)?;
    let (key, _) = header.unlock(&section, path, passphrase, limits)?;
    Ok(EncryptedFile::new(data, header.lock(path)?.open(path, &key)?))
}
