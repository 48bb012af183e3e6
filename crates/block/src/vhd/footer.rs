//! Footer and header ("Virtual Hard Disk Image Format Specification", version 1.0).

use crate::error::BlockError;
use crate::image::ImageResult;
use crate::mapped::{Fields, put};

/// Bytes of the footer.
pub(super) const FOOTER: u64 = 512;
const COOKIE: &[u8; 8] = b"conectix";
const HEADER_COOKIE: &[u8; 8] = b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const NO_OFFSET: u64 = u64::MAX;
/// Sectors of the largest geometry: 65535 cylinders, 16 heads, 255 sectors.
const GEOMETRY_MAX: u64 = 65_535 * 16 * 255;
/// The largest disk: 2040 GiB.
pub(super) const SIZE_MAX: u64 = 2040 << 30;
/// Most blocks, for a table of 32 MiB.
const ENTRIES_MAX: u32 = 8 << 20;
/// Applications that mean the footer's size; what others made is as large as its geometry says.
const EXACT_CREATORS: [&[u8; 4]; 6] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"wa\0\0", b"CTXS"];
/// Seconds from 1970 to 2000, where the format's time begins.
const EPOCH: u64 = 946_684_800;

/// How the disk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// All sectors, one behind the other.
    Fixed,
    /// Blocks.
    Dynamic,
    /// Blocks of what differs from a parent.
    Differencing,
}

/// The footer (section "Hard Disk Footer Format").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    raw: Vec<u8>,
    /// How the disk is stored.
    pub kind: Kind,
    /// Offset of the header.
    pub header_offset: u64,
    /// Size of the disk in bytes, as the application that made it means it.
    pub size: u64,
    /// Identity.
    pub uuid: [u8; 16],
}

/// One's complement of the sum of all bytes but those of the checksum itself.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    let own = bytes.get(at..at + 4).map_or(0, sum);
    !(sum(bytes) - own)
}

/// Cylinders, heads and sectors of a disk (appendix "CHS Calculation").
pub(super) fn geometry(sectors: u64) -> (u16, u8, u8) {
    let total = sectors.min(GEOMETRY_MAX);
    let (heads, per_track) = if total >= 65_535 * 16 * 63 {
        (16, 255)
    } else {
        let tracks = total / 17;
        let heads = tracks.div_ceil(1024).max(4);
        if tracks < heads * 1024 && heads <= 16 {
            (heads, 17)
        } else if total / 31 < 16 * 1024 {
            (16, 31)
        } else {
            (16, 63)
        }
    };
    ((total / per_track / heads) as u16, heads as u8, per_track as u8)
}

fn geometry_size((cylinders, heads, sectors): (u16, u8, u8)) -> u64 {
    u64::from(cylinders) * u64::from(heads) * u64::from(sectors) * 512
}

/// The smallest disk of at least `size` bytes whose geometry is exact; and the geometry.
fn rounded(size: u64) -> (u64, (u16, u8, u8)) {
    let sectors = size.div_ceil(512);
    if sectors >= GEOMETRY_MAX {
        return (size, geometry(GEOMETRY_MAX));
    }
    let mut candidate = sectors;
    loop {
        let chs = geometry(candidate);
        if geometry_size(chs) >= size {
            return (geometry_size(chs), chs);
        }
        candidate += 1;
    }
}

