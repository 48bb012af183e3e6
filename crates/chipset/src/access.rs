//! Register values and the bytes of an access (little-endian, 1–8 bytes).

/// The value written; missing bytes are zero.
pub fn load(data: &[u8]) -> u64 {
    data.iter().take(8).rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Fills the bytes read with the low part of a value.
pub fn store(data: &mut [u8], value: u64) {
    for (byte, from) in data.iter_mut().zip(value.to_le_bytes().into_iter().chain(std::iter::repeat(0))) {
        *byte = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_little_endian_and_of_any_length() {
        assert_eq!(load(&[0x34, 0x12]), 0x1234);
        assert_eq!(load(&[]), 0);
        let mut data = [0xff; 3];
        store(&mut data, 0x0102_0304);
        assert_eq!(data, [4, 3, 2]);
        let mut long = [0xff; 9];
        store(&mut long, u64::MAX);
        assert_eq!(long[8], 0);
    }
}
