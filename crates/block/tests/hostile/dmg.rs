//! Images of dmg, and how their tables change.

use super::composed_dmg::{ADC, BZIP2, LZFSE, Piece, RAW, UNUSED, XZ, ZERO, ZLIB, composed};
use super::memory::Memory;
use super::program::{CHANGE, Seed};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use block::BlockBackend;

/// 1024 zeros of bzip2 and of xz, as their own tools pack them.
const BZIP2_ZEROS: [u8; 42] = [
    66, 90, 104, 57, 49, 65, 89, 38, 83, 89, 116, 245, 173, 247, 0, 0, 4, 64, 0, 192, 0, 0, 8, 32, 0, 48,
    128, 42, 105, 69, 172, 56, 187, 146, 41, 194, 132, 131, 167, 173, 111, 184,
];
const XZ_ZEROS: [u8; 72] = [
    253, 55, 122, 88, 90, 0, 0, 1, 105, 34, 222, 54, 2, 0, 33, 1, 12, 0, 0, 0, 143, 152, 65, 156, 224, 3,
    255, 0, 11, 93, 0, 0, 111, 253, 255, 255, 163, 183, 127, 70, 50, 0, 0, 0, 46, 175, 181, 239, 0, 1, 35,
    128, 8, 0, 0, 0, 56, 59, 63, 54, 62, 48, 13, 139, 2, 0, 0, 0, 0, 1, 89, 90,
];

/// Bytes in runs of ADC, without a copy.
fn adc(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(128).flat_map(|run| [&[0x80 | (run.len() - 1) as u8], run].concat()).collect()
}

/// Bytes in a plain block of deflate.
fn zlib(bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len() as u16;
    let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    [&[0x78, 1, 1][..], &len.to_le_bytes(), &(!len).to_le_bytes(), bytes, &(b << 16 | a).to_be_bytes()]
        .concat()
}

/// Bytes in a plain block of LZFSE.
fn lzfse(bytes: &[u8]) -> Vec<u8> {
    [b"bvx-", &(bytes.len() as u32).to_le_bytes()[..], bytes, b"bvx$"].concat()
}

pub fn seeds() -> Vec<Seed> {
    let piece = |kind, sectors, stored| Piece { kind, sectors, stored };
    let some: Vec<u8> = (0..1024_u32).map(|at| (at * 7) as u8).collect();
    let first = vec![
        piece(RAW, 2, some.clone()),
        piece(ZERO, 40, Vec::new()),
        piece(ADC, 2, adc(&some)),
        piece(ZLIB, 2, zlib(&some)),
    ];
    let second = vec![
        piece(BZIP2, 2, BZIP2_ZEROS.to_vec()),
        piece(LZFSE, 2, lzfse(&some)),
        piece(UNUSED, 7, Vec::new()),
        piece(XZ, 2, XZ_ZEROS.to_vec()),
    ];
    let bytes = composed(&[first, second]);
    let text = |number: usize| {
        let find = |what: &str, from: usize| {
            let place = bytes[from..].windows(what.len()).position(|window| window == what.as_bytes());
            from + place.unwrap()
        };
        let start = (0..=number).fold(0, |from, _| find("<data>\n\t\t\t", from) + 10);
        start..find("\n", start)
    };
    let data = bytes.windows(5).position(|window| window == b"<?xml").unwrap();
    let fields = vec![bytes.len() - 512..bytes.len(), text(0), text(1), 0..data, data..bytes.len() - 512];
    vec![Seed { change, ..Seed::new("dmg", bytes, fields) }]
}

/// As many chunks as a property list of 8 MiB can say; nothing is stored of them.
#[cfg(test)]
pub fn largest() -> Vec<u8> {
    const CHUNKS: usize = 150_000;
    let piece = |_| Piece { kind: BZIP2, sectors: 2, stored: Vec::new() };
    let bytes = composed(&[(0..CHUNKS).map(piece).collect()]);
    assert!(bytes.len() > 7 << 20 && bytes.len() < 8 << 20, "{}", bytes.len());
    bytes
}

/// Changes a table that base 64 hides: half of the changes whose place is in one.
fn change(seed: &Seed, file: &Memory, change: &[u8; CHANGE]) -> bool {
    let [table @ (1 | 2), low, high, how, value @ ..] = *change else { return false };
    let range = seed.fields[usize::from(table)].clone();
    let mut text = vec![0; range.len()];
    if how & 0x80 != 0 || file.read_bytes(range.start as u64, &mut text).is_err() {
        return false;
    }
    let Ok(mut bytes) = STANDARD.decode(&text) else { return false };
    let width = 1 << (how & 3);
    let at = usize::from(u16::from_le_bytes([low, high])) % (bytes.len() - width);
    bytes[at..at + width].copy_from_slice(&value[..width]);
    file.write_bytes(range.start as u64, STANDARD.encode(&bytes).as_bytes()).is_ok()
}
