//! Little-endian numbers at checked offsets.

use crate::LoadError;
use std::path::Path;

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

/// The named header fields of one file. A field that the file is too short for is an error that says which.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    path: &'a Path,
    image: &'a [u8],
    refuse: fn(&Path, String) -> LoadError,
}

impl<'a> Fields<'a> {
    /// Fields of `image`; `refuse` makes the error of the file's format.
    pub fn new(path: &'a Path, image: &'a [u8], refuse: fn(&Path, String) -> LoadError) -> Self {
        Fields { path, image, refuse }
    }

    /// The error for a problem of this file.
    pub fn fail(&self, problem: impl Into<String>) -> LoadError {
        (self.refuse)(self.path, problem.into())
    }

    fn read<T>(&self, found: Option<T>, offset: u64, name: &str) -> Result<T, LoadError> {
        found.ok_or_else(|| {
            let len = self.image.len();
            self.fail(format!(
                "its field {name} at offset {offset:#x} is cut off: the file has {len} bytes; copy it again"
            ))
        })
    }

    /// An 8-bit field.
    pub fn u8(&self, offset: u64, name: &str) -> Result<u8, LoadError> {
        self.read(array::<1>(self.image, offset).map(|[byte]| byte), offset, name)
    }

    /// A 16-bit field.
    pub fn u16(&self, offset: u64, name: &str) -> Result<u16, LoadError> {
        self.read(u16_at(self.image, offset), offset, name)
    }

    /// A 32-bit field.
    pub fn u32(&self, offset: u64, name: &str) -> Result<u32, LoadError> {
        self.read(u32_at(self.image, offset), offset, name)
    }

    /// A 64-bit field.
    pub fn u64(&self, offset: u64, name: &str) -> Result<u64, LoadError> {
        self.read(u64_at(self.image, offset), offset, name)
    }
}
