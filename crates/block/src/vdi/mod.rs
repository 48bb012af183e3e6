//! VirtualBox disk images: a header of one sector, a table of 32-bit block numbers, blocks of 1 MiB.
//!
//! The structure is that of VirtualBox' `VDICore.h`, version 1.1, as other tools read it. Images of type 1 (dynamic)
//! and 2 (fixed) are read and written; differencing images (types 3 and 4) need the media registry of VirtualBox to
//! find their parent and are refused.

mod grow;
mod header;
mod layout;

use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::format::Driver;
use crate::image::{DiskImage, ImageResult};
use crate::mapped::{Mapped, Parts};
use crate::options::{CreateOptions, OpenOptions, Preallocation};
use crate::raw::RawFile;
use header::Header;
use layout::VdiLayout;
use std::path::Path;
use std::sync::Arc;

/// The vdi format.
#[derive(Debug)]
pub(crate) struct VdiFormat;

const OPTIONS: &[(&str, &str)] = &[
    ("static", "on: a fixed image, every block has its place (default: off, dynamic)"),
    ("preallocation", "off (thin), metadata, falloc (lazy), full (eager); all but off make a fixed image"),
];

impl Driver for VdiFormat {
    fn name(&self) -> &'static str {
        "vdi"
    }

    fn options(&self) -> &'static [(&'static str, &'static str)] {
        OPTIONS
    }

    fn probe(&self, head: &[u8], _size: u64) -> bool {
        head.get(0x40..0x44) == Some(&header::SIGNATURE.to_le_bytes())
    }

    fn open(
        &self,
        file: Arc<dyn BlockBackend>,
        path: &Path,
        options: &OpenOptions,
    ) -> ImageResult<Arc<dyn DiskImage>> {
        let header = Header::read(&*file, path)?;
        Ok(Arc::new(Mapped::new(Parts {
            size: header.disk_size,
            layout: VdiLayout::new(header),
            path: path.to_owned(),
            file,
            backing: None,
            backing_start: 0,
            read_only: options.read_only,
        })))
    }

    fn create(&self, path: &Path, mut options: CreateOptions) -> ImageResult<()> {
        let mode = options.take("preallocation").map(|name| Preallocation::named(&name)).transpose()?;
        let fixed = options.take_switch("static")?.unwrap_or(false);
        options.finish("vdi", OPTIONS)?;
        if options.backing.is_some() {
            return Err(BlockError::unsupported(path, "a backing file, which vdi images cannot have"));
        }
        let mode = mode.unwrap_or_default();
        let header = Header::new(options.size, fixed || mode != Preallocation::Off)
            .map_err(|problem| BlockError::option("size", problem))?;
        let file = RawFile::create_storage(path, options.cache)?;
        let made = make(&file, &header).and_then(|()| {
            let data = u64::from(header.data_offset);
            let len = u64::from(header.blocks) * u64::from(header.block_size);
            if header.fixed { file.allocate(data, len, mode) } else { Ok(()) }
        });
        made.and_then(|()| file.flush())
            .map_err(|source| BlockError::io(path, "writing the new image", source))
    }
}

/// Writes the header and the table of an empty image.
fn make(file: &dyn BlockBackend, header: &Header) -> std::io::Result<()> {
    const ENTRIES: u32 = 16 << 10;
    let mut first = 0;
    while first < header.blocks {
        let entries = first..header.blocks.min(first + ENTRIES);
        let bytes: Vec<u8> = entries
            .clone()
            .flat_map(|block| if header.fixed { block } else { header::UNALLOCATED }.to_le_bytes())
            .collect();
        file.write_bytes(u64::from(header.table_offset) + 4 * u64::from(first), &bytes)?;
        first = entries.end;
    }
    // The rest of the table's last sector.
    file.resize(u64::from(header.data_offset))?;
    file.write_bytes(0, &header.encode())
}
