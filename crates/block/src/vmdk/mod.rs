//! VMware disks: a descriptor (a file of its own, or inside the only extent) and extents, flat or of grains.
//!
//! Sparse extents have a directory of tables of grains, mostly twice. Stream-optimized ones have compressed grains,
//! each behind a marker that says which it is. The identity of the content (CID) changes with the first write after
//! an image was opened; an image on top of it stores the identity it was made for.

mod create;
mod descriptor;
mod header;
mod image;
mod layout;

use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::format::{Driver, open_backing, referred_file};
use crate::image::{DiskImage, ImageResult};
use crate::mapped::{Mapped, Parts};
use crate::options::{BackingPolicy, CreateOptions, OpenOptions};
use crate::raw::RawFile;
use descriptor::{DESCRIPTOR_MAX, Descriptor, ExtentKind, ExtentLine};
use header::{Header, MAGIC};
use image::{DescriptorPlace, Part, Store, VmdkImage};
use layout::SparseLayout;
use parking_lot::{Mutex, RwLock};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The vmdk format.
#[derive(Debug)]
pub(crate) struct VmdkFormat;

const OPTIONS: &[(&str, &str)] = &[
    (
        "subformat",
        "monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat or streamOptimized",
    ),
    ("zeroed_grain", "on: grains can be said to be zeros (default: off)"),
    ("adapter_type", "ide (default), buslogic, lsilogic or legacyESX"),
    ("hwversion", "virtual hardware version (default: 4)"),
    ("preallocation", "of flat images: off (thin), falloc (lazy), full (eager)"),
];

impl Driver for VmdkFormat {
    fn name(&self) -> &'static str {
        "vmdk"
    }

    fn options(&self) -> &'static [(&'static str, &'static str)] {
        OPTIONS
    }

    fn probe(&self, head: &[u8], _size: u64) -> bool {
        head.starts_with(MAGIC) || head.trim_ascii_start().starts_with(b"# Disk DescriptorFile")
    }

    fn open(
        &self,
        file: Arc<dyn BlockBackend>,
        path: &Path,
        options: &OpenOptions,
    ) -> ImageResult<Arc<dyn DiskImage>> {
        let mut magic = [0; 4];
        let readable = magic.len().min(file.size() as usize);
        file.read_bytes(0, magic.get_mut(..readable).unwrap_or_default())
            .map_err(|source| BlockError::io(path, "reading the header", source))?;
        let (descriptor, lines) = match &magic {
            MAGIC => {
                let header = Header::read(&*file, path)?;
                (image::embedded(&file, path, &header)?, None)
            }
            b"COWD" => {
                return Err(BlockError::unsupported(
                    path,
                    "ESX sparse extents (COWD), which cannot be opened",
                ));
            }
            _ => {
                let (descriptor, place) = read_descriptor(&file, path)?;
                let lines = descriptor.extents(path)?;
                (Some((Mutex::new(descriptor), place)), Some(lines))
            }
        };
        let backing = match &descriptor {
            Some((descriptor, _)) => open_parent(path, &descriptor.lock(), options)?,
            None => None,
        };
        let (mut parts, mut read_only) = (Vec::new(), options.read_only);
        match lines {
            None => parts.push(sparse_part(file, path, 0, None, backing.clone(), options.read_only)?),
            Some(lines) => {
                for line in &lines {
                    let start = parts.last().map_or(0, |part: &Part| part.start + part.len);
                    parts.push(open_extent(path, line, start, backing.clone(), options)?);
                    read_only |= !line.writable;
                }
            }
        }
        Ok(Arc::new(VmdkImage {
            path: path.to_owned(),
            parts: RwLock::new(parts),
            descriptor,
            backing,
            read_only,
            written: AtomicBool::new(false),
        }))
    }

    fn create(&self, path: &Path, options: CreateOptions) -> ImageResult<()> {
        create::create(path, options)
    }
}

