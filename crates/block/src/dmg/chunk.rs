//! Chunks: runs of sectors that are stored in one way.

use super::adc;
use crate::backend::SECTOR_SIZE;
use std::io::{Error, ErrorKind, Read, Result};

/// Largest compressed chunk, unpacked, in bytes; the tools of macOS make such of up to 1 MiB.
pub(super) const UNPACKED_MAX: u64 = 8 << 20;
/// Largest compressed chunk as it is stored: what cannot be compressed grows a little.
const PACKED_MAX: u64 = UNPACKED_MAX + (1 << 20);
/// Memory that a chunk of LZMA may need to be unpacked, in KiB.
const LZMA_KIB: u32 = 16 << 10;

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Zero,
    Raw,
    Adc,
    Zlib,
    Bzip2,
    Lzfse,
    Lzma,
}

impl Kind {
    /// By its number; `None` for what is no chunk.
    pub fn of(number: u32) -> std::result::Result<Option<Self>, ()> {
        Ok(Some(match number {
            // 2 is space that its file system does not use.
            0 | 2 => Kind::Zero,
            1 => Kind::Raw,
            0x8000_0004 => Kind::Adc,
            0x8000_0005 => Kind::Zlib,
            0x8000_0006 => Kind::Bzip2,
            0x8000_0007 => Kind::Lzfse,
            0x8000_0008 => Kind::Lzma,
            // A comment, and the end.
            0x7FFF_FFFE | 0xFFFF_FFFF => return Ok(None),
            _ => return Err(()),
        }))
    }

    pub fn is_packed(self) -> bool {
        !matches!(self, Kind::Zero | Kind::Raw)
    }
}

/// A run of sectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// First sector of the disk.
    pub sector: u64,
    pub sectors: u64,
    /// Where it is stored, and in how many bytes.
    pub at: u64,
    pub len: u64,
    pub kind: Kind,
}

impl Chunk {
    /// First byte of the disk.
    pub fn start(&self) -> u64 {
        self.sector * SECTOR_SIZE
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.sectors * SECTOR_SIZE
    }

    /// Whether it can be used; the error goes on after "property list".
    pub fn check(&self) -> std::result::Result<(), String> {
        let sector = self.sector;
        if self.kind.is_packed() && (self.size() > UNPACKED_MAX || self.len > PACKED_MAX) {
            return Err(format!("has a compressed chunk of more than 8 MiB at sector {sector}"));
        }
        if self.kind == Kind::Raw && self.len < self.size() {
            return Err(format!(
                "has a chunk at sector {sector} that stores {} of {} bytes",
                self.len,
                self.size()
            ));
        }
        Ok(())
    }

    /// Its content, from what is stored of it.
    pub fn unpack(&self, packed: &[u8]) -> Result<Vec<u8>> {
        let size = self.size() as usize;
        let data = match self.kind {
            Kind::Zero | Kind::Raw => return Err(ErrorKind::InvalidInput.into()),
            Kind::Adc => adc::unpack(packed, size).ok_or_else(|| damaged("it is damaged"))?,
            Kind::Zlib => all(flate2::read::ZlibDecoder::new(packed), size)?,
            Kind::Bzip2 => all(bzip2::read::BzDecoder::new(packed), size)?,
            Kind::Lzfse => all(lzfse_rust::LzfseRingDecoder::default().reader_bytes(packed), size)?,
            Kind::Lzma => all(lzma_rust2::XzReader::new_mem_limit(packed, false, LZMA_KIB), size)?,
        };
        if data.len() == size { Ok(data) } else { Err(damaged("it is shorter than its table says")) }
    }
}

/// All that comes, which is at most this much.
fn all(from: impl Read, most: usize) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(most);
    from.take(most as u64 + 1).read_to_end(&mut out)?;
    if out.len() > most { Err(damaged("it is longer than its table says")) } else { Ok(out) }
}

fn damaged(problem: &str) -> Error {
    Error::new(ErrorKind::InvalidData, problem)
}