impl Footer {
    /// For a new image. Unless `exact`, the size is rounded up to what its geometry says.
    pub fn new(kind: Kind, size: u64, exact: bool) -> Result<Self, BlockError> {
        if size > SIZE_MAX {
            return Err(BlockError::option(
                "size",
                format!("{size} bytes are more than a vhd image can have, 2040 GiB"),
            ));
        }
        let mut raw = vec![0; FOOTER as usize];
        put(&mut raw, 0, COOKIE);
        put(&mut raw, 8, &2_u32.to_be_bytes());
        put(&mut raw, 12, &VERSION.to_be_bytes());
        put(&mut raw, 28, if exact { b"win " } else { b"vreo" });
        put(&mut raw, 32, &VERSION.to_be_bytes());
        put(&mut raw, 36, b"Wi2k");
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        put(&mut raw, 24, &(now.saturating_sub(EPOCH) as u32).to_be_bytes());
        let uuid = crate::mapped::random_uuid();
        let kind_number: u32 = match kind {
            Kind::Fixed => 2,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        put(&mut raw, 60, &kind_number.to_be_bytes());
        put(&mut raw, 68, &uuid);
        let header_offset = if kind == Kind::Fixed { NO_OFFSET } else { FOOTER };
        let (size, _) = if exact { (size, (0, 0, 0)) } else { rounded(size) };
        put(&mut raw, 40, &size.to_be_bytes());
        Ok(Footer { raw, kind, header_offset, size, uuid })
    }

    /// Whether these bytes are a footer: cookie and checksum.
    pub fn is_there(fields: &Fields<'_>) -> bool {
        fields.array(0) == *COOKIE && fields.u32_be(64) == checksum(fields.bytes(), 64)
    }

    /// Checks every field.
    pub fn parse(fields: &Fields<'_>) -> ImageResult<Self> {
        let cookie: [u8; 8] = fields.array(0);
        fields
            .require(cookie == *COOKIE, 0, "cookie", || format!("is {cookie:02x?}; \"conectix\" is right"))?;
        let (sum, right) = (fields.u32_be(64), checksum(fields.bytes(), 64));
        fields.require(sum == right, 64, "checksum", || format!("is {sum:#x}; {right:#x} is right"))?;
        let version = fields.u32_be(12);
        fields.require(version >> 16 == 1, 12, "file format version", || {
            format!("is {version:#x}; only 0x10000 is known")
        })?;
        let kind = match fields.u32_be(60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => return Err(fields.wrong(60, "disk type", format!("is {other}; 2, 3 and 4 are known"))),
        };
        let stated = fields.u64_be(48);
        let chs = (fields.u16_be(56), fields.array::<1>(58)[0], fields.array::<1>(59)[0]);
        let by_geometry = geometry_size(chs);
        let creator: [u8; 4] = fields.array(28);
        let exact =
            EXACT_CREATORS.contains(&&creator) || by_geometry >= GEOMETRY_MAX * 512 || by_geometry == 0;
        let (size, at, name) =
            if exact { (stated, 48, "current size") } else { (by_geometry, 56, "disk geometry") };
        fields.require(size <= SIZE_MAX && size.is_multiple_of(512), at, name, || {
            format!("is {size} bytes; a multiple of 512 of at most 2040 GiB is right")
        })?;
        let header_offset = fields.u64_be(16);
        let right = header_offset.is_multiple_of(512) && (FOOTER..1 << 50).contains(&header_offset);
        fields.require(kind == Kind::Fixed || right, 16, "data offset", || {
            format!("is {header_offset:#x}; a multiple of 512 behind the footer's copy is right")
        })?;
        Ok(Footer { raw: fields.bytes().to_vec(), kind, header_offset, size, uuid: fields.array(68) })
    }

    /// The 512 bytes, with size, geometry and checksum.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = self.raw.clone();
        put(&mut raw, 16, &self.header_offset.to_be_bytes());
        put(&mut raw, 48, &self.size.to_be_bytes());
        let (cylinders, heads, sectors) = geometry(self.size / 512);
        put(&mut raw, 56, &cylinders.to_be_bytes());
        put(&mut raw, 58, &[heads, sectors]);
        let sum = checksum(&raw, 64);
        put(&mut raw, 64, &sum.to_be_bytes());
        raw
    }

    /// A larger disk. What means its geometry becomes as large as a geometry says.
    pub fn resized(&self, size: u64) -> Self {
        let creator = self.raw.get(28..32).unwrap_or_default();
        let exact = EXACT_CREATORS.iter().any(|known| &known[..] == creator);
        let size = if exact { size } else { rounded(size).0 };
        Footer { size, ..self.clone() }
    }
}

/// Where the name of the parent is (section "Parent Locator").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    /// Kind of name.
    pub platform: [u8; 4],
    /// Bytes of the name.
    pub len: u32,
    /// Where it is.
    pub offset: u64,
}

/// The header of an image with blocks (section "Dynamic Disk Header Format").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    raw: Vec<u8>,
    /// Offset of the block allocation table.
    pub table_offset: u64,
    /// Entries of the table.
    pub entries: u32,
    /// Bytes of a block.
    pub block_size: u32,
    /// Identity of the parent.
    pub parent: [u8; 16],
    /// The parent's name.
    pub parent_name: String,
    /// More names of the parent.
    pub locators: Vec<Locator>,
}

impl Header {
    /// Bytes of the header.
    pub const LEN: usize = 1024;

