//! LUKS containers whose keys cost nothing: one stripe, one iteration. The drivers do not make such ones, but open them.

use super::memory::Memory;
use super::program::{CHANGE, Seed};
use super::text;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use block::BlockBackend;
use sha2::{Digest, Sha256};

/// An encryption, and a key that the passphrase `secret` opens: the bytes 0, 1, 2 ... The slot's key is PBKDF2 with
/// HMAC-SHA-256 of the passphrase and 32 zeros as the salt, one iteration. Both made with Python's hashlib and
/// `openssl enc -aes-128-ecb`, from the definitions of CBC and XTS.
pub struct Key {
    mode: &'static str,
    len: u32,
    /// The only stripe, encrypted.
    material: [u8; 32],
    /// PBKDF2 of the key, same salt and iteration.
    digest: [u8; 32],
}

pub const XTS: &Key = &Key {
    mode: "xts-plain64",
    len: 32,
    material: hex(b"b053254a4cd2eaa79b0c9b0f34edf69f136b4a96e71a988eaca805aed6cd019a"),
    digest: hex(b"29a1953f0d2149ddd60ed1e1c9e824a69c90edbf721bca350bb02a80e3617d5b"),
};

const CBC: &Key = &Key {
    mode: "cbc-plain64",
    len: 16,
    material: hex(b"1914b086db16fd941f6380f52eb69d7200000000000000000000000000000000"),
    digest: hex(b"be286b516d06f1f4df1ee5acc18152d998b54db9b261eb132d898fe3b4c87674"),
};

const fn hex(text: &[u8; 64]) -> [u8; 32] {
    const fn digit(digit: u8) -> u8 {
        if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 }
    }
    let mut bytes = [0; 32];
    let mut n = 0;
    while n < 32 {
        bytes[n] = digit(text[2 * n]) << 4 | digit(text[2 * n + 1]);
        n += 1;
    }
    bytes
}

/// Header and first key material of version 1; the content begins at sector 24.
pub fn version_1(key: &Key) -> Vec<u8> {
    let mut header = vec![0; 9 * 512];
    let mut put = |at: usize, what: &[u8]| header[at..at + what.len()].copy_from_slice(what);
    put(0, b"LUKS\xba\xbe\0\x01aes");
    put(40, key.mode.as_bytes());
    put(72, b"sha256");
    put(104, &24_u32.to_be_bytes());
    put(108, &key.len.to_be_bytes());
    put(112, &key.digest[..20]);
    put(164, &1_u32.to_be_bytes());
    put(168, b"01234567-89ab-cdef-0123-456789abcdef");
    for slot in 0..8_u32 {
        let at = 208 + 48 * slot as usize;
        put(at, &if slot == 0 { 0x00ac_71f3_u32 } else { 0xdead }.to_be_bytes());
        put(at + 4, &u32::from(slot == 0).to_be_bytes());
        put(at + 40, &(8 + slot).to_be_bytes());
        put(at + 44, &1_u32.to_be_bytes());
    }
    put(8 * 512, &key.material);
    header
}

pub fn first() -> Vec<Seed> {
    let seed = |key| {
        let mut bytes = version_1(key);
        bytes.resize(80 << 10, 0x3C);
        Seed::new("luks", bytes, vec![0..112, 112..208, 208..256, 208..592, 0..8])
    };
    vec![seed(XTS), seed(CBC)]
}

/// Bytes of a header of version 2 with its text.
const SIZE: usize = 16 << 10;
const MATERIAL: usize = 2 * SIZE;
const CONTENT: usize = MATERIAL + 8192;

/// Both headers of version 2. The first slot opens with no passphrase and has Argon2, the second is `key`'s.
fn version_2(key: &Key) -> Vec<u8> {
    let encryption = format!("aes-{}", key.mode);
    let (len, salt, digest) = (key.len, BASE64.encode([0; 32]), BASE64.encode(key.digest));
    let slot = |kdf: &str, at: usize| {
        format!(
            r#"{{"type":"luks2","key_size":{len},"kdf":{{{kdf},"salt":"{salt}"}},"af":{{"type":"luks1","stripes":1,"hash":"sha256"}},"area":{{"type":"raw","offset":"{at}","size":"4096","encryption":"{encryption}","key_size":{len}}}}}"#
        )
    };
    let argon2 = slot(r#""type":"argon2id","time":1,"memory":32,"cpus":1"#, MATERIAL + 4096);
    let pbkdf2 = slot(r#""type":"pbkdf2","hash":"sha256","iterations":1"#, MATERIAL);
    let text = format!(
        r#"{{"keyslots":{{"0":{argon2},"1":{pbkdf2}}},"tokens":{{}},"segments":{{"0":{{"type":"crypt","offset":"{CONTENT}","size":"dynamic","iv_tweak":"0","encryption":"{encryption}","sector_size":512}}}},"digests":{{"0":{{"type":"pbkdf2","keyslots":["0","1"],"segments":["0"],"hash":"sha256","iterations":1,"salt":"{salt}","digest":"{digest}"}}}},"config":{{"json_size":"12288","keyslots_size":"8192"}}}}"#
    );
    let mut bytes = vec![0x3C; CONTENT + (64 << 10)];
    bytes[..CONTENT].fill(0);
    for at in [0, SIZE] {
        let mut put = |within: usize, what: &[u8]| {
            bytes[at + within..at + within + what.len()].copy_from_slice(what);
        };
        put(0, if at == 0 { b"LUKS\xba\xbe\0\x02" } else { b"SKUL\xba\xbe\0\x02" });
        put(8, &(SIZE as u64).to_be_bytes());
        put(16, &1_u64.to_be_bytes());
        put(72, b"sha256");
        put(256, &(at as u64).to_be_bytes());
        put(4096, text.as_bytes());
    }
    bytes[MATERIAL..MATERIAL + 32].copy_from_slice(&key.material);
    bytes
}

pub fn second() -> Vec<Seed> {
    let seed = |key| {
        let bytes = version_2(key);
        let file = Memory::new(bytes.clone(), true);
        seal(&file);
        let mut sealed = bytes;
        file.read_bytes(0, &mut sealed).unwrap();
        Seed { seal, change, ..Seed::new("luks", sealed, vec![0..512, SIZE..SIZE + 512, 0..24, 4096..6144]) }
    };
    vec![seed(XTS), seed(CBC)]
}

/// A word of the text becomes another, in the first header or in both.
fn change(_seed: &Seed, file: &Memory, change: &[u8; CHANGE]) -> bool {
    if change[0] < 0x80 {
        return false;
    }
    let mut text = vec![0; SIZE - 4096];
    let _ = file.read_bytes(4096, &mut text);
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let mut new = text::change(&text[..end], change);
    new.resize(new.len().max(end).min(text.len()), 0);
    let _ = file.write_bytes(4096, &new);
    if change[0] & 1 != 0 {
        let _ = file.write_bytes(SIZE as u64 + 4096, &new);
    }
    true
}

/// The checksum of both headers, where they changed.
fn seal(file: &Memory) {
    for at in [0, SIZE] {
        let mut bytes = vec![0; SIZE];
        let _ = file.read_bytes(at as u64, &mut bytes);
        bytes[448..512].fill(0);
        let sum = Sha256::digest(&bytes);
        if file.differs(at..at + SIZE) || bytes[4096] != 0 {
            let _ = file.write_bytes(at as u64 + 448, &sum);
        }
    }
}
