//! Version 2 ("LUKS2 On-Disk Format Specification" 1.1): two copies of a binary header with a JSON text behind it.

use super::cipher::Cipher;
use super::keys::{Argon2Costs, Hash, KeyLimits, Work, merge, secret, split};
use super::{Lock, SlotInfo, key_material, wrong_passphrase};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::image::ImageResult;
use crate::mapped::{Fields, put};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use std::path::Path;

const BINARY: usize = 4096;
/// Sizes a header with its text can have.
const SIZES: [u64; 9] =
    [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];
const SECOND_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";
const CHECKSUM_AT: usize = 448;
const STRIPES: usize = 4000;
const SLOTS_MAX: usize = 32;
/// Largest key material of a slot.
const AREA_MAX: u64 = 16 << 20;
/// Of a new image: header size, where the content begins.
const NEW_HEADER: u64 = 16 << 10;
const NEW_START: u64 = 16 << 20;

/// The header.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Luks2 {
    binary: Vec<u8>,
    size: u64,
    sequence: u64,
    text: Value,
}

struct Slot<'a> {
    value: &'a Value,
    key_len: usize,
    encryption: &'a str,
    start: u64,
    len: u64,
    hash: Hash,
    stripes: usize,
}

/// A number that is written as text.
fn number(value: &Value) -> Option<u64> {
    value.as_str()?.parse().ok()
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    BASE64.decode(value.as_str()?).ok().filter(|bytes| bytes.len() <= 1024)
}

impl Luks2 {
    fn parse(file: &dyn BlockBackend, path: &Path, at: u64) -> ImageResult<Self> {
        let fields = Fields::read(file, path, at, BINARY, "LUKS2 header")?;
        let magic: [u8; 6] = fields.array(0);
        let right = if at == 0 { super::MAGIC } else { SECOND_MAGIC };
        fields.require(&magic == right, 0, "magic", || format!("is {magic:02x?}; {right:02x?} is right"))?;
        let size = fields.u64_be(8);
        fields.require(SIZES.contains(&size), 8, "hdr_size", || {
            format!("is {size}; 16 KiB to 4 MiB, doubled, are right")
        })?;
        let stated = fields.u64_be(256);
        fields.require(stated == at, 256, "hdr_offset", || {
            format!("is {stated:#x}, but the header is at {at:#x}")
        })?;
        let algorithm = fields.array::<32>(72);
        let sha256 = algorithm.starts_with(b"sha256\0");
        fields.require(sha256, 72, "csum_alg", || "is not sha256, the only one known".to_owned())?;
        let whole = Fields::read(file, path, at, size as usize, "LUKS2 header")?;
        let mut clean = whole.bytes().to_vec();
        put(&mut clean, CHECKSUM_AT, &[0; 64]);
        let sum = Hash::Sha256.of(&[&clean]);
        fields.require(sum[..] == fields.array::<32>(CHECKSUM_AT), CHECKSUM_AT, "csum", || {
            "does not fit the header".to_owned()
        })?;
        let json = clean.split_off(BINARY);
        let end = json.iter().position(|&byte| byte == 0).unwrap_or(json.len());
        let text = serde_json::from_slice(json.get(..end).unwrap_or_default()).map_err(|error| {
            BlockError::metadata(path, at + BINARY as u64, "JSON text", format!("is wrong: {error}"))
        })?;
        Ok(Luks2 { binary: clean, size, sequence: fields.u64_be(16), text })
    }

    /// Reads the newer of the two copies that are right.
    pub fn read(file: &dyn BlockBackend, path: &Path) -> ImageResult<Self> {
        let first = Self::parse(file, path, 0);
        let places: &[u64] = match &first {
            Ok(first) => &[first.size],
            Err(_) => &SIZES,
        };
        let second = places
            .iter()
            .filter(|&&at| at + BINARY as u64 <= file.size())
            .find_map(|&at| Self::parse(file, path, at).ok());
        let header = match (first, second) {
            (Ok(first), Some(second)) if second.sequence > first.sequence => second,
            (Ok(header), _) | (Err(_), Some(header)) => header,
            (Err(error), None) => return Err(error),
        };
        header.check(path)?;
        Ok(header)
    }

