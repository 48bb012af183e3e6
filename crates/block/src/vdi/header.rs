//! The header, and its limits.

use crate::backend::BlockBackend;
use crate::image::ImageResult;
use crate::mapped::{Fields, put};
use std::path::Path;

/// Magic number at 0x40.
pub(super) const SIGNATURE: u32 = 0xBEDA_107F;
/// Entry of a block nobody wrote.
pub(super) const UNALLOCATED: u32 = u32::MAX;
/// Entry of a block that was given back: zeros.
pub(super) const DISCARDED: u32 = u32::MAX - 1;

const VERSION: u32 = 0x0001_0001;
const DYNAMIC: u32 = 1;
const FIXED: u32 = 2;
const BLOCK_SIZE: u32 = 1 << 20;
/// Most blocks: 16 TiB with blocks of 1 MiB. Their table has 64 MiB.
const BLOCKS_MAX: u32 = 1 << 24;
const TEXT: &[u8] = b"<<< VirtualBox Disk Image, made by Vireo >>>\n";

/// The first sector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// All 512 bytes as they are in the file: what is not understood is kept.
    raw: Vec<u8>,
    /// Every block has its place from the beginning.
    pub fixed: bool,
    /// Offset of the table.
    pub table_offset: u32,
    /// Offset of block number 0.
    pub data_offset: u32,
    /// Size of the disk in bytes.
    pub disk_size: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Entries of the table.
    pub blocks: u32,
    /// Entries that lead to a block.
    pub allocated: u32,
}

impl Header {
    /// For a new image.
    pub fn new(size: u64, fixed: bool) -> Result<Self, String> {
        let blocks = Self::blocks_of(size, BLOCK_SIZE)?;
        let mut raw = vec![0; 512];
        put(&mut raw, 0, TEXT);
        put(&mut raw, 0x40, &SIGNATURE.to_le_bytes());
        put(&mut raw, 0x44, &VERSION.to_le_bytes());
        put(&mut raw, 0x48, &0x190_u32.to_le_bytes());
        put(&mut raw, 0x4C, &if fixed { FIXED } else { DYNAMIC }.to_le_bytes());
        put(&mut raw, 0x168, &512_u32.to_le_bytes());
        for at in [0x188, 0x198] {
            put(&mut raw, at, &crate::mapped::random_uuid());
        }
        Ok(Header {
            raw,
            fixed,
            table_offset: 512,
            data_offset: (512 + 4 * blocks).next_multiple_of(512),
            disk_size: size,
            block_size: BLOCK_SIZE,
            blocks,
            allocated: if fixed { blocks } else { 0 },
        })
    }

    /// Blocks of a disk of `size` bytes, if there can be so many.
    pub fn blocks_of(size: u64, block_size: u32) -> Result<u32, String> {
        let most = u64::from(BLOCKS_MAX) * u64::from(block_size);
        match u32::try_from(size.div_ceil(u64::from(block_size))) {
            Ok(blocks) if blocks <= BLOCKS_MAX => Ok(blocks),
            _ => Err(format!(
                "{size} bytes are more than a vdi image with blocks of {block_size} bytes can have, {most}"
            )),
        }
    }

    /// Reads and checks the first sector.
    pub fn read(file: &dyn BlockBackend, path: &Path) -> ImageResult<Self> {
        let fields = Fields::read(file, path, 0, 512, "header")?;
        let hex = |value: u32, right: &str| format!("is {value:#x}; {right}");
        let signature = fields.u32_le(0x40);
        fields
            .require(signature == SIGNATURE, 0x40, "signature", || hex(signature, "0xbeda107f is right"))?;
        let version = fields.u32_le(0x44);
        fields.require(version == VERSION, 0x44, "version", || hex(version, "only 0x10001 is known"))?;
        let kind = fields.u32_le(0x4C);
        fields.require(matches!(kind, DYNAMIC | FIXED), 0x4C, "image type", || {
            hex(kind, "only 1 (dynamic) and 2 (fixed) can be opened")
        })?;
        let header = Header {
            raw: fields.bytes().to_vec(),
            fixed: kind == FIXED,
            table_offset: fields.u32_le(0x154),
            data_offset: fields.u32_le(0x158),
            disk_size: fields.u64_le(0x170),
            block_size: fields.u32_le(0x178),
            blocks: fields.u32_le(0x180),
            allocated: fields.u32_le(0x184),
        };
        header.check(&fields, file.size())?;
        Ok(header)
    }

    fn check(&self, fields: &Fields<'_>, file_size: u64) -> ImageResult<()> {
        let sector = fields.u32_le(0x168);
        fields.require(sector == 512, 0x168, "sector size", || format!("is {sector}; only 512 is known"))?;
        let size = self.block_size;
        fields.require(
            size.is_power_of_two() && (1 << 16..=1 << 28).contains(&size),
            0x178,
            "block size",
            || format!("is {size}; a power of two from 64 KiB to 256 MiB is right"),
        )?;
        let extra = fields.u32_le(0x17C);
        fields.require(extra == 0, 0x17C, "block extra data", || format!("is {extra}; only 0 is known"))?;
        fields.require(self.blocks <= BLOCKS_MAX, 0x180, "blocks in image", || {
            format!("is {}, more than the limit {BLOCKS_MAX}", self.blocks)
        })?;
        let capacity = u64::from(self.blocks) * u64::from(size);
        fields.require(self.disk_size <= capacity, 0x170, "disk size", || {
            format!("is {}, but the {} blocks have {capacity} bytes", self.disk_size, self.blocks)
        })?;
        let table = u64::from(self.table_offset);
        fields.require(table >= 512 && table.is_multiple_of(512), 0x154, "offset of blocks", || {
            format!("is {table:#x}; a multiple of 512 behind the header is right")
        })?;
        let end = table + 4 * u64::from(self.blocks);
        let data = u64::from(self.data_offset);
        fields.require(data.is_multiple_of(512) && data >= end, 0x158, "offset of data", || {
            format!("is {data:#x}; a multiple of 512 behind the table, which ends at {end:#x}, is right")
        })?;
        fields.require(end <= file_size, 0x180, "blocks in image", || {
            format!("is {}: the table would end at {end:#x}, the file at {file_size:#x}", self.blocks)
        })?;
        fields.require(self.allocated <= self.blocks, 0x184, "blocks allocated", || {
            format!("is {}, more than the {} blocks in the image", self.allocated, self.blocks)
        })?;
        for (at, name) in [(0x1A8, "UUID of the link"), (0x1B8, "UUID of the parent")] {
            fields.require(fields.array::<16>(at) == [0; 16], at, name, || {
                "is set: differencing images cannot be opened".to_owned()
            })?;
        }
        Ok(())
    }

    /// The sector's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = self.raw.clone();
        put(&mut raw, 0x154, &self.table_offset.to_le_bytes());
        put(&mut raw, 0x158, &self.data_offset.to_le_bytes());
        put(&mut raw, 0x170, &self.disk_size.to_le_bytes());
        put(&mut raw, 0x178, &self.block_size.to_le_bytes());
        put(&mut raw, 0x180, &self.blocks.to_le_bytes());
        put(&mut raw, 0x184, &self.allocated.to_le_bytes());
        raw
    }
}
