//! Encryption of sectors.

use super::keys::Hash;
use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};
use aes::{Aes128, Aes256};
use xts_mode::Xts128;

/// AES with a key of one of its lengths.
enum Aes {
    Short(Box<Aes128>),
    Long(Box<Aes256>),
}

impl Aes {
    fn new(key: &[u8]) -> Option<Self> {
        match key.len() {
            16 => Aes128::new_from_slice(key).ok().map(|aes| Aes::Short(Box::new(aes))),
            32 => Aes256::new_from_slice(key).ok().map(|aes| Aes::Long(Box::new(aes))),
            _ => None,
        }
    }

    fn encrypt(&self, block: &mut [u8; 16]) {
        match self {
            Aes::Short(aes) => aes.encrypt_block(block.into()),
            Aes::Long(aes) => aes.encrypt_block(block.into()),
        }
    }

    fn decrypt(&self, block: &mut [u8; 16]) {
        match self {
            Aes::Short(aes) => aes.decrypt_block(block.into()),
            Aes::Long(aes) => aes.decrypt_block(block.into()),
        }
    }
}

/// How the initialization vector comes from the sector's number.
enum Vector {
    /// 32 bits of it.
    Plain,
    /// 64 bits of it.
    Plain64,
    /// 64 bits of it, encrypted with a hash of the key.
    Essiv(Aes),
}

enum Mode {
    XtsShort(Box<Xts128<Aes128>>),
    XtsLong(Box<Xts128<Aes256>>),
    Cbc(Aes),
}

/// Encrypts sectors.
pub(crate) struct Cipher {
    mode: Mode,
    vector: Vector,
    sector: usize,
}

fn xor(block: &mut [u8; 16], with: &[u8; 16]) {
    block.iter_mut().zip(with).for_each(|(byte, with)| *byte ^= with);
}

impl Cipher {
    /// `name` as in `aes-xts-plain64`; an error says what is not known.
    pub fn new(name: &str, key: &[u8], sector: usize) -> Result<Self, String> {
        let unknown = || {
            format!(
                "encryption {name} with a key of {} bits; aes-xts-plain64, aes-xts-plain (256, 512 bits), \
                 aes-cbc-plain64, aes-cbc-plain and aes-cbc-essiv (128, 256 bits) are known",
                key.len() * 8
            )
        };
        let mut words = name.splitn(3, '-');
        let (Some("aes"), Some(mode), Some(vector)) = (words.next(), words.next(), words.next()) else {
            return Err(unknown());
        };
        let mode = match mode {
            "xts" => {
                let (first, second) = key.split_at(key.len() / 2);
                match first.len() {
                    16 => Aes128::new_from_slice(first)
                        .ok()
                        .zip(Aes128::new_from_slice(second).ok())
                        .map(|(first, second)| Mode::XtsShort(Box::new(Xts128::new(first, second)))),
                    32 => Aes256::new_from_slice(first)
                        .ok()
                        .zip(Aes256::new_from_slice(second).ok())
                        .map(|(first, second)| Mode::XtsLong(Box::new(Xts128::new(first, second)))),
                    _ => None,
                }
            }
            "cbc" => Aes::new(key).map(Mode::Cbc),
            _ => None,
        };
        let vector = match vector.split_once(':').unwrap_or((vector, "")) {
            ("plain64", _) => Some(Vector::Plain64),
            ("plain", _) => Some(Vector::Plain),
            ("essiv", hash) => {
                Hash::named(hash).and_then(|hash| Aes::new(&hash.of(&[key]))).map(Vector::Essiv)
            }
            _ => None,
        };
        let (Some(mode), Some(vector)) = (mode, vector) else { return Err(unknown()) };
        Ok(Cipher { mode, vector, sector })
    }

    fn vector(&self, number: u64) -> [u8; 16] {
        let mut vector = [0; 16];
        let bytes = match self.vector {
            Vector::Plain => number & u64::from(u32::MAX),
            _ => number,
        };
        let (low, _) = vector.split_at_mut(8);
        low.copy_from_slice(&bytes.to_le_bytes());
        if let Vector::Essiv(aes) = &self.vector {
            aes.encrypt(&mut vector);
        }
        vector
    }

    /// Numbers of the sectors in `data`, whose first has the number `first` in units of 512 bytes.
    fn each(&self, first: u64, data: &mut [u8], mut each: impl FnMut(&Self, [u8; 16], &mut [u8])) {
        let step = (self.sector / 512) as u64;
        let mut number = first;
        for sector in data.chunks_mut(self.sector) {
            each(self, self.vector(number), sector);
            number = number.wrapping_add(step);
        }
    }

    /// Encrypts whole sectors; `first` is the number of the first in units of 512 bytes.
    pub fn encrypt(&self, first: u64, data: &mut [u8]) {
        self.each(first, data, |cipher, vector, sector| match &cipher.mode {
            Mode::XtsShort(xts) => xts.encrypt_sector(sector, vector),
            Mode::XtsLong(xts) => xts.encrypt_sector(sector, vector),
            Mode::Cbc(aes) => {
                let mut last = vector;
                for block in sector.as_chunks_mut::<16>().0 {
                    xor(block, &last);
                    aes.encrypt(block);
                    last = *block;
                }
            }
        });
    }

    /// Decrypts whole sectors; `first` is the number of the first in units of 512 bytes.
    pub fn decrypt(&self, first: u64, data: &mut [u8]) {
        self.each(first, data, |cipher, vector, sector| match &cipher.mode {
            Mode::XtsShort(xts) => xts.decrypt_sector(sector, vector),
            Mode::XtsLong(xts) => xts.decrypt_sector(sector, vector),
            Mode::Cbc(aes) => {
                let mut last = vector;
                for block in sector.as_chunks_mut::<16>().0 {
                    let encrypted = *block;
                    aes.decrypt(block);
                    xor(block, &last);
                    last = encrypted;
                }
            }
        });
    }
}
