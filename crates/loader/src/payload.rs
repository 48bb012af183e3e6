//! The ELF kernel that is packed in a bzImage (Linux boot protocol 2.08, `payload_offset`).
//!
//! ```text
//!   payload:  packed ELF file          | u32: length unpacked
//!             gzip, xz, zstd or lz4      (of gzip, that is its own last field)
//! ```
//!
//! A kernel unpacks itself when it is entered by the Linux protocol. Its PVH entry is in the packed file, so that
//! entering there means unpacking it first. The announced length bounds the unpacking, RAM bounds that length.

use crate::LoadError;
use crate::elf::is_elf;
use crate::fields::{Fields, bytes, u32_at};
use std::io::Read;
use std::path::Path;

/// Bytes of the length at the payload's end.
const LENGTH: u64 = 4;
/// The most that a block of the lz4 legacy frame unpacks to.
const LZ4_BLOCK: usize = 8 << 20;
/// The most memory, in KiB, that xz may take: kernels are packed with dictionaries of at most 128 MiB.
const XZ_KIB: u32 = 160 << 10;
/// What room is made for before anything is unpacked; the rest is made as bytes come.
const FIRST_ROOM: usize = 1 << 20;

/// Ways of packing, by their first bytes; those without a decoder here are known by name.
const FORMATS: [(&[u8], Packing); 7] = [
    (b"\x1f\x8b", Packing::Gzip),
    (b"\xfd7zXZ\0", Packing::Xz),
    (b"\x28\xb5\x2f\xfd", Packing::Zstd),
    (b"\x02\x21\x4c\x18", Packing::Lz4),
    (b"BZh", Packing::Unsupported("bzip2")),
    (b"\x89LZO", Packing::Unsupported("lzo")),
    (b"\x5d\0\0", Packing::Unsupported("lzma")),
];

#[derive(Clone, Copy)]
enum Packing {
    Gzip,
    Xz,
    Zstd,
    Lz4,
    Unsupported(&'static str),
}

/// Unpacks the payload at (offset, length) of a bzImage; `room` bounds its length unpacked.
pub fn unpack(path: &Path, image: &[u8], payload: (u64, u64), room: u64) -> Result<Vec<u8>, LoadError> {
    let fields = Fields::new(path, image, LoadError::bzimage);
    let (offset, len) = payload;
    let packed = bytes(image, offset, len);
    let length = packed.and_then(|packed| u32_at(packed, len.checked_sub(LENGTH)?));
    let (Some(packed), Some(length)) = (packed, length) else {
        return Err(fields.fail(format!(
            "its fields payload_offset at offset 0x248 and payload_length at offset 0x24c announce bytes {offset:#x}+{len:#x}, the file has {:#x}; the file is damaged",
            image.len()
        )));
    };
    if u64::from(length) > room {
        let path = path.to_owned();
        return Err(LoadError::KernelTooLarge { path, needed: length.into(), end: room });
    }
    let found = FORMATS.iter().find(|(magic, _)| packed.starts_with(magic));
    let (without_length, wanted) = (&packed[..packed.len() - LENGTH as usize], length as usize);
    let unpacked = match found {
        Some((_, Packing::Gzip)) => read_all(flate2::read::GzDecoder::new(packed), wanted),
        Some((_, Packing::Xz)) => {
            read_all(lzma_rust2::XzReader::new_mem_limit(without_length, false, XZ_KIB), wanted)
        }
        Some((_, Packing::Zstd)) => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(without_length);
            decoder.map_err(|error| error.to_string()).and_then(|decoder| read_all(decoder, wanted))
        }
        Some((_, Packing::Lz4)) => unpack_lz4(&without_length[LENGTH as usize..], wanted),
        Some((_, Packing::Unsupported(name))) => {
            return Err(fields.fail(format!(
                "its kernel at offset {offset:#x} is packed with {name}; to enter it through PVH, gzip, xz, zstd or lz4 is needed"
            )));
        }
        None => {
            return Err(fields.fail(format!(
                "its field payload_offset at offset 0x248 names {offset:#x}, where nothing packed begins; the file is damaged"
            )));
        }
    };
    let damaged = |problem: String| {
        fields.fail(format!("its packed kernel at offset {offset:#x} is damaged: {problem}; copy it again"))
    };
    let unpacked = unpacked.map_err(damaged)?;
    if unpacked.len() != wanted {
        return Err(damaged(format!("it does not unpack to the {wanted} bytes it announces")));
    }
    if !is_elf(&unpacked) {
        return Err(damaged("it does not unpack to an ELF file".to_owned()));
    }
    Ok(unpacked)
}

/// Reads to the end, at most one byte more than wanted.
fn read_all(reader: impl Read, wanted: usize) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::with_capacity(wanted.min(FIRST_ROOM));
    let limit = (wanted as u64).saturating_add(1);
    reader.take(limit).read_to_end(&mut unpacked).map_err(|error| error.to_string())?;
    Ok(unpacked)
}

/// The legacy frame: blocks of packed bytes, each after its 32-bit length.
fn unpack_lz4(mut blocks: &[u8], wanted: usize) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::with_capacity(wanted.min(FIRST_ROOM));
    let mut block = vec![0; LZ4_BLOCK.min(wanted)];
    while unpacked.len() < wanted {
        let packed = u32_at(blocks, 0).and_then(|len| bytes(blocks, LENGTH, len.into()));
        let packed = packed.ok_or("a block is cut off")?;
        let len = lz4_flex::block::decompress_into(packed, &mut block).map_err(|error| error.to_string())?;
        if len == 0 {
            return Err("a block is empty".to_owned());
        }
        unpacked.extend_from_slice(&block[..len]);
        blocks = &blocks[LENGTH as usize + packed.len()..];
    }
    Ok(unpacked)
}
