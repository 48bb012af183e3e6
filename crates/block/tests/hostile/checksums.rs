//! Checksums of forged metadata; their code is not the drivers'.

use std::sync::LazyLock;

/// CRC-32C of a byte, a bit at a time.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0_u32;
    while n < 256 * 8 {
        let crc = if n.is_multiple_of(8) { n / 8 } else { table[n as usize / 8] };
        table[n as usize / 8] = crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        n += 1;
    }
    table
};

/// Zeros that most structures end in.
const TAIL: usize = 60 << 10;

/// What each bit of the sum becomes when the zeros follow: they need not be gone through every time.
static AFTER_TAIL: LazyLock<[u32; 32]> =
    LazyLock::new(|| std::array::from_fn(|bit| go_on(1 << bit, &vec![0; TAIL])));

fn go_on(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// CRC-32C.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let (head, tail) = bytes.split_at(bytes.len().saturating_sub(TAIL));
    if tail.len() < TAIL || tail.iter().any(|byte| *byte != 0) {
        return !go_on(u32::MAX, bytes);
    }
    let crc = go_on(u32::MAX, head);
    !(0..32).filter(|bit| crc >> bit & 1 != 0).fold(0, |sum, bit| sum ^ AFTER_TAIL[bit])
}
