//! ELF executables, 32-bit and 64-bit, little-endian x86 (System V gABI, chapters 4 and 5).

use crate::fields::{bytes, u16_at, u32_at, u64_at};
use crate::layout::TABLES_END;
use crate::{LoadError, Prepared};
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"\x7fELF";
/// `p_type` of a segment to load.
const PT_LOAD: u32 = 1;
/// `p_type` of notes.
const PT_NOTE: u32 = 4;
/// Note type of the PVH entry's physical address, of owner "Xen".
const PHYS32_ENTRY: u32 = 18;
/// `e_machine`: Intel 80386.
const EM_386: u16 = 3;
/// `e_machine`: x86-64.
const EM_X86_64: u16 = 62;

/// Whether a file starts like ELF.
pub fn is_elf(image: &[u8]) -> bool {
    image.starts_with(MAGIC)
}

/// A program header, from either class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    virtual_address: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// A checked ELF executable.
#[derive(Debug)]
pub struct ElfImage<'a> {
    path: PathBuf,
    image: &'a [u8],
    entry: u64,
    segments: Vec<Segment>,
}

impl<'a> ElfImage<'a> {
    /// Reads and checks the headers.
    pub fn parse(path: &Path, image: &'a [u8]) -> Result<Self, LoadError> {
        let fail = |problem: &str| LoadError::elf(path, problem);
        let cut = || fail("its headers are cut off; copy the file again");
        let ident = bytes(image, 0, 16).ok_or_else(cut)?;
        let wide = match ident[4] {
            1 => false,
            2 => true,
            _ => return Err(fail("its class is neither 32-bit nor 64-bit; the file is damaged")),
        };
        if ident[5] != 1 {
            return Err(fail("it is big-endian; an x86 kernel is little-endian"));
        }
        let machine = u16_at(image, 18).ok_or_else(cut)?;
        if machine != EM_386 && machine != EM_X86_64 {
            return Err(fail(&format!("it is for machine type {machine}; x86 (3) or x86-64 (62) is needed")));
        }
        // e_phoff, e_phentsize, e_phnum
        let (table, shape) =
            if wide { (u64_at(image, 32), 54) } else { (u32_at(image, 28).map(u64::from), 42) };
        let table = table.ok_or_else(cut)?;
        let entry = if wide { u64_at(image, 24) } else { u32_at(image, 24).map(u64::from) };
        let entry_size = u64::from(u16_at(image, shape).ok_or_else(cut)?);
        let count = u64::from(u16_at(image, shape + 2).ok_or_else(cut)?);
        if entry_size < if wide { 56 } else { 32 } || count == 0 {
            return Err(fail(
                "it has no program headers; an executable kernel is needed, not an object file",
            ));
        }
        let headers = table
            .checked_add(entry_size * count)
            .and_then(|_| bytes(image, table, entry_size * count))
            .ok_or_else(|| fail("its program headers lie beyond the end of the file; copy the file again"))?;
        let read = if wide { read_wide } else { read_narrow };
        let segments: Option<Vec<_>> = headers.chunks_exact(entry_size as usize).map(read).collect();
        let result = ElfImage {
            path: path.to_owned(),
            image,
            entry: entry.ok_or_else(cut)?,
            segments: segments.ok_or_else(cut)?,
        };
        result.check_segments()?;
        Ok(result)
    }

