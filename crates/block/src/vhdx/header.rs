//! The two headers and the two region tables (MS-VHDX sections 2.2.2 and 2.2.3).

use crate::backend::BlockBackend;
use crate::crc32c::crc32c_without;
use crate::error::BlockError;
use crate::image::ImageResult;
use crate::mapped::{Fields, put};
use std::ops::Range;
use std::path::Path;

/// Unit of all offsets of regions and blocks.
pub(super) const MIB: u64 = 1 << 20;
/// Where the headers are.
pub(super) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Where the region tables are.
pub(super) const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const HEADER_LEN: usize = 4096;
const REGION_TABLE_LEN: usize = 64 << 10;
const REGIONS_MAX: u32 = 2047;
const LOG_MAX: u32 = 64 << 20;

/// A GUID as it is stored.
pub(super) type Guid = [u8; 16];

/// The stored form of a GUID's numbers.
pub(super) const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> Guid {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// Region of the block allocation table.
pub(super) const BAT: Guid =
    guid(0x2DC2_7766, 0xF623, 0x4200, [0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08]);
/// Region of the metadata.
pub(super) const METADATA: Guid =
    guid(0x8B7C_A206, 0x4790, 0x4B9A, [0xB8, 0xFE, 0x57, 0x5F, 0x05, 0x0F, 0x88, 0x6E]);

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The higher one is current.
    pub sequence: u64,
    /// Changes whenever the file is opened for writing.
    pub file_write: Guid,
    /// Changes whenever the disk's content is about to.
    pub data_write: Guid,
    /// Identity of valid log entries; zeros: there are none.
    pub log_guid: Guid,
    /// Where the log is.
    pub log: Range<u64>,
}

impl Header {
    fn parse(fields: &Fields<'_>) -> ImageResult<Self> {
        let signature: [u8; 4] = fields.array(0);
        fields.require(&signature == b"head", 0, "signature", || {
            format!("is {signature:02x?}; \"head\" is right")
        })?;
        let (sum, right) = (fields.u32_le(4), crc32c_without(fields.bytes(), 4));
        fields.require(sum == right, 4, "checksum", || format!("is {sum:#x}; {right:#x} is right"))?;
        let version = fields.u16_le(66);
        fields.require(version == 1, 66, "version", || format!("is {version}; only 1 is known"))?;
        let log_version = fields.u16_le(64);
        let log_guid: Guid = fields.array(48);
        fields.require(log_version == 0 || log_guid == [0; 16], 64, "log version", || {
            format!("is {log_version}; only 0 is known")
        })?;
        let (length, offset) = (fields.u32_le(68), fields.u64_le(72));
        fields.require(
            u64::from(length).is_multiple_of(MIB) && length <= LOG_MAX,
            68,
            "log length",
            || format!("is {length}; a multiple of 1 MiB of at most 64 MiB is right"),
        )?;
        let right = offset.is_multiple_of(MIB) && (offset >= MIB || length == 0) && offset < 1 << 60;
        fields
            .require(right, 72, "log offset", || format!("is {offset:#x}; a multiple of 1 MiB is right"))?;
        Ok(Header {
            sequence: fields.u64_le(8),
            file_write: fields.array(16),
            data_write: fields.array(32),
            log_guid,
            log: offset..offset + u64::from(length),
        })
    }

    /// The 4096 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = vec![0; HEADER_LEN];
        put(&mut raw, 0, b"head");
        put(&mut raw, 8, &self.sequence.to_le_bytes());
        put(&mut raw, 16, &self.file_write);
        put(&mut raw, 32, &self.data_write);
        put(&mut raw, 48, &self.log_guid);
        put(&mut raw, 66, &1_u16.to_le_bytes());
        put(&mut raw, 68, &((self.log.end - self.log.start) as u32).to_le_bytes());
        put(&mut raw, 72, &self.log.start.to_le_bytes());
        let sum = crc32c_without(&raw, 4);
        put(&mut raw, 4, &sum.to_le_bytes());
        raw
    }

    /// The current header, and which of the two it is.
    pub fn current(file: &dyn BlockBackend, path: &Path) -> ImageResult<(Self, usize)> {
        let read = |at| Self::parse(&Fields::read(file, path, at, HEADER_LEN, "header")?);
        match HEADERS.map(read) {
            [Ok(first), Ok(second)] if second.sequence > first.sequence => Ok((second, 1)),
            [Ok(first), _] => Ok((first, 0)),
            [Err(_), Ok(second)] => Ok((second, 1)),
            [Err(error), Err(_)] => Err(error),
        }
    }
}

