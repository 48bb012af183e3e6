//! Microsoft virtual hard disks, version 2 (specification MS-VHDX).
//!
//! ```text
//! 0      64 KiB    128 KiB   192 KiB         256 KiB         1 MiB
//! ident. header 1  header 2  region table 1  region table 2  log, metadata, BAT, blocks in any order
//! ```
//!
//! Everything that is one of two has a checksum; of the headers the one with the higher sequence number is current.
//! The table's changes go through the log, see `log.rs`.

mod header;
mod layout;
mod log;
mod metadata;

use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::format::{Driver, open_backing, referred_file};
use crate::image::{DiskImage, ImageResult};
use crate::mapped::{Fields, Mapped, Parts, random_uuid};
use crate::options::{BackingPolicy, CreateOptions, OpenOptions, Preallocation};
use crate::raw::RawFile;
use header::{Guid, HEADERS, Header, MIB, REGION_TABLES, Regions};
use layout::VhdxLayout;
use metadata::{Metadata, SIZE_MAX};
use std::path::Path;
use std::sync::Arc;

/// The vhdx format.
#[derive(Debug)]
pub(crate) struct VhdxFormat;

const OPTIONS: &[(&str, &str)] = &[
    ("subformat", "dynamic (default) or fixed"),
    ("block_size", "bytes of a block, a power of two from 1M to 256M (default: 8M, more for large disks)"),
    ("log_size", "bytes of the log, a multiple of 1M of at most 64M (default: 1M)"),
    ("logical_sector_size", "bytes of a sector as the guest sees it: 512 (default) or 4096"),
    ("preallocation", "of fixed images: off (thin), falloc (lazy), full (eager)"),
];

/// Text of a GUID.
fn guid_text(guid: &Guid) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = guid;
    let head = format!("{d:02x}{c:02x}{b:02x}{a:02x}-{f:02x}{e:02x}-{h:02x}{g:02x}");
    let hex: Vec<String> = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let (clock, node) = hex.split_at(2);
    format!("{head}-{}-{}", clock.concat(), node.concat())
}

/// Blocks of sector bitmaps that the table has.
fn bitmap_blocks(
    file: &dyn BlockBackend,
    path: &Path,
    bat: u64,
    metadata: &Metadata,
) -> ImageResult<Vec<u64>> {
    if !metadata.has_parent {
        return Ok(Vec::new());
    }
    let ratio = metadata.chunk_ratio();
    let chunks = metadata.bat_entries() / (ratio + 1);
    let mut found = Vec::new();
    for chunk in 0..chunks {
        let at = bat + 8 * (chunk * (ratio + 1) + ratio);
        let entry = Fields::read(file, path, at, 8, "sector bitmap entry")?.u64_le(0);
        if entry & 7 == 6 {
            found.push(entry & !(MIB - 1));
        }
    }
    Ok(found)
}

fn open_parent(
    path: &Path,
    metadata: &Metadata,
    options: &OpenOptions,
) -> ImageResult<(Option<Arc<dyn DiskImage>>, String)> {
    let name = ["relative_path", "absolute_win32_path", "volume_path"]
        .iter()
        .find_map(|key| metadata.parent_value(key))
        .unwrap_or_default()
        .replace('\\', "/");
    let backing = open_backing(path, &name, Some("vhdx"), options)?;
    if let Some(backing) = &backing {
        let info = backing.info()?;
        let found =
            info.format_specific.get("data-write-guid").and_then(|guid| guid.as_str()).unwrap_or_default();
        let named = |key| {
            metadata
                .parent_value(key)
                .is_some_and(|value| value.trim_matches(['{', '}']).eq_ignore_ascii_case(found))
        };
        if !named("parent_linkage") && !named("parent_linkage2") {
            let wanted = metadata.parent_value("parent_linkage").unwrap_or("unknown");
            let problem = format!(
                "its data write GUID is {found}, not {wanted}: it was written to, or is another image"
            );
            return Err(BlockError::Reference { path: path.to_owned(), other: name, problem });
        }
    }
    Ok((backing, name))
}

