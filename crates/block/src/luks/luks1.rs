//! Version 1 ("LUKS1 On-Disk Format Specification" 1.2.3).

use super::cipher::Cipher;
use super::keys::{Hash, KeyLimits, Work, merge, secret, split};
use super::{Lock, SlotInfo, key_material, wrong_passphrase};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::image::ImageResult;
use crate::mapped::{Fields, put};
use std::path::Path;

/// Bytes of the header.
const HEADER: usize = 592;
const SLOTS: usize = 8;
const ACTIVE: u32 = 0x00AC_71F3;
const DISABLED: u32 = 0x0000_DEAD;
const STRIPES: u32 = 4000;
const DIGEST: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    active: bool,
    iterations: u32,
    salt: [u8; 32],
    /// First sector of the key material.
    at: u32,
    stripes: u32,
}

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Luks1 {
    raw: Vec<u8>,
    cipher: String,
    hash: Hash,
    /// First sector of the content.
    payload: u32,
    key_len: usize,
    digest: [u8; DIGEST],
    digest_salt: [u8; 32],
    digest_iterations: u32,
    slots: Vec<Slot>,
}

fn text(fields: &Fields<'_>, at: usize) -> String {
    let bytes: [u8; 32] = fields.array(at);
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
}

impl Luks1 {
    /// Reads and checks the header.
    pub fn read(file: &dyn BlockBackend, path: &Path) -> ImageResult<Self> {
        let fields = Fields::read(file, path, 0, HEADER, "LUKS header")?;
        let hash_name = text(&fields, 72);
        let hash = Hash::named(&hash_name).ok_or_else(|| {
            BlockError::unsupported(path, format!("hash {hash_name:?}; sha1, sha256, sha512 are known"))
        })?;
        let key_len = fields.u32_be(108) as usize;
        fields.require(matches!(key_len, 16 | 32 | 64), 108, "key-bytes", || {
            format!("is {key_len}; 16, 32 and 64 are known")
        })?;
        let payload = fields.u32_be(104);
        let sectors = file.size() / 512;
        fields.require(payload > 1 && u64::from(payload) <= sectors, 104, "payload-offset", || {
            format!("is sector {payload}; the file has {sectors} sectors")
        })?;
        let digest_iterations = fields.u32_be(164);
        fields.require(digest_iterations > 0, 164, "mk-digest-iter", || "is 0".to_owned())?;
        let mut slots = Vec::new();
        for at in (0..SLOTS).map(|n| 208 + 48 * n) {
            let state = fields.u32_be(at);
            fields.require(matches!(state, ACTIVE | DISABLED), at, "active", || {
                format!("is {state:#x}; 0xac71f3 and 0xdead are right")
            })?;
            let slot = Slot {
                active: state == ACTIVE,
                iterations: fields.u32_be(at + 4),
                salt: fields.array(at + 8),
                at: fields.u32_be(at + 40),
                stripes: fields.u32_be(at + 44),
            };
            let (stripes, start) = (slot.stripes, slot.at);
            let end = u64::from(start) + (key_len as u64 * u64::from(stripes)).div_ceil(512);
            let right = (1..=STRIPES * 4).contains(&stripes) && start > 1 && end <= u64::from(payload);
            fields.require(right, at + 40, "key-material-offset", || {
                format!("is sector {start} for {stripes} stripes; between header and payload is right")
            })?;
            fields
                .require(!slot.active || slot.iterations > 0, at + 4, "iterations", || "is 0".to_owned())?;
            slots.push(slot);
        }
        Ok(Luks1 {
            raw: fields.bytes().to_vec(),
            cipher: format!("{}-{}", text(&fields, 8), text(&fields, 40)),
            hash,
            payload,
            key_len,
            digest: fields.array(112),
            digest_salt: fields.array(132),
            digest_iterations,
            slots,
        })
    }

    /// For a new image; no slot is in use.
    pub fn new(cipher: &str, hash: Hash, key: &[u8], milliseconds: u32) -> std::io::Result<Self> {
        let mut raw = vec![0; HEADER];
        put(&mut raw, 0, super::MAGIC);
        put(&mut raw, 6, &1_u16.to_be_bytes());
        let (name, mode) = cipher.split_once('-').unwrap_or((cipher, ""));
        put(&mut raw, 8, name.as_bytes());
        put(&mut raw, 40, mode.as_bytes());
        put(&mut raw, 72, hash.name().as_bytes());
        put(&mut raw, 108, &(key.len() as u32).to_be_bytes());
        put(&mut raw, 168, super::new_uuid().as_bytes());
        let material = Self::material(key.len());
        let slots: Vec<Slot> = (0..SLOTS as u32)
            .map(|n| Slot {
                active: false,
                iterations: 0,
                salt: [0; 32],
                at: 8 + n * material,
                stripes: STRIPES,
            })
            .collect();
        let payload = (Self::header_len(key.len()) / 512) as u32;
        let digest_iterations = (hash.iterations_in(milliseconds, DIGEST) / 8).max(1000);
        let mut header = Luks1 {
            raw,
            cipher: cipher.to_owned(),
            hash,
            payload,
            key_len: key.len(),
            digest: [0; DIGEST],
            digest_salt: array(&secret(32)?),
            digest_iterations,
            slots,
        };
        header.digest = header.digest_of(key);
        Ok(header)
    }

    /// Sectors of a slot's key material.
    fn material(key_len: usize) -> u32 {
        (key_len as u32 * STRIPES).div_ceil(4096) * 8
    }

