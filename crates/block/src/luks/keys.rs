//! From passphrases to keys: hashes, key derivation, and the anti-forensic splitter ("LUKS1 On-Disk Format
//! Specification" 1.2.3, section 2.4).

use argon2::{Algorithm, Argon2, Params, Version};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use std::io::Read;
use std::time::Instant;

/// Most lanes of Argon2.
const LANES_MAX: u32 = 64;

/// What a header may make an attempt to open take.
///
/// The default is for a person who gives a passphrase: what the tools choose, and some more. It is the only thing a
/// LUKS header can ask for that is larger than 64 MiB; nothing is derived before somebody gives a passphrase. Who opens
/// many containers of strangers chooses less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLimits {
    /// Memory of a derivation in KiB (Argon2).
    pub memory_kib: u32,
    /// Iterations of PBKDF2's hash of all slots that are tried; a pass over a KiB of Argon2's memory is two.
    pub iterations: u64,
}

impl Default for KeyLimits {
    /// 1 GiB, the most cryptsetup uses unless told otherwise; and about two minutes of a slow processor, ten times what
    /// the tools choose for a slot.
    fn default() -> Self {
        KeyLimits { memory_kib: 1 << 20, iterations: 400_000_000 }
    }
}

/// The work of all key derivations of an attempt to open.
pub(super) struct Work {
    done: u64,
    limits: KeyLimits,
}

impl Work {
    /// None yet.
    pub fn new(limits: KeyLimits) -> Self {
        Work { done: 0, limits }
    }

    /// Counts `iterations` that make `len` bytes with `hash`; an error says that it is too much.
    pub fn pbkdf2(&mut self, hash: Hash, iterations: u32, len: usize) -> Result<(), String> {
        self.count(u64::from(iterations) * len.div_ceil(hash.len()) as u64)
    }

    /// Counts passes over Argon2's memory: a KiB of it is about two iterations.
    pub fn argon2(&mut self, costs: Argon2Costs) -> Result<(), String> {
        let most = self.limits.memory_kib;
        if costs.memory > most {
            return Err(format!("wants {} KiB of memory; at most {most} are given", costs.memory));
        }
        if !(1..=LANES_MAX).contains(&costs.lanes) {
            return Err(format!("wants {} lanes; 1 to {LANES_MAX} are possible", costs.lanes));
        }
        self.count((u64::from(costs.time) * u64::from(costs.memory)).saturating_mul(2))
    }

    fn count(&mut self, work: u64) -> Result<(), String> {
        self.done = self.done.saturating_add(work);
        let most = self.limits.iterations;
        if self.done > most {
            return Err(format!("wants more work than the {most} iterations that are done to open a disk"));
        }
        Ok(())
    }
}

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    /// By its name in headers.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "sha1" => Some(Hash::Sha1),
            "sha256" => Some(Hash::Sha256),
            "sha512" => Some(Hash::Sha512),
            _ => None,
        }
    }

    /// Its name in headers.
    pub fn name(self) -> &'static str {
        match self {
            Hash::Sha1 => "sha1",
            Hash::Sha256 => "sha256",
            Hash::Sha512 => "sha512",
        }
    }

    /// The hash of all parts, one behind the other.
    pub fn of(self, parts: &[&[u8]]) -> Vec<u8> {
        fn run<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut digest = D::new();
            parts.iter().for_each(|part| digest.update(part));
            digest.finalize().to_vec()
        }
        match self {
            Hash::Sha1 => run::<Sha1>(parts),
            Hash::Sha256 => run::<Sha256>(parts),
            Hash::Sha512 => run::<Sha512>(parts),
        }
    }

    fn len(self) -> usize {
        match self {
            Hash::Sha1 => 20,
            Hash::Sha256 => 32,
            Hash::Sha512 => 64,
        }
    }

    /// PBKDF2 with HMAC of this hash (RFC 8018, section 5.2).
    pub fn pbkdf2(self, secret: &[u8], salt: &[u8], iterations: u32, len: usize) -> Vec<u8> {
        let mut key = vec![0; len];
        match self {
            Hash::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(secret, salt, iterations, &mut key),
            Hash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(secret, salt, iterations, &mut key),
            Hash::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(secret, salt, iterations, &mut key),
        }
        key
    }

    /// Iterations of PBKDF2 that take about this many milliseconds here.
    pub fn iterations_in(self, milliseconds: u32, len: usize) -> u32 {
        const PROBE: u32 = 20_000;
        let start = Instant::now();
        self.pbkdf2(b"passphrase", b"salt of 32 bytes, or thereabouts", PROBE, len);
        let micros = start.elapsed().as_micros().max(1) as u64;
        let iterations = u64::from(PROBE) * 1000 * u64::from(milliseconds) / micros;
        iterations.clamp(1000, u64::from(u32::MAX)) as u32
    }
}