    fn wrong(path: &Path, field: &'static str, problem: impl std::fmt::Display) -> BlockError {
        BlockError::metadata(path, BINARY as u64, field, problem)
    }

    fn objects(&self, name: &str) -> Vec<(&String, &Value)> {
        self.text.get(name).and_then(Value::as_object).map(|map| map.iter().collect()).unwrap_or_default()
    }

    fn check(&self, path: &Path) -> ImageResult<()> {
        let needs = self.text.pointer("/config/requirements/mandatory").and_then(Value::as_array);
        if let Some(needs) = needs.filter(|needs| !needs.is_empty()) {
            return Err(BlockError::unsupported(
                path,
                format!("the LUKS2 features {needs:?}, which are not known"),
            ));
        }
        if self.objects("segments").len() != 1 || self.objects("keyslots").len() > SLOTS_MAX {
            return Err(Self::wrong(path, "segments", "are not one, or there are more than 32 keyslots"));
        }
        self.segment(path).map(|_| ())
    }

    /// Name of the encryption, sector size, first byte, length if it is fixed, and number of the first sector.
    fn segment(&self, path: &Path) -> ImageResult<(&str, usize, u64, Option<u64>, u64)> {
        let wrong = |problem: &str| Self::wrong(path, "segments", problem);
        let (_, segment) = *self.objects("segments").first().ok_or_else(|| wrong("are missing"))?;
        let get = |name: &str| segment.get(name).unwrap_or(&Value::Null);
        if get("type") != "crypt" {
            return Err(wrong("have a type that is not \"crypt\""));
        }
        if segment.get("integrity").is_some() {
            return Err(BlockError::unsupported(path, "integrity tags of LUKS2, which are not known"));
        }
        let start = number(get("offset")).filter(|start| start % 512 == 0 && *start < 1 << 60);
        let start = start.ok_or_else(|| wrong("have an offset that is no multiple of 512"))?;
        let len = match get("size").as_str() {
            Some("dynamic") => None,
            _ => Some(number(get("size")).ok_or_else(|| wrong("have a size that is no number"))?),
        };
        let sector = get("sector_size").as_u64().filter(|size| matches!(size, 512 | 1024 | 2048 | 4096));
        let sector = sector.ok_or_else(|| wrong("have a sector size that is not 512 to 4096"))?;
        let first = number(get("iv_tweak")).ok_or_else(|| wrong("have an iv_tweak that is no number"))?;
        let name = get("encryption").as_str().ok_or_else(|| wrong("have no encryption"))?;
        Ok((name, sector as usize, start, len, first))
    }