    /// Bytes of a new header with its key material: a whole number of MiB.
    pub fn header_len(key_len: usize) -> u64 {
        u64::from((8 + SLOTS as u32 * Self::material(key_len)).next_multiple_of(2048)) * 512
    }

    fn digest_of(&self, key: &[u8]) -> [u8; DIGEST] {
        array(&self.hash.pbkdf2(key, &self.digest_salt, self.digest_iterations, DIGEST))
    }

    fn encode(&self) -> Vec<u8> {
        let mut raw = self.raw.clone();
        put(&mut raw, 104, &self.payload.to_be_bytes());
        put(&mut raw, 112, &self.digest);
        put(&mut raw, 132, &self.digest_salt);
        put(&mut raw, 164, &self.digest_iterations.to_be_bytes());
        for (at, slot) in (0..).map(|n| 208 + 48 * n).zip(&self.slots) {
            put(&mut raw, at, &if slot.active { ACTIVE } else { DISABLED }.to_be_bytes());
            put(&mut raw, at + 4, &slot.iterations.to_be_bytes());
            put(&mut raw, at + 8, &slot.salt);
            put(&mut raw, at + 40, &slot.at.to_be_bytes());
            put(&mut raw, at + 44, &slot.stripes.to_be_bytes());
        }
        raw
    }

    /// Writes the header.
    pub fn write(&self, file: &dyn BlockBackend, path: &Path) -> ImageResult<()> {
        let failed = |source| BlockError::io(path, "writing the LUKS header", source);
        file.write_bytes(0, &self.encode()).and_then(|()| file.flush()).map_err(failed)
    }

    /// The key and its slot.
    pub fn unlock(
        &self,
        file: &dyn BlockBackend,
        path: &Path,
        passphrase: &[u8],
        limits: KeyLimits,
    ) -> ImageResult<(Vec<u8>, usize)> {
        let mut work = Work::new(limits);
        for (n, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.active) {
            work.pbkdf2(self.hash, slot.iterations, self.key_len)
                .and_then(|()| work.pbkdf2(self.hash, self.digest_iterations, DIGEST))
                .map_err(|what| BlockError::metadata(path, 208 + 48 * n as u64, "iterations", what))?;
            let key = self.hash.pbkdf2(passphrase, &slot.salt, slot.iterations, self.key_len);
            let cipher =
                Cipher::new(&self.cipher, &key, 512).map_err(|what| BlockError::unsupported(path, what))?;
            let len = self.key_len * slot.stripes as usize;
            let material = key_material(file, path, u64::from(slot.at) * 512, len, &cipher)?;
            let master = merge(self.hash, &material, self.key_len);
            if self.digest_of(&master) == self.digest {
                return Ok((master, n));
            }
        }
        Err(wrong_passphrase(path))
    }

    /// What encrypts the content, and where that is.
    pub fn lock(&self) -> Lock {
        let (name, start) = (self.cipher.clone(), u64::from(self.payload) * 512);
        Lock { name, start, len: None, sector: 512, first: 0 }
    }

    /// Puts the key into a free slot.
    pub fn add(
        &mut self,
        file: &dyn BlockBackend,
        path: &Path,
        key: &[u8],
        passphrase: &[u8],
        milliseconds: u32,
    ) -> ImageResult<usize> {
        let free = self.slots.iter().position(|slot| !slot.active);
        let n = free.ok_or_else(|| BlockError::unsupported(path, "a free key slot; all 8 are in use"))?;
        let failed = |source| BlockError::io(path, "writing the key material", source);
        let (hash, key_len) = (self.hash, self.key_len);
        let Some(slot) = self.slots.get_mut(n) else { return Ok(n) };
        slot.salt = array(&secret(32).map_err(failed)?);
        slot.stripes = STRIPES;
        slot.iterations = hash.iterations_in(milliseconds, key_len);
        slot.active = true;
        let own = hash.pbkdf2(passphrase, &slot.salt, slot.iterations, key_len);
        let cipher =
            Cipher::new(&self.cipher, &own, 512).map_err(|what| BlockError::unsupported(path, what))?;
        let mut material = split(hash, key, STRIPES as usize).map_err(failed)?;
        material.resize(material.len().next_multiple_of(512), 0);
        cipher.encrypt(0, &mut material);
        file.write_bytes(u64::from(slot.at) * 512, &material).and_then(|()| file.flush()).map_err(failed)?;
        self.write(file, path)?;
        Ok(n)
    }

    /// Makes a slot useless.
    pub fn remove(&mut self, file: &dyn BlockBackend, path: &Path, n: usize) -> ImageResult<()> {
        let failed = |source| BlockError::io(path, "overwriting the key material", source);
        let Some(slot) = self.slots.get_mut(n) else { return Ok(()) };
        slot.active = false;
        slot.iterations = 0;
        slot.salt = [0; 32];
        let noise = secret(self.key_len * slot.stripes as usize).map_err(failed)?;
        file.write_bytes(u64::from(slot.at) * 512, &noise).and_then(|()| file.flush()).map_err(failed)?;
        self.write(file, path)
    }

    /// The slots in use.
    pub fn slots(&self) -> Vec<SlotInfo> {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.active);
        used.map(|(number, slot)| SlotInfo {
            number,
            kdf: format!("pbkdf2-{}, {} iterations", self.hash.name(), slot.iterations),
        })
        .collect()
    }

    /// Name of the encryption.
    pub fn cipher(&self) -> &str {
        &self.cipher
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().unwrap_or([0; N])
}
