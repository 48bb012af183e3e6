//! Changes of texts in headers: VMDK's descriptors, the JSON of LUKS2.

use super::program::CHANGE;

/// Words that mean something somewhere, or end something.
const WORDS: &[&str] = &[
    "0",
    "1",
    "-1",
    "512",
    "8",
    "1000000",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
    "null",
    "true",
    "",
    "{}",
    "[]",
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    "=",
    "\n",
    "luks2",
    "argon2id",
    "argon2i",
    "pbkdf2",
    "sha1",
    "sha256",
    "sha512",
    "aes-cbc-essiv:sha256",
    "aes-xts-plain64",
    "aes-cbc-plain",
    "dynamic",
    "crypt",
    "linear",
    "ZERO",
    "SPARSE",
    "FLAT",
    "VMFS",
    "VMFSSPARSE",
    "RW",
    "RDONLY",
    "NOACCESS",
    "hostile",
    "monolithicFlat",
    "streamOptimized",
    "custom",
    "parentCID",
    "CID",
    "RW 8 ZERO\n",
    "RW 1048576 SPARSE \"hostile\"\n",
    "RW 8 FLAT \"hostile\" 0\n",
    "ffffffff",
    "512\n",
];

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'/')
}

/// Puts another word in the place of one.
pub fn change(text: &[u8], change: &[u8; CHANGE]) -> Vec<u8> {
    let place = usize::from(u16::from_le_bytes([change[1], change[2]]));
    let starts: Vec<usize> = (0..text.len())
        .filter(|at| is_word(text[*at]) && at.checked_sub(1).is_none_or(|before| !is_word(text[before])))
        .collect();
    let Some(&start) = starts.get(place % starts.len().max(1)) else { return text.to_vec() };
    let end = text[start..].iter().position(|byte| !is_word(*byte)).map_or(text.len(), |len| start + len);
    let number = u64::from_le_bytes(change[4..].try_into().unwrap()).to_string();
    let word = match change[3] {
        which if which & 0x80 == 0 => WORDS[usize::from(which) % WORDS.len()].as_bytes(),
        which if which & 0x40 == 0 => number.as_bytes(),
        // Another word of the text, or some bytes.
        which if which & 0x20 == 0 => {
            let start = starts[usize::from(change[4]) % starts.len()];
            let len = text[start..].iter().position(|byte| !is_word(*byte)).unwrap_or(0);
            &text[start..start + len]
        }
        _ => &change[4..],
    };
    [&text[..start], word, &text[end..]].concat()
}
