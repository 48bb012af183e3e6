//! Microsoft virtual hard disks, version 1: the footer, fixed images in front of it, images of blocks.
//!
//! The footer at the end is the authority; images of blocks have a copy of it at the beginning for the case that a
//! crash leaves the end without one. What an image without the exact size in mind made (Virtual PC) is as large as
//! its geometry says; the tools that mean the size itself are known by their names (Hyper-V, Azure, Disk2vhd, Xen).

mod fixed;
mod footer;
mod layout;

use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::format::{Driver, open_backing, referred_file};
use crate::image::{DiskImage, ImageInfo, ImageResult};
use crate::mapped::{Fields, Mapped, Parts};
use crate::options::{BackingPolicy, CreateOptions, OpenOptions, Preallocation};
use crate::raw::RawFile;
use fixed::VhdFixed;
use footer::{FOOTER, Footer, Header, Kind, Locator};
use layout::VhdLayout;
use std::path::Path;
use std::sync::Arc;

/// The vhd format; its name is `vpc` as everywhere.
#[derive(Debug)]
pub(crate) struct VhdFormat;

const OPTIONS: &[(&str, &str)] = &[
    ("subformat", "dynamic (default) or fixed"),
    (
        "force_size",
        "off: round the size up to a geometry, as Virtual PC needs it (default: on, the exact size)",
    ),
    ("block_size", "bytes of a block, a power of two from 512k to 256M (default: 2M)"),
    ("preallocation", "of fixed images: off (thin), falloc (lazy), full (eager)"),
];
/// Where a new image has the parent's name.
const LOCATOR_AT: u64 = 1536;
/// UTF-16 with the least significant byte first, a path from the image's folder.
const RELATIVE: &[u8; 4] = b"W2ru";
/// The same, an absolute path.
const ABSOLUTE: &[u8; 4] = b"W2ku";

fn describe(info: &mut ImageInfo, footer: &Footer) {
    let kind = match footer.kind {
        Kind::Fixed => "fixed",
        Kind::Dynamic => "dynamic",
        Kind::Differencing => "differencing",
    };
    info.format_specific.insert("subformat".into(), kind.into());
    info.format_specific.insert("uuid".into(), uuid_text(&footer.uuid).into());
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let [a, b, c, d, e] = [&uuid[..4], &uuid[4..6], &uuid[6..8], &uuid[8..10], &uuid[10..]];
    [hex(a), hex(b), hex(c), hex(d), hex(e)].join("-")
}

/// The footer, and where it is. The one at the end decides: sector 0 of a fixed image is its guest's.
fn find_footer(file: &dyn BlockBackend, path: &Path) -> ImageResult<(Footer, u64)> {
    let size = file.size();
    // Some old images have a footer of 511 bytes.
    for len in [512, 511] {
        let at = size.saturating_sub(len);
        let mut fields = Fields::read(file, path, at, len as usize, "footer")?;
        if len == 511 {
            fields = Fields::of(path, at, [fields.bytes(), &[0]].concat());
        }
        if Footer::is_there(&fields) {
            return Ok((Footer::parse(&fields)?, at));
        }
    }
    let first = Fields::read(file, path, 0, FOOTER as usize, "footer")?;
    if Footer::is_there(&first) {
        let footer = Footer::parse(&first)?;
        if footer.kind != Kind::Fixed {
            return Ok((footer, size));
        }
    }
    let last = Fields::read(file, path, size.saturating_sub(FOOTER), FOOTER as usize, "footer")?;
    Footer::parse(&last).map(|footer| (footer, size - FOOTER))
}

/// The name of the parent: the locator of a relative path, of an absolute one, the name in the header.
fn parent_name(file: &dyn BlockBackend, path: &Path, header: &Header) -> ImageResult<String> {
    for wanted in [RELATIVE, ABSOLUTE] {
        let Some(locator) = header.locators.iter().find(|locator| &locator.platform == wanted) else {
            continue;
        };
        let fields = Fields::read(file, path, locator.offset, locator.len as usize, "parent locator")?;
        let units: Vec<u16> =
            fields.bytes().as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
        let name = String::from_utf16_lossy(&units);
        let name = name.trim_end_matches('\0').replace('\\', "/");
        if !name.is_empty() {
            return Ok(name);
        }
    }
    Ok(header.parent_name.replace('\\', "/"))
}

fn open_parent(
    file: &dyn BlockBackend,
    path: &Path,
    header: &Header,
    options: &OpenOptions,
) -> ImageResult<(Option<Arc<dyn DiskImage>>, String)> {
    let name = parent_name(file, path, header)?;
    let backing = open_backing(path, &name, Some("vpc"), options)?;
    if let Some(backing) = &backing {
        let found =
            backing.info()?.format_specific.get("uuid").and_then(|uuid| uuid.as_str().map(str::to_owned));
        let wanted = uuid_text(&header.parent);
        if found.as_ref() != Some(&wanted) {
            let problem = format!("its UUID is {}, not {wanted}", found.unwrap_or_default());
            return Err(BlockError::Reference { path: path.to_owned(), other: name, problem });
        }
    }
    Ok((backing, name))
}

