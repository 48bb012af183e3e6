//! CRC-32C (Castagnoli), as RFC 3720 section 12.1 defines it, by the host's instruction for it where there is one.

/// The checksum of bytes that come in parts.
#[derive(Default)]
pub struct Crc32c(u32);

impl Crc32c {
    /// Goes on with a part.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
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
    let mut sum = Crc32c::default();
    sum.add(head);
    sum.add([0; 4].get(..hidden.len()).unwrap_or_default());
    sum.add(rest);
    sum.value()
}

/// Checksum of all bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

#[cfg(test)]
mod tests {
    use super::{crc32c, crc32c_without};

    const POLYNOMIAL: u32 = 0x82F6_3B78;

    /// As the RFC defines it, a bit at a time.
    fn one_by_one(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            let step = |crc: u32| crc >> 1 ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
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
