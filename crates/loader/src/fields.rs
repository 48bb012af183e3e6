//! Little-endian numbers at checked offsets of a byte slice.

/// Bytes at `offset`, if there are that many.
pub fn bytes(image: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    image.get(start..end)
}

fn array<const N: usize>(image: &[u8], offset: u64) -> Option<[u8; N]> {
    bytes(image, offset, N as u64)?.try_into().ok()
}

/// A 16-bit number.
pub fn u16_at(image: &[u8], offset: u64) -> Option<u16> {
    array(image, offset).map(u16::from_le_bytes)
}

/// A 32-bit number.
pub fn u32_at(image: &[u8], offset: u64) -> Option<u32> {
    array(image, offset).map(u32::from_le_bytes)
}

/// A 64-bit number.
pub fn u64_at(image: &[u8], offset: u64) -> Option<u64> {
    array(image, offset).map(u64::from_le_bytes)
}

/// Overwrites bytes of a table; `offset` is one of the table's own constants.
pub fn put(table: &mut [u8], offset: usize, value: &[u8]) {
    table[offset..offset + value.len()].copy_from_slice(value);
}
