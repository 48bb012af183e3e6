//! The end of a file, which says where everything is.

use crate::backend::{BlockBackend, SECTOR_SIZE};
use crate::error::BlockError;
use crate::image::ImageResult;
use std::path::Path;

/// Bytes of the trailer.
pub(super) const TRAILER: u64 = 512;
const MAGIC: &[u8] = b"koly";
/// Longest property list, in bytes: tables of 150000 chunks.
const XML_MAX: u64 = 8 << 20;

/// What the trailer says.
#[derive(Clone, Debug)]
pub(super) struct Trailer {
    /// First byte of the data, and their length.
    pub data: (u64, u64),
    /// CRC-32 of the data, where one is stored.
    pub crc: Option<u32>,
    /// First byte of the property list, and its length.
    pub xml: (u64, u64),
    /// Sectors of the disk; 0 where the tables alone say.
    pub sectors: u64,
}

/// Whether a file ends with a trailer.
pub(crate) fn is_there(file: &dyn BlockBackend) -> std::io::Result<bool> {
    let Some(at) = file.size().checked_sub(TRAILER) else { return Ok(false) };
    let mut magic = [0; 4];
    file.read_bytes(at, &mut magic)?;
    Ok(magic == MAGIC)
}

pub(super) fn read(file: &dyn BlockBackend, path: &Path) -> ImageResult<Trailer> {
    let at = file.size().checked_sub(TRAILER).ok_or_else(|| {
        BlockError::metadata(path, 0, "koly trailer", "is missing: the file is shorter than 512 bytes")
    })?;
    let mut bytes = [0; TRAILER as usize];
    file.read_bytes(at, &mut bytes).map_err(|source| BlockError::io(path, "reading the trailer", source))?;
    let u32_at = |at: usize| u32::from_be_bytes(std::array::from_fn(|index| bytes[at + index]));
    let u64_at = |at: usize| u64::from_be_bytes(std::array::from_fn(|index| bytes[at + index]));
    let wrong = |field: u64, name, problem: String| BlockError::metadata(path, at + field, name, problem);
    if !bytes.starts_with(MAGIC) {
        return Err(wrong(0, "koly trailer", "is not there; is this an Apple disk image?".to_owned()));
    }
    if (u32_at(4), u32_at(8)) != (4, TRAILER as u32) {
        return Err(wrong(
            4,
            "Version",
            format!("is {}, with {} bytes; 4 and 512 are known", u32_at(4), u32_at(8)),
        ));
    }
    if u32_at(60) > 1 {
        return Err(BlockError::unsupported(path, format!("its other {} segments", u32_at(60) - 1)));
    }
    let inside = |field: u64, name, start: u64, len: u64| match start.checked_add(len) {
        Some(end) if end <= file.size() => Ok((start, len)),
        _ => Err(wrong(field, name, format!("says {len} bytes at {start}, which the file does not have"))),
    };
    let data = inside(24, "DataForkOffset", u64_at(24), u64_at(32))?;
    let xml = inside(216, "XMLOffset", u64_at(216), u64_at(224))?;
    if xml.1 == 0 {
        let what = "tables in a resource fork, which only tools before Mac OS X 10.2 need";
        return Err(BlockError::unsupported(path, what));
    }
    if xml.1 > XML_MAX {
        return Err(wrong(224, "XMLLength", format!("is {}; at most {XML_MAX} bytes are read", xml.1)));
    }
    let sectors = u64_at(492);
    if sectors > i64::MAX as u64 / SECTOR_SIZE {
        return Err(wrong(492, "SectorCount", format!("is {sectors}, which is more than 8 EiB")));
    }
    /// The checksum's type.
    const CRC32: u32 = 2;
    let crc = ((u32_at(80), u32_at(84)) == (CRC32, 32)).then(|| u32_at(88));
    Ok(Trailer { data, crc, xml, sectors })
}