/// Where the regions are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Regions {
    /// The table's bytes.
    raw: Vec<u8>,
    /// The block allocation table.
    pub bat: Range<u64>,
    /// The metadata.
    pub metadata: Range<u64>,
}

impl Regions {
    /// For a new image.
    pub fn new(bat: Range<u64>, metadata: Range<u64>) -> Self {
        let mut raw = vec![0; REGION_TABLE_LEN];
        put(&mut raw, 0, b"regi");
        put(&mut raw, 8, &2_u32.to_le_bytes());
        for (at, id) in [(16, BAT), (48, METADATA)] {
            put(&mut raw, at, &id);
            put(&mut raw, at + 28, &1_u32.to_le_bytes());
        }
        Regions { raw, bat, metadata }
    }

    /// The 64 KiB.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = self.raw.clone();
        let count = u32::from_le_bytes(raw.get(8..12).and_then(|n| n.try_into().ok()).unwrap_or([0; 4]));
        for at in (0..count as usize).map(|n| 16 + 32 * n) {
            let range = match raw.get(at..at + 16) {
                Some(id) if id == BAT => &self.bat,
                Some(id) if id == METADATA => &self.metadata,
                _ => continue,
            };
            put(&mut raw, at + 16, &range.start.to_le_bytes());
            put(&mut raw, at + 24, &((range.end - range.start) as u32).to_le_bytes());
        }
        put(&mut raw, 4, &[0; 4]);
        let sum = crc32c_without(&raw, 4);
        put(&mut raw, 4, &sum.to_le_bytes());
        raw
    }

    /// The first table that is right.
    pub fn read(file: &dyn BlockBackend, path: &Path) -> ImageResult<Self> {
        let read =
            |at| Self::parse(&Fields::read(file, path, at, REGION_TABLE_LEN, "region table")?, file.size());
        let [first, second] = REGION_TABLES;
        read(first).or_else(|error| read(second).map_err(|_| error))
    }

    fn parse(fields: &Fields<'_>, file_size: u64) -> ImageResult<Self> {
        let signature: [u8; 4] = fields.array(0);
        fields.require(&signature == b"regi", 0, "signature", || {
            format!("is {signature:02x?}; \"regi\" is right")
        })?;
        let (sum, right) = (fields.u32_le(4), crc32c_without(fields.bytes(), 4));
        fields.require(sum == right, 4, "checksum", || format!("is {sum:#x}; {right:#x} is right"))?;
        let count = fields.u32_le(8);
        fields.require(count <= REGIONS_MAX, 8, "entry count", || {
            format!("is {count}; at most {REGIONS_MAX} is right")
        })?;
        let (mut bat, mut metadata) = (None, None);
        let mut all: Vec<Range<u64>> = Vec::new();
        for at in (0..count as usize).map(|n| 16 + 32 * n) {
            let id: Guid = fields.array(at);
            let (offset, length) = (fields.u64_le(at + 16), u64::from(fields.u32_le(at + 24)));
            let end = offset.checked_add(length);
            let right =
                offset >= MIB && offset.is_multiple_of(MIB) && length > 0 && length.is_multiple_of(MIB);
            fields.require(right && end.is_some_and(|end| end <= file_size), at + 16, "file offset", || {
                format!("is {offset:#x} for {length:#x} bytes; multiples of 1 MiB inside the file, {file_size:#x} bytes, are right")
            })?;
            let range = offset..offset + length;
            let apart = all.iter().all(|other| other.end <= range.start || range.end <= other.start);
            fields.require(apart, at + 16, "file offset", || {
                format!("is {offset:#x}, inside another region")
            })?;
            all.push(range.clone());
            let place = match id {
                BAT => &mut bat,
                METADATA => &mut metadata,
                _ if fields.u32_le(at + 28) & 1 != 0 => {
                    return Err(fields.wrong(
                        at,
                        "GUID",
                        format!("is {id:02x?}: a required region that is not known"),
                    ));
                }
                _ => continue,
            };
            fields.require(place.is_none(), at, "GUID", || "is there twice".to_owned())?;
            *place = Some(range);
        }
        let missing =
            |name| move || -> BlockError { fields.wrong(8, "entry count", format!("has no {name} region")) };
        let bat = bat.ok_or_else(missing("BAT"))?;
        let metadata = metadata.ok_or_else(missing("metadata"))?;
        Ok(Regions { raw: fields.bytes().to_vec(), bat, metadata })
    }
}