/// Costs of Argon2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Argon2Costs {
    /// `argon2id`, otherwise `argon2i`.
    pub id: bool,
    /// Passes.
    pub time: u32,
    /// Memory in KiB.
    pub memory: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Argon2Costs {
    /// The key of a passphrase.
    pub fn derive(self, secret: &[u8], salt: &[u8], len: usize) -> Result<Vec<u8>, String> {
        let algorithm = if self.id { Algorithm::Argon2id } else { Algorithm::Argon2i };
        let params =
            Params::new(self.memory, self.time, self.lanes, Some(len)).map_err(|error| error.to_string())?;
        let mut key = vec![0; len];
        Argon2::new(algorithm, Version::V0x13, params)
            .hash_password_into(secret, salt, &mut key)
            .map_err(|error| error.to_string())?;
        Ok(key)
    }
}

/// Spreads every bit of a stripe over the part of it that is as long as a hash.
fn diffuse(hash: Hash, stripe: &mut [u8]) {
    for (n, part) in (0_u32..).zip(stripe.chunks_mut(hash.len())) {
        let digest = hash.of(&[&n.to_be_bytes(), part]);
        part.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    }
}

fn xor(into: &mut [u8], with: &[u8]) {
    into.iter_mut().zip(with).for_each(|(to, from)| *to ^= from);
}

/// The key in stripes of its length, of which none may be missing.
pub(super) fn merge(hash: Hash, stripes: &[u8], len: usize) -> Vec<u8> {
    let mut key = vec![0; len];
    let last = stripes.len().saturating_sub(len);
    for stripe in stripes.get(..last).unwrap_or_default().chunks(len) {
        xor(&mut key, stripe);
        diffuse(hash, &mut key);
    }
    xor(&mut key, stripes.get(last..).unwrap_or_default());
    key
}

/// Stripes for a key.
pub(super) fn split(hash: Hash, key: &[u8], count: usize) -> std::io::Result<Vec<u8>> {
    let mut stripes = secret(key.len() * count)?;
    let last = stripes.len() - key.len();
    if let Some(end) = stripes.get_mut(last..) {
        end.fill(0);
    }
    let mut end = merge(hash, &stripes, key.len());
    xor(&mut end, key);
    if let Some(place) = stripes.get_mut(last..) {
        place.copy_from_slice(&end);
    }
    Ok(stripes)
}

/// Random bytes nobody can guess.
pub(super) fn secret(len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6070, test vectors 1 and 2.
    #[test]
    fn pbkdf2_of_the_rfc() {
        let one = Hash::Sha1.pbkdf2(b"password", b"salt", 1, 20);
        assert_eq!(one[..4], [0x0C, 0x60, 0xC8, 0x0F]);
        let two = Hash::Sha1.pbkdf2(b"password", b"salt", 2, 20);
        assert_eq!(two[..4], [0xEA, 0x6C, 0x01, 0x4D]);
    }

    #[test]
    fn a_key_comes_back_from_its_stripes_only_if_all_are_there() {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            let key = secret(64).unwrap();
            let mut stripes = split(hash, &key, 50).unwrap();
            assert_eq!(merge(hash, &stripes, 64), key);
            // The first bit of a stripe: what is lost is the first part of the key, as long as a hash.
            stripes[640] ^= 1;
            let other = merge(hash, &stripes, 64);
            let same = other.iter().zip(&key).take(hash.len()).filter(|(a, b)| a == b).count();
            assert!(same < hash.len() / 3, "{same} bytes of {} survive", hash.len());
        }
    }
}
