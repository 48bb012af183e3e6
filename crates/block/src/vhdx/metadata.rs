//! The metadata region (MS-VHDX section 2.6): what the disk is.

use super::header::{Guid, MIB, guid};
use crate::backend::BlockBackend;
use crate::image::ImageResult;
use crate::mapped::{Fields, put};
use std::ops::Range;
use std::path::Path;

const FILE_PARAMETERS: Guid =
    guid(0xCAA1_6737, 0xFA36, 0x4D43, [0xB3, 0xB6, 0x33, 0xF0, 0xAA, 0x44, 0xE7, 0x6B]);
const DISK_SIZE: Guid = guid(0x2FA5_4224, 0xCD1B, 0x4876, [0xB2, 0x11, 0x5D, 0xBE, 0xD8, 0x3B, 0xF4, 0xB8]);
const DISK_ID: Guid = guid(0xBECA_12AB, 0xB2E6, 0x4523, [0x93, 0xEF, 0xC3, 0x09, 0xE0, 0x00, 0xC7, 0x46]);
const LOGICAL_SECTOR: Guid =
    guid(0x8141_BF1D, 0xA96F, 0x4709, [0xBA, 0x47, 0xF2, 0x33, 0xA8, 0xFA, 0xAB, 0x5F]);
const PHYSICAL_SECTOR: Guid =
    guid(0xCDA3_48C7, 0x445D, 0x4471, [0x9C, 0xC9, 0xE9, 0x88, 0x52, 0x51, 0xC5, 0x56]);
const PARENT_LOCATOR: Guid =
    guid(0xA8D3_5F2D, 0xB30B, 0x454D, [0xAB, 0xF7, 0xD3, 0xD8, 0x48, 0x34, 0xAB, 0x0C]);
const VHDX_LOCATOR: Guid =
    guid(0xB04A_EFB7, 0xD19E, 0x4A81, [0xB7, 0x89, 0x25, 0xB8, 0xE9, 0x44, 0x59, 0x13]);

/// The table is this long; items are behind it.
const TABLE: usize = 64 << 10;
const ITEMS_MAX: u16 = 2047;
/// Largest disk: 64 TiB.
pub(super) const SIZE_MAX: u64 = 64 << 40;

/// What the disk is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks keep their space: a fixed image.
    pub fixed: bool,
    /// What is not here is in a parent.
    pub has_parent: bool,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Identity of the disk.
    pub disk_id: Guid,
    /// Bytes of a sector as the guest sees it.
    pub logical_sector: u32,
    /// Bytes of a sector of the medium.
    pub physical_sector: u32,
    /// Names of the parent.
    pub parent: Vec<(String, String)>,
    /// Offset of the disk's size in the file.
    pub size_at: u64,
}

impl Metadata {
    /// Blocks a sector bitmap block is for.
    pub fn chunk_ratio(&self) -> u64 {
        (u64::from(self.logical_sector) << 23) / u64::from(self.block_size)
    }

    /// Entries of the block allocation table.
    pub fn bat_entries(&self) -> u64 {
        let blocks = self.size.div_ceil(u64::from(self.block_size));
        let ratio = self.chunk_ratio();
        if self.has_parent {
            blocks.div_ceil(ratio) * (ratio + 1)
        } else {
            blocks + blocks.saturating_sub(1) / ratio
        }
    }

    /// Reads and checks the region.
    pub fn read(file: &dyn BlockBackend, path: &Path, region: &Range<u64>) -> ImageResult<Self> {
        let fields = Fields::read(file, path, region.start, TABLE, "metadata table")?;
        let signature: [u8; 8] = fields.array(0);
        fields.require(&signature == b"metadata", 0, "signature", || {
            format!("is {signature:02x?}; \"metadata\" is right")
        })?;
        let count = fields.u16_le(10);
        fields.require(count <= ITEMS_MAX, 10, "entry count", || {
            format!("is {count}; at most {ITEMS_MAX} is right")
        })?;
        let mut metadata = Metadata::default();
        let mut found = Vec::new();
        for at in (0..usize::from(count)).map(|n| 32 + 32 * n) {
            let id: Guid = fields.array(at);
            let (offset, length) = (fields.u32_le(at + 16), fields.u32_le(at + 20));
            let end = u64::from(offset) + u64::from(length);
            let right = (length == 0 || offset as usize >= TABLE)
                && end <= region.end - region.start
                && length <= MIB as u32;
            fields.require(right, at + 16, "offset", || {
                format!("is {offset:#x} for {length} bytes; from 64 KiB to the region's end is right")
            })?;
            let known =
                [FILE_PARAMETERS, DISK_SIZE, DISK_ID, LOGICAL_SECTOR, PHYSICAL_SECTOR, PARENT_LOCATOR]
                    .contains(&id);
            // Bit 2: required; bit 0: the user's.
            if !known {
                let required = fields.u32_le(at + 24) & 0b100 != 0;
                fields.require(!required, at, "item id", || {
                    format!("is {id:02x?}: a required item that is not known")
                })?;
                continue;
            }
            fields.require(!found.contains(&id), at, "item id", || "is there twice".to_owned())?;
            found.push(id);
            let item =
                Fields::read(file, path, region.start + u64::from(offset), length as usize, "metadata item")?;
            metadata.item(id, &item, region.start + u64::from(offset))?;
        }
        for (id, name) in [
            (FILE_PARAMETERS, "file parameters"),
            (DISK_SIZE, "virtual disk size"),
            (LOGICAL_SECTOR, "logical sector size"),
        ] {
            fields.require(found.contains(&id), 10, "entry count", || format!("has no item \"{name}\""))?;
        }
        fields.require(!metadata.has_parent || found.contains(&PARENT_LOCATOR), 10, "entry count", || {
            "has no item \"parent locator\" though there is a parent".to_owned()
        })?;
        fields.require(
            metadata.size.is_multiple_of(u64::from(metadata.logical_sector)),
            10,
            "virtual disk size",
            || format!("is {}, no multiple of the sector size {}", metadata.size, metadata.logical_sector),
        )?;
        Ok(metadata)
    }