impl Driver for VhdxFormat {
    fn name(&self) -> &'static str {
        "vhdx"
    }

    fn options(&self) -> &'static [(&'static str, &'static str)] {
        OPTIONS
    }

    fn probe(&self, head: &[u8], _size: u64) -> bool {
        head.starts_with(b"vhdxfile")
    }

    fn open(
        &self,
        file: Arc<dyn BlockBackend>,
        path: &Path,
        options: &OpenOptions,
    ) -> ImageResult<Arc<dyn DiskImage>> {
        let fields = Fields::read(&*file, path, 0, 8, "file type identifier")?;
        fields.require(fields.bytes() == b"vhdxfile", 0, "signature", || {
            format!("is {:02x?}; \"vhdxfile\" is right", fields.bytes())
        })?;
        let (header, current) = Header::current(&*file, path)?;
        log::replay(&*file, path, &header, options.read_only)?;
        let regions = Regions::read(&*file, path)?;
        let metadata = Metadata::read(&*file, path, &regions.metadata)?;
        let (needed, room) = (8 * metadata.bat_entries(), regions.bat.end - regions.bat.start);
        if needed > room {
            let problem =
                format!("is {} bytes: its BAT needs {needed} bytes, the region has {room}", metadata.size);
            return Err(BlockError::metadata(path, metadata.size_at, "virtual disk size", problem));
        }
        let bitmaps = bitmap_blocks(&*file, path, regions.bat.start, &metadata)?;
        let (backing, parent) = if metadata.has_parent {
            let (backing, name) = open_parent(path, &metadata, options)?;
            (backing, Some(name))
        } else {
            (None, None)
        };
        Ok(Arc::new(Mapped::new(Parts {
            size: metadata.size.next_multiple_of(512),
            layout: VhdxLayout::new((header, current), regions, metadata, bitmaps, parent),
            path: path.to_owned(),
            file,
            backing,
            backing_start: 0,
            read_only: options.read_only,
        })))
    }

    fn create(&self, path: &Path, mut options: CreateOptions) -> ImageResult<()> {
        let mode = options
            .take("preallocation")
            .map_or(Ok(Preallocation::Off), |name| Preallocation::named(&name))?;
        let subformat = options.take("subformat");
        let block_size = options.take_bytes("block_size")?.filter(|&size| size != 0);
        let log_size = options.take_bytes("log_size")?.filter(|&size| size != 0).unwrap_or(MIB);
        let sector = options.take_bytes("logical_sector_size")?.unwrap_or(512);
        options.finish("vhdx", OPTIONS)?;
        let block_size = block_size.unwrap_or(match options.size >> 30 {
            0 => 8 * MIB,
            1..100 => 16 * MIB,
            100..32_768 => 32 * MIB,
            _ => 64 * MIB,
        });
        if !block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&block_size) {
            return Err(BlockError::option(
                "block_size",
                format!("{block_size} is no power of two from 1M to 256M"),
            ));
        }
        if !log_size.is_multiple_of(MIB) || log_size > 64 * MIB {
            return Err(BlockError::option(
                "log_size",
                format!("{log_size} is no multiple of 1M, at most 64M"),
            ));
        }
        if !matches!(sector, 512 | 4096) {
            return Err(BlockError::option(
                "logical_sector_size",
                format!("{sector} is neither 512 nor 4096"),
            ));
        }
        let size = options.size;
        if size == 0 || size > SIZE_MAX || !size.is_multiple_of(sector) {
            return Err(BlockError::option(
                "size",
                format!("{size} is no multiple of {sector} from 1 sector to 64 TiB"),
            ));
        }
        let fixed = is_fixed(subformat.as_deref())?;
        if !fixed && mode != Preallocation::Off {
            return Err(BlockError::option(
                "preallocation",
                "only fixed vhdx images (subformat=fixed) have it",
            ));
        }
        if fixed && options.backing.is_some() {
            return Err(BlockError::option("subformat", "a fixed image has no backing file"));
        }
        let parent = match &options.backing {
            Some((name, format)) => parent_of(path, name, format)?,
            None => Vec::new(),
        };
        let metadata = Metadata {
            block_size: block_size as u32,
            fixed,
            has_parent: !parent.is_empty(),
            size,
            disk_id: random_uuid(),
            logical_sector: sector as u32,
            physical_sector: 4096,
            parent,
            size_at: 0,
        };
        let file = RawFile::create_storage(path, options.cache)?;
        let made = make(&file, &metadata, log_size).and_then(|data| {
            let blocks = size.div_ceil(block_size);
            if fixed { file.allocate(data, blocks * block_size, mode) } else { Ok(()) }
        });
        made.and_then(|()| file.flush())
            .map_err(|source| BlockError::io(path, "writing the new image", source))
    }
}