impl Driver for VhdFormat {
    fn name(&self) -> &'static str {
        "vpc"
    }

    fn options(&self) -> &'static [(&'static str, &'static str)] {
        OPTIONS
    }

    fn probe(&self, head: &[u8], _size: u64) -> bool {
        // Fixed images are not known by their beginning.
        head.starts_with(b"conectix")
    }

    fn open(
        &self,
        file: Arc<dyn BlockBackend>,
        path: &Path,
        options: &OpenOptions,
    ) -> ImageResult<Arc<dyn DiskImage>> {
        let (footer, at) = find_footer(&*file, path)?;
        if footer.kind == Kind::Fixed {
            return Ok(Arc::new(VhdFixed::new(file, path, footer, at)?));
        }
        let fields = Fields::read(&*file, path, footer.header_offset, Header::LEN, "dynamic disk header")?;
        let header = Header::parse(&fields, footer.size, file.size())?;
        let (backing, name) = if footer.kind == Kind::Differencing {
            let (backing, name) = open_parent(&*file, path, &header, options)?;
            (backing, Some(name))
        } else {
            (None, None)
        };
        Ok(Arc::new(Mapped::new(Parts {
            size: footer.size,
            layout: VhdLayout::new(footer, header, name),
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
        let exact = options.take_switch("force_size")?.unwrap_or(true);
        let subformat = options.take("subformat");
        let block_size = options.take_bytes("block_size")?.unwrap_or(2 << 20);
        options.finish("vpc", OPTIONS)?;
        if !block_size.is_power_of_two() || !(512 << 10..=256 << 20).contains(&block_size) {
            let problem = format!("{block_size} is no power of two from 512k to 256M");
            return Err(BlockError::option("block_size", problem));
        }
        let kind = match (subformat.as_deref(), options.backing.is_some()) {
            (Some("fixed"), false) => Kind::Fixed,
            (Some("dynamic") | None, false) => Kind::Dynamic,
            (Some("dynamic") | None, true) => Kind::Differencing,
            (Some("fixed"), true) => {
                return Err(BlockError::option("subformat", "a fixed image has no backing file"));
            }
            (Some(other), _) => {
                return Err(BlockError::option(
                    "subformat",
                    format!("{other:?} is unknown; known: dynamic, fixed"),
                ));
            }
        };
        if kind != Kind::Fixed && mode != Preallocation::Off {
            return Err(BlockError::option(
                "preallocation",
                "only fixed vhd images (subformat=fixed) have it",
            ));
        }
        let footer = Footer::new(kind, options.size, exact)?;
        let parent = match &options.backing {
            Some((name, format)) => Some((name.clone(), parent_of(path, name, format)?)),
            None => None,
        };
        let file = RawFile::create_storage(path, options.cache)?;
        let made = match kind {
            Kind::Fixed => file
                .allocate(0, footer.size, mode)
                .and_then(|()| file.write_bytes(footer.size, &footer.encode())),
            _ => make(&file, &footer, block_size as u32, parent.as_ref()),
        };
        made.and_then(|()| file.flush())
            .map_err(|source| BlockError::io(path, "writing the new image", source))
    }
}

/// The identity of the image that shall be the parent.
fn parent_of(path: &Path, name: &str, format: &str) -> ImageResult<[u8; 16]> {
    if !matches!(format, "vpc" | "vhd") {
        return Err(BlockError::unsupported(
            path,
            format!("a vpc image as its backing file, not one of {format}"),
        ));
    }
    let options = OpenOptions { backing: BackingPolicy::Anywhere, ..OpenOptions::reading() };
    let real = referred_file(path, name, &options)?;
    let file = RawFile::open_storage(&real, &options)?;
    Ok(find_footer(&file, &real)?.0.uuid)
}

/// Writes an empty image of blocks.
fn make(
    file: &dyn BlockBackend,
    footer: &Footer,
    block_size: u32,
    parent: Option<&(String, [u8; 16])>,
) -> std::io::Result<()> {
    let mut table_at = LOCATOR_AT;
    let mut header = Header::new(footer.size, block_size, table_at);
    if let Some((name, uuid)) = parent {
        let stored =
            if name.starts_with('/') { name.clone() } else { format!(".\\{}", name.replace('/', "\\")) };
        let bytes: Vec<u8> = stored.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let platform = if name.starts_with('/') { *ABSOLUTE } else { *RELATIVE };
        file.write_bytes(LOCATOR_AT, &bytes)?;
        header.locators.push(Locator { platform, len: bytes.len() as u32, offset: LOCATOR_AT });
        header.parent = *uuid;
        header.parent_name = name.clone();
        table_at += (bytes.len() as u64).next_multiple_of(512);
        header.table_offset = table_at;
    }
    let table = vec![0xFF; (4 * header.entries as usize).next_multiple_of(512)];
    file.write_bytes(table_at, &table)?;
    file.write_bytes(FOOTER, &header.encode())?;
    file.write_bytes(0, &footer.encode())?;
    file.write_bytes(table_at + table.len() as u64, &footer.encode())
}
