//! CRC-32C (Castagnoli), as RFC 3720 section 12.1 defines it.

const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

/// Checksum of a structure whose four bytes at `at` count as zeros.
pub(crate) fn crc32c_without(bytes: &[u8], at: usize) -> u32 {
    let crc = bytes.iter().enumerate().fold(u32::MAX, |crc, (n, &byte)| {
        let byte = if (at..at + 4).contains(&n) { 0 } else { byte };
        crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)]
    });
    !crc
}

/// Checksum of all bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::{crc32c, crc32c_without};

    /// RFC 3720, appendix B.4.
    #[test]
    fn examples_of_the_rfc() {
        let none = usize::MAX - 8;
        assert_eq!(crc32c_without(&[0; 32], none), 0x8A91_36AA);
        assert_eq!(crc32c_without(&[0xFF; 32], none), 0x62A8_AB43);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c_without(&up, none), 0x46DD_794E);
        assert_eq!(crc32c(&up), 0x46DD_794E);
        assert_eq!(crc32c_without(&[7; 32], 0), crc32c_without(&[&[9; 4][..], &[7; 28]].concat(), 0));
    }
}