fn is_fixed(subformat: Option<&str>) -> ImageResult<bool> {
    match subformat {
        None | Some("dynamic") => Ok(false),
        Some("fixed") => Ok(true),
        Some(other) => {
            Err(BlockError::option("subformat", format!("{other:?} is unknown; known: dynamic, fixed")))
        }
    }
}

/// What a differencing image says of its parent.
fn parent_of(path: &Path, name: &str, format: &str) -> ImageResult<Vec<(String, String)>> {
    if format != "vhdx" {
        return Err(BlockError::unsupported(
            path,
            format!("a vhdx image as its backing file, not one of {format}"),
        ));
    }
    let options = OpenOptions { backing: BackingPolicy::Anywhere, ..OpenOptions::reading() };
    let real = referred_file(path, name, &options)?;
    let file = RawFile::open_storage(&real, &options)?;
    let (header, _) = Header::current(&file, &real)?;
    let key = if name.starts_with('/') { "absolute_win32_path" } else { "relative_path" };
    Ok(vec![
        ("parent_linkage".to_owned(), format!("{{{}}}", guid_text(&header.data_write))),
        (key.to_owned(), name.replace('/', "\\")),
    ])
}

/// Writes an empty image. Returns where its blocks begin.
fn make(file: &dyn BlockBackend, metadata: &Metadata, log_size: u64) -> std::io::Result<u64> {
    let log = MIB..MIB + log_size;
    let metadata_region = log.end..log.end + MIB;
    let entries = metadata.bat_entries();
    let bat = metadata_region.end..metadata_region.end + (8 * entries).next_multiple_of(MIB);
    file.resize(bat.end)?;
    let name: Vec<u8> = "Vireo".encode_utf16().flat_map(u16::to_le_bytes).collect();
    file.write_bytes(8, &name)?;
    if metadata.fixed {
        let (ratio, size) = (metadata.chunk_ratio(), u64::from(metadata.block_size));
        let blocks = metadata.size.div_ceil(size);
        let entry = |n: u64| {
            let block = n - n / (ratio + 1);
            let bitmap = n % (ratio + 1) == ratio;
            if bitmap || block >= blocks { 0 } else { bat.end + block * size | 6 }
        };
        const PART: u64 = 64 << 10;
        for first in (0..entries).step_by(PART as usize) {
            let bytes: Vec<u8> =
                (first..entries.min(first + PART)).flat_map(|n| entry(n).to_le_bytes()).collect();
            file.write_bytes(bat.start + 8 * first, &bytes)?;
        }
    }
    file.write_bytes(metadata_region.start, &metadata.encode())?;
    let regions = Regions::new(bat.clone(), metadata_region).encode();
    let mut header =
        Header { sequence: 1, file_write: random_uuid(), data_write: random_uuid(), log_guid: [0; 16], log };
    for (at, table_at) in HEADERS.into_iter().zip(REGION_TABLES) {
        file.write_bytes(at, &header.encode())?;
        file.write_bytes(table_at, &regions)?;
        header.sequence += 1;
    }
    file.write_bytes(0, b"vhdxfile")?;
    Ok(bat.end)
}
