//! Fields of on-disk structures.

use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::image::ImageResult;
use std::fmt::Display;
use std::path::Path;

/// The bytes of a structure, with what messages need.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    base: u64,
    bytes: Vec<u8>,
}

impl<'a> Fields<'a> {
    /// Reads a structure of `len` bytes. Where the file ends earlier is an error that names the structure.
    pub fn read(
        file: &dyn BlockBackend,
        path: &'a Path,
        base: u64,
        len: usize,
        name: &'static str,
    ) -> ImageResult<Self> {
        if base.checked_add(len as u64).is_none_or(|end| end > file.size()) {
            let problem = format!("needs {len} bytes; the file ends at {:#x}", file.size());
            return Err(BlockError::metadata(path, base, name, problem));
        }
        let mut bytes = vec![0; len];
        file.read_bytes(base, &mut bytes)
            .map_err(|source| BlockError::io(path, "reading the metadata", source))?;
        Ok(Fields { path, base, bytes })
    }

    /// The fields of `bytes`, which are at `base` of the file.
    pub fn of(path: &'a Path, base: u64, bytes: Vec<u8>) -> Self {
        Fields { path, base, bytes }
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `N` bytes; zeros where the structure ends.
    pub fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }

    /// Little-endian.
    pub fn u16_le(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }
    /// Little-endian.
    pub fn u32_le(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    /// Little-endian.
    pub fn u64_le(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
    /// Big-endian.
    pub fn u16_be(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.array(at))
    }
    /// Big-endian.
    pub fn u32_be(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }
    /// Big-endian.
    pub fn u64_be(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.array(at))
    }

    /// An error about the field at `at`.
    pub fn wrong(&self, at: usize, field: &'static str, problem: impl Display) -> BlockError {
        BlockError::metadata(self.path, self.base + at as u64, field, problem)
    }

    /// Fails with what `problem` says unless `right`.
    pub fn require(
        &self,
        right: bool,
        at: usize,
        field: &'static str,
        problem: impl FnOnce() -> String,
    ) -> ImageResult<()> {
        if right { Ok(()) } else { Err(self.wrong(at, field, problem())) }
    }
}

/// Puts `bytes` into a structure.
pub(crate) fn put(structure: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = structure.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
