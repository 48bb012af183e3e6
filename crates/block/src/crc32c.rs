//! CRC-32C (Castagnoli), as RFC 3720 section 12.1 defines it.

const POLYNOMIAL: u32 = 0x82F6_3B78;

/// Bytes that are taken at a time.
const STEP: usize = 16;

/// What a byte makes of the checksum; in table `n`, when `n` zeros follow it.
static TABLES: [[u32; 256]; STEP] = {
    let mut tables = [[0; 256]; STEP];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][n] = crc;
        n += 1;
    }
    let mut zeros = 1;
    while zeros < STEP {
        let mut n = 0;
        while n < 256 {
            let before = tables[zeros - 1][n];
            tables[zeros][n] = before >> 8 ^ tables[0][(before & 0xFF) as usize];
            n += 1;
        }
        zeros += 1;
    }
    tables
};

/// Goes on with `bytes`; the checksum is not inverted yet.
fn go_on(crc: u32, bytes: &[u8]) -> u32 {
    let (steps, rest) = bytes.as_chunks::<STEP>();
    let crc = steps.iter().fold(crc, |crc, step| {
        let mut step = *step;
        step.iter_mut().zip(crc.to_le_bytes()).for_each(|(byte, crc)| *byte ^= crc);
        step.iter().zip(TABLES.iter().rev()).fold(0, |sum, (byte, table)| sum ^ table[usize::from(*byte)])
    });
    rest.iter().fold(crc, |crc, &byte| crc >> 8 ^ TABLES[0][usize::from(crc as u8 ^ byte)])
}

/// The checksum of bytes that come in parts.
#[derive(Default)]
pub struct Crc32c(u32);

impl Crc32c {
    /// Goes on with a part.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 = !go_on(!self.0, bytes);
    }

    /// Of all parts so far.
    pub fn value(&self) -> u32 {
        self.0
    }
}

/// Checksum of a structure whose four bytes at `at` count as zeros.
pub(crate) fn crc32c_without(bytes: &[u8], at: usize) -> u32 {
    let (head, rest) = bytes.split_at(at.min(bytes.len()));
    let (hidden, rest) = rest.split_at(rest.len().min(4));
    let zeros = [0; 4];
    !go_on(go_on(go_on(u32::MAX, head), zeros.get(..hidden.len()).unwrap_or_default()), rest)
}

/// Checksum of all bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !go_on(u32::MAX, bytes)
}

#[cfg(test)]
mod tests {
    use super::{crc32c, crc32c_without};

    /// As the RFC defines it, a bit at a time.
    fn one_by_one(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            let step = |crc: u32| crc >> 1 ^ (super::POLYNOMIAL & (crc & 1).wrapping_neg());
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc))
        })
    }

    /// RFC 3720, appendix B.4.
    #[test]
    fn examples_of_the_rfc() {
        let none = usize::MAX;
        assert_eq!(crc32c_without(&[0; 32], none), 0x8A91_36AA);
        assert_eq!(crc32c_without(&[0xFF; 32], none), 0x62A8_AB43);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c_without(&up, none), 0x46DD_794E);
        assert_eq!(crc32c(&up), 0x46DD_794E);
        assert_eq!(
            crc32c(&[&up[..], &up, &up[..9]].concat()),
            one_by_one(&[&up[..], &up, &up[..9]].concat())
        );
        assert_eq!(crc32c_without(&[7; 32], 0), crc32c_without(&[&[9; 4][..], &[7; 28]].concat(), 0));
    }
}