    fn slot<'a>(&self, path: &Path, value: &'a Value) -> ImageResult<Slot<'a>> {
        let get = |pointer: &str| value.pointer(pointer).unwrap_or(&Value::Null);
        let parse = || -> Option<Slot<'a>> {
            Some(Slot {
                value,
                key_len: get("/area/key_size").as_u64().filter(|len| matches!(len, 16 | 32 | 64))? as usize,
                encryption: value.pointer("/area/encryption")?.as_str()?,
                start: number(get("/area/offset")).filter(|at| *at < 1 << 40)?,
                len: number(get("/area/size")).filter(|len| *len <= AREA_MAX)?,
                hash: Hash::named(get("/af/hash").as_str()?)?,
                stripes: get("/af/stripes").as_u64().filter(|count| (1..=16_000).contains(count))? as usize,
            })
        };
        let slot = parse()
            .ok_or_else(|| Self::wrong(path, "keyslots", "have an area or AF that is not understood"))?;
        let master = self.key_len(value);
        if (master * slot.stripes) as u64 > slot.len {
            return Err(Self::wrong(path, "keyslots", "have an area too small for its stripes"));
        }
        Ok(slot)
    }

    fn key_len(&self, slot: &Value) -> usize {
        let len = slot.get("key_size").and_then(Value::as_u64).unwrap_or(0);
        if matches!(len, 16 | 32 | 64) { len as usize } else { 32 }
    }

    fn derive(path: &Path, slot: &Slot<'_>, passphrase: &[u8], work: &mut Work) -> ImageResult<Vec<u8>> {
        let wrong = |problem: String| Self::wrong(path, "kdf", problem);
        let kdf = slot.value.get("kdf").unwrap_or(&Value::Null);
        let get = |name: &str| kdf.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let salt = kdf.get("salt").and_then(bytes).ok_or_else(|| wrong("has no salt".to_owned()))?;
        match kdf.get("type").and_then(Value::as_str).unwrap_or_default() {
            "pbkdf2" => {
                let hash = kdf.get("hash").and_then(Value::as_str).and_then(Hash::named);
                let (Some(hash), Some(iterations @ 1..)) = (hash, get("iterations")) else {
                    return Err(wrong("has no hash or iterations that are known".to_owned()));
                };
                work.pbkdf2(hash, iterations, slot.key_len).map_err(wrong)?;
                Ok(hash.pbkdf2(passphrase, &salt, iterations, slot.key_len))
            }
            name @ ("argon2i" | "argon2id") => {
                let costs = Argon2Costs {
                    id: name == "argon2id",
                    time: get("time").unwrap_or(0),
                    memory: get("memory").unwrap_or(0),
                    lanes: get("cpus").unwrap_or(0),
                };
                work.argon2(costs).map_err(wrong)?;
                costs.derive(passphrase, &salt, slot.key_len).map_err(wrong)
            }
            other => Err(wrong(format!("is {other:?}; pbkdf2, argon2i and argon2id are known"))),
        }
    }

    /// The key and its slot.
    pub fn unlock(
        &self,
        file: &dyn BlockBackend,
        path: &Path,
        passphrase: &[u8],
        limits: KeyLimits,
    ) -> ImageResult<(Vec<u8>, usize)> {
        let mut last = wrong_passphrase(path);
        let mut work = Work::new(limits);
        for (name, value) in self.objects("keyslots") {
            if value.get("type").and_then(Value::as_str) != Some("luks2") {
                continue;
            }
            let mut attempt = || -> ImageResult<Option<Vec<u8>>> {
                let slot = self.slot(path, value)?;
                let key = Self::derive(path, &slot, passphrase, &mut work)?;
                let master = self.key_len(value);
                let cipher = Cipher::new(slot.encryption, &key, 512)
                    .map_err(|what| BlockError::unsupported(path, what))?;
                let material = key_material(file, path, slot.start, master * slot.stripes, &cipher)?;
                let key = merge(slot.hash, &material, master);
                Ok(self.is_key(name, &key, &mut work).then_some(key))
            };
            match attempt() {
                Ok(Some(key)) => return Ok((key, name.parse().unwrap_or(0))),
                Ok(None) => {}
                // Another slot may be understood.
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn is_key(&self, slot: &str, key: &[u8], work: &mut Work) -> bool {
        self.objects("digests").into_iter().any(|(_, digest)| {
            let get = |name: &str| digest.get(name).unwrap_or(&Value::Null);
            let ours = get("keyslots").as_array().is_some_and(|slots| slots.iter().any(|name| name == slot));
            let hash = get("hash").as_str().and_then(Hash::named);
            let iterations =
                get("iterations").as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0);
            match (hash, iterations, bytes(get("salt")), bytes(get("digest"))) {
                (Some(hash), Some(iterations), Some(salt), Some(digest))
                    if ours && !digest.is_empty() && work.pbkdf2(hash, iterations, digest.len()).is_ok() =>
                {
                    hash.pbkdf2(key, &salt, iterations, digest.len()) == digest
                }
                _ => false,
            }
        })
    }

    /// What encrypts the content, and where that is.
    pub fn lock(&self, path: &Path) -> ImageResult<Lock> {
        let (name, sector, start, len, first) = self.segment(path)?;
        Ok(Lock { name: name.to_owned(), start, len, sector: sector as u64, first })
    }

    /// For a new image; no slot is in use.
    pub fn new(
        cipher: &str,
        hash: Hash,
        key: &[u8],
        sector: u32,
        milliseconds: u32,
    ) -> std::io::Result<Self> {
        let mut binary = vec![0; BINARY];
        put(&mut binary, 6, &2_u16.to_be_bytes());
        put(&mut binary, 72, b"sha256");
        put(&mut binary, 168, super::new_uuid().as_bytes());
        let salt = secret(32)?;
        let iterations = (hash.iterations_in(milliseconds, 32) / 8).max(1000);
        let digest = hash.pbkdf2(key, &salt, iterations, 32);
        let text = json!({
            "keyslots": {},
            "tokens": {},
            "segments": { "0": {
                "type": "crypt", "offset": NEW_START.to_string(), "size": "dynamic", "iv_tweak": "0",
                "encryption": cipher, "sector_size": sector,
            }},
            "digests": { "0": {
                "type": "pbkdf2", "keyslots": [], "segments": ["0"], "hash": hash.name(), "iterations": iterations,
                "salt": BASE64.encode(&salt), "digest": BASE64.encode(&digest),
            }},
            "config": {
                "json_size": (NEW_HEADER - BINARY as u64).to_string(),
                "keyslots_size": (NEW_START - 2 * NEW_HEADER).to_string(),
            },
        });
        Ok(Luks2 { binary, size: NEW_HEADER, sequence: 0, text })
    }

    /// Writes both copies, one after the other is durable.
    pub fn write(&mut self, file: &dyn BlockBackend, path: &Path) -> ImageResult<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let text = self.text.to_string().into_bytes();
        if (text.len() + BINARY) as u64 >= self.size {
            return Err(BlockError::unsupported(path, "more room in the header than it has"));
        }
        let failed = |source| BlockError::io(path, "writing the LUKS2 header", source);
        for (at, magic) in [(0, super::MAGIC), (self.size, SECOND_MAGIC)] {
            let mut raw = self.binary.clone();
            put(&mut raw, 0, magic);
            put(&mut raw, 8, &self.size.to_be_bytes());
            put(&mut raw, 16, &self.sequence.to_be_bytes());
            put(&mut raw, 256, &at.to_be_bytes());
            put(&mut raw, 104, &secret(64).map_err(failed)?);
            put(&mut raw, CHECKSUM_AT, &[0; 64]);
            raw.extend(&text);
            raw.resize(self.size as usize, 0);
            let sum = Hash::Sha256.of(&[&raw]);
            put(&mut raw, CHECKSUM_AT, &sum);
            file.write_bytes(at, &raw).and_then(|()| file.flush()).map_err(failed)?;
        }
        Ok(())
    }

    /// Free space for key material.
    fn free_area(&self, len: u64) -> Option<u64> {
        let end = self.text.pointer("/config/keyslots_size").and_then(number)?.checked_add(2 * self.size)?;
        let used: Vec<(u64, u64)> = self
            .objects("keyslots")
            .into_iter()
            .filter_map(|(_, slot)| {
                let start = number(slot.pointer("/area/offset")?)?;
                Some((start, start.checked_add(number(slot.pointer("/area/size")?)?)?))
            })
            .collect();
        let starts =
            std::iter::once(2 * self.size).chain(used.iter().map(|(_, end)| end.next_multiple_of(4096)));
        starts
            .filter(|start| start + len <= end)
            .filter(|start| used.iter().all(|(from, to)| *to <= *start || start + len <= *from))
            .min()
    }

    /// Puts the key into a free slot.
    pub fn add(
        &mut self,
        file: &dyn BlockBackend,
        path: &Path,
        key: &[u8],
        passphrase: &[u8],
        kdf: &super::Kdf,
    ) -> ImageResult<usize> {
        let failed = |source| BlockError::io(path, "writing the key material", source);
        let name = (0..SLOTS_MAX).find(|n| self.text.pointer(&format!("/keyslots/{n}")).is_none());
        let len = ((key.len() * STRIPES) as u64).next_multiple_of(4096);
        let (Some(n), Some(start)) = (name, self.free_area(len)) else {
            return Err(BlockError::unsupported(path, "a free key slot; all are in use"));
        };
        let (encryption, ..) = self.segment(path)?;
        let salt = secret(32).map_err(failed)?;
        let (own, mut kdf_text) = match *kdf {
            super::Kdf::Pbkdf2(milliseconds) => {
                let iterations = Hash::Sha256.iterations_in(milliseconds, key.len());
                let own = Hash::Sha256.pbkdf2(passphrase, &salt, iterations, key.len());
                (own, json!({ "type": "pbkdf2", "hash": "sha256", "iterations": iterations }))
            }
            super::Kdf::Argon2id { time, memory_kib, lanes } => {
                let costs = Argon2Costs { id: true, time, memory: memory_kib, lanes };
                let own = costs.derive(passphrase, &salt, key.len());
                let own = own.map_err(|problem| BlockError::option("key derivation", problem))?;
                (own, json!({ "type": "argon2id", "time": time, "memory": memory_kib, "cpus": lanes }))
            }
        };
        kdf_text["salt"] = BASE64.encode(&salt).into();
        let cipher =
            Cipher::new(encryption, &own, 512).map_err(|what| BlockError::unsupported(path, what))?;
        let mut material = split(Hash::Sha256, key, STRIPES).map_err(failed)?;
        material.resize(len as usize, 0);
        cipher.encrypt(0, &mut material);
        file.write_bytes(start, &material).and_then(|()| file.flush()).map_err(failed)?;
        let slot = json!({
            "type": "luks2", "key_size": key.len(), "kdf": kdf_text,
            "af": { "type": "luks1", "stripes": STRIPES, "hash": "sha256" },
            "area": {
                "type": "raw", "offset": start.to_string(), "size": len.to_string(),
                "encryption": encryption, "key_size": key.len(),
            },
        });
        if let Some(slots) = self.slots_mut() {
            slots.insert(n.to_string(), slot);
        }
        if let Some(slots) = self.text.pointer_mut("/digests/0/keyslots").and_then(Value::as_array_mut) {
            slots.push(n.to_string().into());
        }
        self.write(file, path)?;
        Ok(n)
    }

    fn slots_mut(&mut self) -> Option<&mut Map<String, Value>> {
        self.text.get_mut("keyslots").and_then(Value::as_object_mut)
    }

    /// Makes a slot useless.
    pub fn remove(&mut self, file: &dyn BlockBackend, path: &Path, n: usize) -> ImageResult<()> {
        let failed = |source| BlockError::io(path, "overwriting the key material", source);
        let name = n.to_string();
        let Some(value) = self.slots_mut().and_then(|slots| slots.remove(&name)) else { return Ok(()) };
        let slot = self.slot(path, &value)?;
        let noise = secret(slot.len as usize).map_err(failed)?;
        let start = slot.start;
        let digests = self.text.get_mut("digests").and_then(Value::as_object_mut);
        for (_, digest) in digests.into_iter().flatten() {
            if let Some(slots) = digest.get_mut("keyslots").and_then(Value::as_array_mut) {
                slots.retain(|slot| *slot != name.as_str());
            }
        }
        file.write_bytes(start, &noise).and_then(|()| file.flush()).map_err(failed)?;
        self.write(file, path)
    }

    /// The slots in use.
    pub fn slots(&self) -> Vec<SlotInfo> {
        let slot = |(name, value): (&String, &Value)| SlotInfo {
            number: name.parse().unwrap_or(0),
            kdf: value.pointer("/kdf/type").and_then(Value::as_str).unwrap_or("unknown").to_owned(),
        };
        self.objects("keyslots").into_iter().map(slot).collect()
    }

    /// Name of the encryption.
    pub fn cipher(&self) -> &str {
        self.objects("segments").first().and_then(|(_, s)| s.get("encryption")?.as_str()).unwrap_or_default()
    }
}
