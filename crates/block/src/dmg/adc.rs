//! Apple Data Compression: runs of bytes, and copies from what came before.

/// Unpacks all of `packed` into at most `most` bytes; `None` where it is damaged.
///
/// A first byte with bit 7 is followed by as many bytes as its other bits say, and one more. With bit 6, its other bits
/// and 4 are a copy's length, the next two bytes its distance; else bits 2 to 5 and 3 are the length, bits 0 and 1 with
/// the next byte the distance. A distance of 0 is the byte before.
pub(super) fn unpack(packed: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(most);
    let mut rest = packed;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first & 0x80 != 0 {
            let (run, after) = rest.split_at_checked(usize::from(first & 0x7F) + 1)?;
            out.extend_from_slice(run);
            rest = after;
        } else {
            let (len, distance) = if first & 0x40 != 0 {
                let (bytes, after) = rest.split_first_chunk()?;
                rest = after;
                (usize::from(first & 0x3F) + 4, usize::from(u16::from_be_bytes(*bytes)))
            } else {
                let (&low, after) = rest.split_first()?;
                rest = after;
                (usize::from(first >> 2) + 3, usize::from(first & 3) << 8 | usize::from(low))
            };
            let start = out.len().checked_sub(distance + 1)?;
            for at in start..start + len {
                // A copy may go on into what it writes.
                let byte = *out.get(at)?;
                out.push(byte);
            }
        }
        if out.len() > most {
            return None;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::unpack;

    #[test]
    fn runs_and_copies() {
        // "abc", then 5 bytes from 3 before, then 3 from 1 before.
        let packed = [0x82, b'a', b'b', b'c', 2 << 2, 2, 0, 0];
        assert_eq!(unpack(&packed, 100).unwrap(), b"abcabcabbbb");
        let long = [0x80, b'x', 0x40 | 60, 0, 0];
        assert_eq!(unpack(&long, 100).unwrap(), [b'x'; 65]);
        assert_eq!(unpack(&long, 64), None);
        for damaged in [&[0x82, 1][..], &[0], &[0, 0], &[0x40, 0], &[0x80, 1, 0, 1]] {
            assert_eq!(unpack(damaged, 100), None, "{damaged:?}");
        }
    }
}