    /// For a new image.
    pub fn new(size: u64, block_size: u32, table_offset: u64) -> Self {
        let mut raw = vec![0; Self::LEN];
        put(&mut raw, 0, HEADER_COOKIE);
        put(&mut raw, 8, &NO_OFFSET.to_be_bytes());
        put(&mut raw, 24, &VERSION.to_be_bytes());
        let entries = size.div_ceil(u64::from(block_size)) as u32;
        Header {
            raw,
            table_offset,
            entries,
            block_size,
            parent: [0; 16],
            parent_name: String::new(),
            locators: Vec::new(),
        }
    }

    /// Checks every field; the file has `file_size` bytes, the disk `size`.
    pub fn parse(fields: &Fields<'_>, size: u64, file_size: u64) -> ImageResult<Self> {
        let cookie: [u8; 8] = fields.array(0);
        fields.require(cookie == *HEADER_COOKIE, 0, "cookie", || {
            format!("is {cookie:02x?}; \"cxsparse\" is right")
        })?;
        let (sum, right) = (fields.u32_be(36), checksum(fields.bytes(), 36));
        fields.require(sum == right, 36, "checksum", || format!("is {sum:#x}; {right:#x} is right"))?;
        let version = fields.u32_be(24);
        fields.require(version >> 16 == 1, 24, "header version", || {
            format!("is {version:#x}; only 0x10000 is known")
        })?;
        let block_size = fields.u32_be(32);
        let right = block_size.is_power_of_two() && (4096..=256 << 20).contains(&block_size);
        fields.require(right, 32, "block size", || {
            format!("is {block_size}; a power of two from 4 KiB to 256 MiB is right")
        })?;
        let entries = fields.u32_be(28);
        fields.require(entries <= ENTRIES_MAX, 28, "max table entries", || {
            format!("is {entries}, more than the limit {ENTRIES_MAX}")
        })?;
        let capacity = u64::from(entries) * u64::from(block_size);
        fields.require(capacity >= size, 28, "max table entries", || {
            format!("is {entries}: {capacity} bytes, but the disk has {size}")
        })?;
        let table_offset = fields.u64_be(16);
        let end = table_offset.checked_add(4 * u64::from(entries));
        let right = table_offset.is_multiple_of(512) && end.is_some_and(|end| end <= file_size);
        fields.require(right, 16, "table offset", || {
            format!("is {table_offset:#x} for {entries} entries; a multiple of 512 inside the file, {file_size:#x} bytes, is right")
        })?;
        let mut locators = Vec::new();
        for at in (576..768).step_by(24) {
            let platform: [u8; 4] = fields.array(at);
            let (len, offset) = (fields.u32_be(at + 8), fields.u64_be(at + 16));
            if platform == [0; 4] {
                continue;
            }
            let right =
                len <= 64 << 10 && offset.checked_add(u64::from(len)).is_some_and(|end| end <= file_size);
            fields.require(right, at, "parent locator", || {
                format!("is {len} bytes at {offset:#x}; at most 64 KiB inside the file are right")
            })?;
            locators.push(Locator { platform, len, offset });
        }
        let units: Vec<u16> =
            (64..576).step_by(2).map(|at| fields.u16_be(at)).take_while(|&unit| unit != 0).collect();
        Ok(Header {
            raw: fields.bytes().to_vec(),
            table_offset,
            entries,
            block_size,
            parent: fields.array(40),
            parent_name: String::from_utf16_lossy(&units),
            locators,
        })
    }

    /// The 1024 bytes. The parent's name is cut to the 256 units there is room for.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = self.raw.clone();
        put(&mut raw, 16, &self.table_offset.to_be_bytes());
        put(&mut raw, 28, &self.entries.to_be_bytes());
        put(&mut raw, 32, &self.block_size.to_be_bytes());
        put(&mut raw, 40, &self.parent);
        for (at, unit) in
            (64..576).step_by(2).zip(self.parent_name.encode_utf16().chain(std::iter::repeat(0)))
        {
            put(&mut raw, at, &unit.to_be_bytes());
        }
        for (at, locator) in (576..768).step_by(24).zip(&self.locators) {
            put(&mut raw, at, &locator.platform);
            put(&mut raw, at + 4, &locator.len.next_multiple_of(512).to_be_bytes());
            put(&mut raw, at + 8, &locator.len.to_be_bytes());
            put(&mut raw, at + 16, &locator.offset.to_be_bytes());
        }
        let sum = checksum(&raw, 36);
        put(&mut raw, 36, &sum.to_be_bytes());
        raw
    }
}
