//! Apple disk images (UDIF, `.dmg`), for reading.
//!
//! Apple has published no specification; what is known is in the sources of the tools that read them. A file is data,
//! a property list in XML, and a [`trailer`] that says where both are. The list has a [`table`] for each partition, which
//! divides it into [`chunk`]s: zeros, plain data, or compressed ones. Numbers are big-endian.
//!
//! ```text
//! data fork │ property list: blkx ─► base 64 ─► mish ─► chunk, chunk, … │ koly
//! ```

mod adc;
mod chunk;
mod table;
mod trailer;

use crate::backend::{BlockBackend, Capabilities, Extent, SECTOR_SIZE};
use crate::buffers::len;
use crate::error::BlockError;
use crate::format::Driver;
use crate::image::{CheckReport, DiskImage, ImageInfo, ImageResult, Repair};
use crate::options::{CreateOptions, OpenOptions};
use chunk::{Chunk, Kind, UNPACKED_MAX};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use trailer::Trailer;

pub(crate) use trailer::is_there;

/// Unpacked bytes that are kept.
const KEPT: usize = 2 * UNPACKED_MAX as usize;

/// The format.
pub(crate) struct DmgFormat;

impl Driver for DmgFormat {
    fn name(&self) -> &'static str {
        "dmg"
    }

    fn options(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn probe(&self, _head: &[u8], _size: u64) -> bool {
        // What it is stands at its end.
        false
    }

    fn open(
        &self,
        file: Arc<dyn BlockBackend>,
        path: &Path,
        options: &OpenOptions,
    ) -> ImageResult<Arc<dyn DiskImage>> {
        let trailer = trailer::read(&*file, path)?;
        let chunks = table::read(&*file, path, &trailer)?;
        let end = chunks.last().map_or(0, |chunk| chunk.sector + chunk.sectors);
        if trailer.sectors != 0 && end > trailer.sectors {
            let problem = format!("is {}, but the last chunk ends at sector {end}", trailer.sectors);
            let at = file.size() - trailer::TRAILER + 492;
            return Err(BlockError::metadata(path, at, "SectorCount", problem));
        }
        if !options.read_only {
            return Err(BlockError::unsupported(
                path,
                "to be opened for reading only: dmg images are not written",
            ));
        }
        let size = trailer.sectors.max(end) * SECTOR_SIZE;
        let kept = Mutex::default();
        Ok(Arc::new(DmgImage { file, path: path.to_owned(), size, trailer, chunks, kept }))
    }

    fn create(&self, path: &Path, _options: CreateOptions) -> ImageResult<()> {
        Err(BlockError::unsupported(path, "another format: dmg images are read, not made"))
    }
}

/// Chunks that were unpacked, the latest last.
#[derive(Default)]
struct Kept {
    chunks: VecDeque<(usize, Arc<Vec<u8>>)>,
    bytes: usize,
}

/// An opened image.
struct DmgImage {
    file: Arc<dyn BlockBackend>,
    path: PathBuf,
    size: u64,
    trailer: Trailer,
    chunks: Vec<Chunk>,
    kept: Mutex<Kept>,
}

impl DmgImage {
    /// The first chunk that ends behind a byte of the disk, by its number.
    fn from(&self, offset: u64) -> Option<(usize, &Chunk)> {
        let number = self.chunks.partition_point(|chunk| chunk.start() + chunk.size() <= offset);
        Some((number, self.chunks.get(number)?))
    }

    /// The content of a compressed chunk.
    fn unpacked(&self, number: usize, chunk: &Chunk) -> Result<Arc<Vec<u8>>> {
        {
            let mut kept = self.kept.lock();
            if let Some(at) = kept.chunks.iter().position(|(other, _)| *other == number)
                && let Some(found) = kept.chunks.remove(at)
            {
                let data = found.1.clone();
                kept.chunks.push_back(found);
                return Ok(data);
            }
        }
        // Nobody waits while it is unpacked; two who want the same one do it twice.
        let mut packed = vec![0; chunk.len as usize];
        self.file.read_bytes(chunk.at, &mut packed)?;
        let data = chunk.unpack(&packed).map_err(|error| {
            let (path, at, sector) = (self.path.display(), chunk.at, chunk.sector);
            Error::new(
                ErrorKind::InvalidData,
                format!("Image {path}, offset {at:#x}: chunk of sector {sector}: {error}"),
            )
        })?;
        let data = Arc::new(data);
        let mut kept = self.kept.lock();
        kept.bytes += data.len();
        kept.chunks.push_back((number, data.clone()));
        while kept.bytes > KEPT
            && let Some((_, old)) = kept.chunks.pop_front()
        {
            kept.bytes -= old.len();
        }
        Ok(data)
    }