    fn item(&mut self, id: Guid, item: &Fields<'_>, at: u64) -> ImageResult<()> {
        match id {
            FILE_PARAMETERS => {
                self.block_size = item.u32_le(0);
                let size = u64::from(self.block_size);
                let right = size.is_power_of_two() && (MIB..=256 * MIB).contains(&size);
                item.require(right, 0, "block size", || {
                    format!("is {size}; a power of two from 1 MiB to 256 MiB is right")
                })?;
                let flags = item.u32_le(4);
                item.require(flags & !0b11 == 0, 4, "flags", || {
                    format!("are {flags:#x}; bits 0 and 1 are known")
                })?;
                (self.fixed, self.has_parent) = (flags & 1 != 0, flags & 2 != 0);
            }
            DISK_SIZE => {
                self.size = item.u64_le(0);
                self.size_at = at;
                item.require(self.size <= SIZE_MAX && self.size > 0, 0, "virtual disk size", || {
                    format!("is {}; 1 byte to 64 TiB is right", self.size)
                })?;
                item.require(at % 4096 <= 4088, 0, "virtual disk size", || "crosses a page".to_owned())?;
            }
            DISK_ID => self.disk_id = item.array(0),
            LOGICAL_SECTOR | PHYSICAL_SECTOR => {
                let size = item.u32_le(0);
                item.require(matches!(size, 512 | 4096), 0, "sector size", || {
                    format!("is {size}; 512 and 4096 are right")
                })?;
                let place =
                    if id == LOGICAL_SECTOR { &mut self.logical_sector } else { &mut self.physical_sector };
                *place = size;
            }
            _ => self.parent = locator(item)?,
        }
        Ok(())
    }

    /// The region's bytes for a new image.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = vec![0; MIB as usize];
        put(&mut raw, 0, b"metadata");
        let flags = u32::from(self.fixed) | u32::from(self.has_parent) << 1;
        let parameters = [self.block_size.to_le_bytes(), flags.to_le_bytes()].concat();
        // Flags: 4 required, 2 of the disk.
        let mut items = vec![
            (FILE_PARAMETERS, 4_u32, parameters),
            (DISK_SIZE, 6, self.size.to_le_bytes().to_vec()),
            (DISK_ID, 6, self.disk_id.to_vec()),
            (LOGICAL_SECTOR, 6, self.logical_sector.to_le_bytes().to_vec()),
            (PHYSICAL_SECTOR, 6, self.physical_sector.to_le_bytes().to_vec()),
        ];
        if self.has_parent {
            items.push((PARENT_LOCATOR, 4, encode_locator(&self.parent)));
        }
        put(&mut raw, 10, &(items.len() as u16).to_le_bytes());
        let mut at = TABLE;
        for (n, (id, flags, bytes)) in items.iter().enumerate() {
            let entry = 32 + 32 * n;
            put(&mut raw, entry, id);
            put(&mut raw, entry + 16, &(at as u32).to_le_bytes());
            put(&mut raw, entry + 20, &(bytes.len() as u32).to_le_bytes());
            put(&mut raw, entry + 24, &flags.to_le_bytes());
            put(&mut raw, at, bytes);
            at += bytes.len().next_multiple_of(8);
        }
        raw
    }

    /// A name of the parent.
    pub fn parent_value(&self, key: &str) -> Option<&str> {
        self.parent.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// Keys and values of a parent locator (section 2.6.2.6).
fn locator(item: &Fields<'_>) -> ImageResult<Vec<(String, String)>> {
    let kind: Guid = item.array(0);
    item.require(kind == VHDX_LOCATOR, 0, "locator type", || {
        format!("is {kind:02x?}; only that of vhdx is known")
    })?;
    let count = item.u16_le(18);
    item.require(count <= 64, 18, "key value count", || format!("is {count}; at most 64 is accepted"))?;
    let text = |at: usize, len: usize, field| {
        let bytes = item.bytes().get(at..at.saturating_add(len));
        let bytes = bytes
            .ok_or_else(|| item.wrong(0, field, format!("leads to {len} bytes at {at}, outside the item")))?;
        let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
        Ok(String::from_utf16_lossy(&units))
    };
    (0..usize::from(count))
        .map(|n| 20 + 12 * n)
        .map(|at| {
            let key = text(item.u32_le(at) as usize, item.u16_le(at + 8).into(), "key offset")?;
            let value = text(item.u32_le(at + 4) as usize, item.u16_le(at + 10).into(), "value offset")?;
            Ok((key, value))
        })
        .collect()
}

fn encode_locator(pairs: &[(String, String)]) -> Vec<u8> {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let mut raw = vec![0; 20 + 12 * pairs.len()];
    put(&mut raw, 0, &VHDX_LOCATOR);
    put(&mut raw, 18, &(pairs.len() as u16).to_le_bytes());
    for (n, (key, value)) in pairs.iter().enumerate() {
        let at = 20 + 12 * n;
        for (offset_at, length_at, text) in [(at, at + 8, utf16(key)), (at + 4, at + 10, utf16(value))] {
            let offset = raw.len() as u32;
            put(&mut raw, offset_at, &offset.to_le_bytes());
            put(&mut raw, length_at, &(text.len() as u16).to_le_bytes());
            raw.extend(text);
        }
    }
    raw
}
