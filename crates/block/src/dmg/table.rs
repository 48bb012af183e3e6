//! The tables: a property list with one `mish` block for each partition, which says where its chunks are.

use super::chunk::{Chunk, Kind};
use super::trailer::Trailer;
use crate::backend::{BlockBackend, SECTOR_SIZE};
use crate::error::BlockError;
use crate::image::ImageResult;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quick_xml::Reader;
use quick_xml::events::Event;
use std::path::Path;

/// Bytes of a table before its chunks, and of a chunk's line.
const TABLE: usize = 204;
const LINE: usize = 40;
/// Chunks of a disk.
const CHUNKS_MAX: usize = 1 << 18;

/// Reads the tables of all partitions: chunks in the order of their sectors, which do not overlap.
pub(super) fn read(file: &dyn BlockBackend, path: &Path, trailer: &Trailer) -> ImageResult<Vec<Chunk>> {
    let (start, len) = trailer.xml;
    let mut xml = vec![0; len as usize];
    file.read_bytes(start, &mut xml).map_err(|source| BlockError::io(path, "reading the tables", source))?;
    let wrong = |problem: String| BlockError::metadata(path, start, "property list", problem);
    let mut chunks = Vec::new();
    let mut tables = 0;
    each_table(&xml, &mut |text| {
        let packed: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let table =
            STANDARD.decode(&packed).map_err(|error| format!("has data that are no base 64: {error}"))?;
        tables += 1;
        parse(&table, trailer, file.size(), &mut chunks)
    })
    .map_err(wrong)?;
    if tables == 0 {
        return Err(wrong("has no table (blkx)".to_owned()));
    }
    chunks.sort_by_key(|chunk| chunk.sector);
    for (one, next) in chunks.iter().zip(chunks.iter().skip(1)) {
        if one.sector + one.sectors > next.sector {
            return Err(wrong(format!("has two chunks for sector {}", next.sector)));
        }
    }
    Ok(chunks)
}

/// Gives the text of every `Data` under `blkx`.
fn each_table(xml: &[u8], found: &mut dyn FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let mut reader = Reader::from_reader(xml);
    let (mut key, mut element) = (Vec::new(), Vec::new());
    // How many arrays deep the list is in which the tables are.
    let (mut arrays, mut inside) = (0_u32, None);
    loop {
        match reader.read_event().map_err(|error| format!("is no XML: {error}"))? {
            Event::Start(start) => {
                element = start.name().as_ref().to_vec();
                if element == b"array" {
                    arrays += 1;
                    if key == b"blkx" {
                        inside.get_or_insert(arrays);
                    }
                }
                if element == b"key" {
                    key.clear();
                }
            }
            Event::End(end) => {
                if end.name().as_ref() == b"array" {
                    if inside == Some(arrays) {
                        inside = None;
                    }
                    arrays = arrays.saturating_sub(1);
                }
                element.clear();
            }
            Event::Text(text) if element == b"key" => key = text.trim_ascii().to_vec(),
            Event::Text(text) if element == b"data" && inside.is_some() && key == b"Data" => found(&text)?,
            Event::Eof => return Ok(()),
            _ => {}
        }
    }
}

/// Reads a table; errors go on after "property list".
fn parse(table: &[u8], trailer: &Trailer, file_size: u64, chunks: &mut Vec<Chunk>) -> Result<(), String> {
    let u32_at = |bytes: &[u8], at: usize| {
        bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u32::from_be_bytes(*b))
    };
    let u64_at = |bytes: &[u8], at: usize| {
        bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u64::from_be_bytes(*b))
    };
    let short = || "has a table that is shorter than it says".to_owned();
    if !table.starts_with(b"mish") {
        return Err("has a table without the mark \"mish\"".to_owned());
    }
    let first = u64_at(table, 8).ok_or_else(short)?;
    let data = u64_at(table, 24).and_then(|offset| offset.checked_add(trailer.data.0));
    let data = data.ok_or("has a table whose DataOffset is too large")?;
    let count = u32_at(table, 200).ok_or_else(short)? as usize;
    let lines = count.checked_mul(LINE).and_then(|len| table.get(TABLE..TABLE.checked_add(len)?));
    for line in lines.ok_or_else(short)?.as_chunks::<LINE>().0 {
        let kind = u32_at(line, 0).unwrap_or_default();
        let Some(kind) =
            Kind::of(kind).map_err(|()| format!("has a chunk of the unknown type {kind:#010x}"))?
        else {
            continue;
        };
        let number = |at| u64_at(line, at).unwrap_or_default();
        let (sectors, len) = (number(16), number(32));
        if sectors == 0 {
            continue;
        }
        let last = i64::MAX as u64 / SECTOR_SIZE;
        let sector = first
            .checked_add(number(8))
            .filter(|sector| sector.checked_add(sectors).is_some_and(|end| end <= last));
        let sector = sector.ok_or_else(|| format!("has a chunk of {sectors} sectors beyond 8 EiB"))?;
        let at =
            data.checked_add(number(24)).filter(|at| at.checked_add(len).is_some_and(|end| end <= file_size));
        let at = match kind {
            Kind::Zero => 0,
            _ => {
                at.ok_or_else(|| format!("says that the chunk of sector {sector} is behind the file's end"))?
            }
        };
        let chunk = Chunk { sector, sectors, at, len, kind };
        chunk.check()?;
        if chunks.len() == CHUNKS_MAX {
            return Err(format!("has more than {CHUNKS_MAX} chunks"));
        }
        chunks.push(chunk);
    }
    Ok(())
}