    fn read(&self, mut offset: u64, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let left = out.len() as u64;
            let (here, found) = match self.from(offset) {
                Some((number, chunk)) if chunk.start() <= offset => {
                    ((chunk.start() + chunk.size() - offset).min(left), Some((number, chunk)))
                }
                Some((_, chunk)) => ((chunk.start() - offset).min(left), None),
                None => (left, None),
            };
            let (part, rest) = out.split_at_mut(here as usize);
            match found {
                Some((_, chunk)) if chunk.kind == Kind::Raw => {
                    self.file.read_bytes(chunk.at + (offset - chunk.start()), part)?;
                }
                Some((number, chunk)) if chunk.kind.is_packed() => {
                    let data = self.unpacked(number, chunk)?;
                    let start = (offset - chunk.start()) as usize;
                    let from = data.get(start..start + part.len()).ok_or(ErrorKind::UnexpectedEof)?;
                    part.copy_from_slice(from);
                }
                _ => part.fill(0),
            }
            offset += here;
            out = rest;
        }
        Ok(())
    }

    /// CRC-32 of the data fork.
    fn crc(&self) -> Result<u32> {
        const STEP: u64 = 1 << 20;
        let (start, len) = self.trailer.data;
        let mut buffer = vec![0; len.min(STEP) as usize];
        let mut crc = crc32fast::Hasher::new();
        let mut done = 0;
        while done < len {
            let part = buffer.get_mut(..(len - done).min(STEP) as usize).unwrap_or_default();
            self.file.read_bytes(start + done, part)?;
            crc.update(part);
            done += part.len() as u64;
        }
        Ok(crc.finalize())
    }
}

fn read_only<T>() -> Result<T> {
    Err(ErrorKind::ReadOnlyFilesystem.into())
}

impl BlockBackend for DmgImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: true, discard: false, zero_alignment: SECTOR_SIZE, growable: false }
    }

    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check_range(offset, len(buffers))?;
        let mut at = offset;
        for buffer in buffers {
            self.read(at, buffer)?;
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _buffers: &[IoSlice<'_>]) -> Result<()> {
        read_only()
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        read_only()
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> Result<()> {
        read_only()
    }

    fn resize(&self, _size: u64) -> Result<()> {
        read_only()
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        Ok(match self.from(offset) {
            None => Extent::hole(offset, len),
            Some((_, chunk)) if chunk.start() > offset => {
                Extent::hole(offset, len.min(chunk.start() - offset))
            }
            Some((_, chunk)) => {
                let length = len.min(chunk.start() + chunk.size() - offset);
                match chunk.kind {
                    Kind::Zero => Extent::zero(offset, length),
                    Kind::Raw => Extent::data(offset, length, Some(chunk.at + (offset - chunk.start()))),
                    _ => Extent { compressed: true, ..Extent::data(offset, length, None) },
                }
            }
        })
    }
}

impl DiskImage for DmgImage {
    fn info(&self) -> ImageResult<ImageInfo> {
        Ok(ImageInfo {
            filename: self.path.clone(),
            format: "dmg".to_owned(),
            virtual_size: self.size,
            actual_size: crate::raw::actual_size(&self.path).unwrap_or(self.file.size()),
            ..ImageInfo::default()
        })
    }

    /// Unpacks every chunk, and compares the checksum of the data where there is one.
    fn check(&self, _repair: Repair) -> ImageResult<CheckReport> {
        let mut report = CheckReport {
            total_clusters: self.size / SECTOR_SIZE,
            image_end_offset: self.file.size(),
            ..CheckReport::default()
        };
        for (number, chunk) in self.chunks.iter().enumerate() {
            if chunk.kind != Kind::Zero {
                report.allocated_clusters += chunk.sectors;
            }
            if !chunk.kind.is_packed() {
                continue;
            }
            report.compressed_clusters += chunk.sectors;
            if let Err(error) = self.unpacked(number, chunk) {
                report.corruptions += 1;
                report.find(|| error.to_string());
            }
        }
        if let Some(stored) = self.trailer.crc {
            let crc = self.crc().map_err(|source| BlockError::io(&self.path, "reading the data", source))?;
            if crc != stored {
                report.corruptions += 1;
                let at = self.file.size() - trailer::TRAILER + 88;
                report.find(|| {
                    format!("offset {at:#x}: DataChecksum is {stored:#010x}, of the data it is {crc:#010x}")
                });
            }
        }
        Ok(report)
    }

    fn cluster_size(&self) -> u64 {
        SECTOR_SIZE
    }

    fn set_backing(&self, _backing: Option<(&str, &str)>) -> ImageResult<()> {
        Err(BlockError::unsupported(&self.path, "another format for a backing file"))
    }

    fn make_empty(&self) -> ImageResult<()> {
        Err(BlockError::unsupported(&self.path, "to become empty, which images that are only read cannot"))
    }
}
