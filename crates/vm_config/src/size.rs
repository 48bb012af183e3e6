//! Sizes in bytes, as people write them.

use crate::ConfigError;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// A number of bytes. Text: digits and a unit K, M, G or T of 1024s (also KiB … TiB); a bare number is bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u32); 5] = [("T", 40), ("G", 30), ("M", 20), ("K", 10), ("", 0)];

impl FromStr for ByteSize {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let fail = || ConfigError::value("Size", text, "a number with K, M, G or T is needed, like 512M");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let upper = unit.to_ascii_uppercase();
        // The "i" of KiB belongs to a letter; there are no iB.
        let binary = upper.strip_suffix("IB").filter(|unit| !unit.is_empty());
        let unit = binary.or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
        let shift = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(fail)?.1;
        let number: u64 = number.parse().map_err(|_| fail())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(fail)?;
        Ok(ByteSize(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        let (unit, shift) = UNITS.iter().find(|(_, shift)| fits(*shift)).unwrap_or(&("", 0));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size like \"512M\" or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom("a size cannot be negative"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [("512M", 512 << 20), ("4G", 4 << 30), ("3k", 3072), ("1GiB", 1 << 30), ("7", 7)]
        {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }
        assert_eq!(ByteSize(1536 << 20).to_string(), "1536M");
        for text in ["", "M", "12X", "-1", "1.5G", "99999999999T", "512 M", "5iB", "5i", "5Mi", "5BB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
