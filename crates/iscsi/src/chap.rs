//! Proving to know a secret without saying it: CHAP with MD5 (RFC 1994, RFC 7143, 12.1.3).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};

/// The algorithm's number for `CHAP_A`.
pub(crate) const MD5: &str = "5";
/// Longest challenge, in bytes.
const CHALLENGE_MAX: usize = 1024;
/// Bytes of our own challenges.
pub(crate) const CHALLENGE: usize = 16;

/// The proof.
pub(crate) fn response(id: u8, secret: &[u8], challenge: &[u8]) -> [u8; 16] {
    Md5::new().chain_update([id]).chain_update(secret).chain_update(challenge).finalize().into()
}

/// Binary values as text.
pub(crate) fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Binary values from text: hexadecimal after `0x`, base 64 after `0b`.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let (kind, digits) = text.split_at_checked(2)?;
    if digits.len() > 2 * CHALLENGE_MAX {
        return None;
    }
    let bytes = match kind {
        "0x" | "0X" => {
            // An odd number of digits has a zero before it.
            let digits = if digits.len() % 2 == 0 { digits.to_owned() } else { format!("0{digits}") };
            let pairs = digits.as_bytes().chunks(2);
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            pairs.map(byte).collect::<Option<Vec<u8>>>()?
        }
        "0b" | "0B" => STANDARD.decode(digits).ok()?,
        _ => return None,
    };
    (!bytes.is_empty() && bytes.len() <= CHALLENGE_MAX).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1321, A.5: the hash of "abc".
    #[test]
    fn the_proof_is_the_hash_of_id_secret_and_challenge() {
        assert_eq!(encode(&response(b'a', b"b", b"c")), "0x900150983cd24fb0d6963f7d28e17f72");
    }

    #[test]
    fn values_are_hexadecimal_or_base_64() {
        assert_eq!(decode("0x0aFF"), Some(vec![10, 255]));
        assert_eq!(decode("0xaff"), Some(vec![10, 255]));
        assert_eq!(decode("0bYWJj"), Some(b"abc".to_vec()));
        for wrong in ["", "0", "0x", "12", "0xg0", "0b*", "é"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
        assert_eq!(decode(&encode(&[7; 1025])), None);
    }
}
