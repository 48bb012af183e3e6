//! Checksums of forged metadata; their code is not the drivers'.

/// CRC-32C of a byte, a bit at a time.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0_u32;
    while n < 256 * 8 {
        let crc = if n % 8 == 0 { n / 8 } else { table[n as usize / 8] };
        table[n as usize / 8] = crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        n += 1;
    }
    table
};

/// CRC-32C.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}