fn read_descriptor(file: &Arc<dyn BlockBackend>, path: &Path) -> ImageResult<(Descriptor, DescriptorPlace)> {
    let size = file.size();
    if size > DESCRIPTOR_MAX {
        let problem = "begins neither a sparse extent nor a descriptor of at most 1 MiB";
        return Err(BlockError::metadata(path, 0, "magicNumber", problem));
    }
    let mut bytes = vec![0; size as usize];
    file.read_bytes(0, &mut bytes)
        .map_err(|source| BlockError::io(path, "reading the descriptor", source))?;
    let descriptor = Descriptor::parse(path, 0, &bytes)?;
    Ok((descriptor, DescriptorPlace { file: file.clone(), at: 0, room: None }))
}

fn open_parent(
    path: &Path,
    descriptor: &Descriptor,
    options: &OpenOptions,
) -> ImageResult<Option<Arc<dyn DiskImage>>> {
    let Some(wanted) = descriptor.parent_cid() else { return Ok(None) };
    let name = descriptor.value("parentFileNameHint").unwrap_or_default();
    let backing = open_backing(path, name, Some("vmdk"), options)?;
    if let Some(backing) = &backing {
        let found = backing.info()?.format_specific.get("cid").and_then(serde_json::Value::as_u64);
        if found != Some(wanted.into()) {
            let found = found.map_or_else(|| "missing".to_owned(), |cid| format!("{cid:08x}"));
            let problem =
                format!("its CID is {found}, not {wanted:08x}: it was written to, or is another image");
            return Err(BlockError::Reference { path: path.to_owned(), other: name.to_owned(), problem });
        }
    }
    Ok(backing)
}

/// A sparse extent of `sectors`, or as large as its header says.
fn sparse_part(
    file: Arc<dyn BlockBackend>,
    path: &Path,
    start: u64,
    sectors: Option<u64>,
    backing: Option<Arc<dyn DiskImage>>,
    read_only: bool,
) -> ImageResult<Part> {
    let header = Header::read(&*file, path)?;
    let len = sectors.unwrap_or(header.capacity);
    if len > header.capacity {
        let problem = format!("is {} sectors, but the descriptor says {len}", header.capacity);
        return Err(BlockError::metadata(path, 12, "capacity", problem));
    }
    let mapped = Mapped::new(Parts {
        size: len * 512,
        layout: SparseLayout::new(header),
        path: path.to_owned(),
        file,
        backing,
        backing_start: start,
        read_only,
    });
    Ok(Part { start, len: len * 512, store: Store::Sparse(Box::new(mapped)) })
}

fn open_extent(
    path: &Path,
    line: &ExtentLine,
    start: u64,
    backing: Option<Arc<dyn DiskImage>>,
    options: &OpenOptions,
) -> ImageResult<Part> {
    let len = line.sectors * 512;
    if start.checked_add(len).is_none_or(|end| end > 1 << 60) {
        return Err(BlockError::metadata(
            path,
            0,
            "extent",
            format!("ends behind 1 EiB: {} sectors", line.sectors),
        ));
    }
    if line.kind == ExtentKind::Zero {
        return Ok(Part { start, len, store: Store::Zero });
    }
    if options.backing == BackingPolicy::Ignore {
        let problem = "extents cannot be left away".to_owned();
        return Err(BlockError::Reference { path: path.to_owned(), other: line.file.clone(), problem });
    }
    let real = referred_file(path, &line.file, options)?;
    let opening = OpenOptions { read_only: options.read_only || !line.writable, ..options.clone() };
    let file: Arc<dyn BlockBackend> = Arc::new(RawFile::open_storage(&real, &opening)?);
    if line.kind == ExtentKind::Sparse {
        return sparse_part(file, &real, start, Some(line.sectors), backing, opening.read_only);
    }
    let offset = line.offset * 512;
    if offset + len > file.size() {
        let problem = format!("ends at byte {}, but {} has {}", offset + len, line.file, file.size());
        return Err(BlockError::metadata(path, 0, "extent", problem));
    }
    Ok(Part { start, len, store: Store::Flat(file, offset) })
}