    /// Every segment lies in the file.
    fn check_segments(&self) -> Result<(), LoadError> {
        for segment in self.segments.iter().filter(|s| s.kind == PT_LOAD || s.kind == PT_NOTE) {
            if bytes(self.image, segment.offset, segment.file_size).is_none() {
                return Err(LoadError::elf(
                    &self.path,
                    format!(
                        "it is truncated: a segment takes bytes {:#x}+{:#x}, the file has {:#x}; copy it again",
                        segment.offset,
                        segment.file_size,
                        self.image.len()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The physical address of `e_entry`: virtual kernels say it virtually.
    pub fn entry(&self) -> u64 {
        let holds =
            |s: &&Segment| s.kind == PT_LOAD && self.entry.wrapping_sub(s.virtual_address) < s.memory_size;
        match self.segments.iter().find(holds) {
            Some(s) => s.address.wrapping_add(self.entry - s.virtual_address),
            None => self.entry,
        }
    }

    /// The PVH entry's physical address, if a note says so.
    pub fn pvh_entry(&self) -> Option<u64> {
        let notes = self.segments.iter().filter(|s| s.kind == PT_NOTE);
        notes.filter_map(|s| find_pvh_note(bytes(self.image, s.offset, s.file_size)?, s.align)).next()
    }

    /// Copies all segments into RAM, above the first MiB, and returns where the last ends.
    pub(crate) fn load(&self, prepared: &Prepared<'_>) -> Result<u64, LoadError> {
        let mut end = TABLES_END;
        for segment in self.segments.iter().filter(|s| s.kind == PT_LOAD && s.memory_size != 0) {
            if segment.address < TABLES_END {
                return Err(LoadError::elf(
                    &self.path,
                    format!("a segment wants address {:#x}; kernels are loaded above 1 MiB", segment.address),
                ));
            }
            if segment.file_size > segment.memory_size {
                return Err(LoadError::elf(&self.path, "a segment is larger in the file than in memory"));
            }
            let segment_end = segment.address.saturating_add(segment.memory_size);
            if segment_end > prepared.low_end {
                let (path, end) = (self.path.clone(), prepared.low_end);
                return Err(LoadError::KernelTooLarge { path, needed: segment_end, end });
            }
            let content = bytes(self.image, segment.offset, segment.file_size).unwrap_or_default();
            prepared.memory.write(segment.address, content)?;
            clear(prepared, segment.address + segment.file_size, segment_end)?;
            end = end.max(segment_end);
        }
        Ok(end)
    }
}

/// Zeroes RAM, which is not zero any more after a reset.
pub(crate) fn clear(prepared: &Prepared<'_>, start: u64, end: u64) -> Result<(), LoadError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut at = start;
    while at < end {
        let len = (end - at).min(ZEROS.len() as u64);
        prepared.memory.write(at, &ZEROS[..len as usize])?;
        at += len;
    }
    Ok(())
}

fn read_wide(header: &[u8]) -> Option<Segment> {
    Some(Segment {
        kind: u32_at(header, 0)?,
        offset: u64_at(header, 8)?,
        virtual_address: u64_at(header, 16)?,
        address: u64_at(header, 24)?,
        file_size: u64_at(header, 32)?,
        memory_size: u64_at(header, 40)?,
        align: u64_at(header, 48)?,
    })
}

fn read_narrow(header: &[u8]) -> Option<Segment> {
    let field = |offset| u32_at(header, offset).map(u64::from);
    Some(Segment {
        kind: u32_at(header, 0)?,
        offset: field(4)?,
        virtual_address: field(8)?,
        address: field(12)?,
        file_size: field(16)?,
        memory_size: field(20)?,
        align: field(28)?,
    })
}

/// Walks notes: name size, descriptor size, type, then both padded to the segment's alignment.
fn find_pvh_note(notes: &[u8], align: u64) -> Option<u64> {
    let align = if align == 8 { 8 } else { 4 };
    let mut at = 0_u64;
    loop {
        let name_len = u64::from(u32_at(notes, at)?);
        let len = u64::from(u32_at(notes, at + 4)?);
        let kind = u32_at(notes, at + 8)?;
        let name = bytes(notes, at + 12, name_len)?;
        let content = (at + 12 + name_len).next_multiple_of(align);
        if kind == PHYS32_ENTRY && name.starts_with(b"Xen") {
            return match len {
                4 => u32_at(notes, content).map(u64::from),
                8 => u64_at(notes, content),
                _ => None,
            };
        }
        at = (content + len).next_multiple_of(align);
    }
}
