//! ELF executables, 32-bit and 64-bit, little-endian x86 (System V gABI, chapters 4 and 5).

use crate::fields::{Fields, bytes, u32_at, u64_at};
use crate::layout::TABLES_END;
use crate::{LoadError, Prepared};
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"\x7fELF";
/// `p_type` of a segment to load.
const PT_LOAD: u32 = 1;
/// `p_type` of notes.
const PT_NOTE: u32 = 4;
/// `p_flags`: may be executed.
const PF_X: u32 = 1;
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
    flags: u32,
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
    /// 64-bit class.
    wide: bool,
    entry: u64,
    segments: Vec<Segment>,
}

impl<'a> ElfImage<'a> {
    /// Reads and checks the headers.
    pub fn parse(path: &Path, image: &'a [u8]) -> Result<Self, LoadError> {
        let fields = Fields::new(path, image, LoadError::elf);
        let wide = match fields.u8(4, "EI_CLASS")? {
            1 => false,
            2 => true,
            class => {
                return Err(fields.fail(format!(
                    "its field EI_CLASS at offset 4 is {class}, neither 32-bit (1) nor 64-bit (2); the file is damaged"
                )));
            }
        };
        if fields.u8(5, "EI_DATA")? != 1 {
            return Err(fields
                .fail("its field EI_DATA at offset 5 does not say little-endian (1), as an x86 kernel is"));
        }
        let machine = fields.u16(18, "e_machine")?;
        if machine != EM_386 && machine != EM_X86_64 {
            return Err(fields.fail(format!(
                "its field e_machine at offset 0x12 is {machine}; x86 (3) or x86-64 (62) is needed"
            )));
        }
        let address = |wide_at: u64, narrow_at: u64, name| {
            if wide { fields.u64(wide_at, name) } else { fields.u32(narrow_at, name).map(u64::from) }
        };
        let entry = address(24, 24, "e_entry")?;
        let table = address(32, 28, "e_phoff")?;
        let shape = if wide { 54 } else { 42 };
        let entry_size = u64::from(fields.u16(shape, "e_phentsize")?);
        let count = u64::from(fields.u16(shape + 2, "e_phnum")?);
        if entry_size < if wide { 56 } else { 32 } || count == 0 {
            return Err(fields.fail(format!(
                "its fields e_phentsize and e_phnum at offset {shape:#x} announce {count} program headers of {entry_size} bytes; an executable kernel is needed, not an object file"
            )));
        }
        let headers = table
            .checked_add(entry_size * count)
            .and_then(|_| bytes(image, table, entry_size * count))
            .ok_or_else(|| {
                fields.fail(format!(
                    "its field e_phoff names {count} program headers at offset {table:#x}, the file has {:#x} bytes; copy it again",
                    image.len()
                ))
            })?;
        let read = if wide { read_wide } else { read_narrow };
        // Each chunk has the length of a header, as checked above.
        let segments = headers.chunks_exact(entry_size as usize).filter_map(read).collect();
        let result = ElfImage { path: path.to_owned(), image, wide, entry, segments };
        result.check_segments()?;
        Ok(result)
    }

    /// Every segment lies in the file.
    fn check_segments(&self) -> Result<(), LoadError> {
        let wanted = |s: &(usize, &Segment)| s.1.kind == PT_LOAD || s.1.kind == PT_NOTE;
        for (index, segment) in self.segments.iter().enumerate().filter(wanted) {
            if bytes(self.image, segment.offset, segment.file_size).is_none() {
                return Err(LoadError::elf(
                    &self.path,
                    format!(
                        "it is truncated: the fields p_offset and p_filesz of program header {index} announce bytes {:#x}+{:#x}, the file has {:#x}; copy it again",
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

    /// Whether it is of the 64-bit class.
    pub fn is_wide(&self) -> bool {
        self.wide
    }

    /// Virtual addresses and bytes of the segments that are loaded to be executed.
    pub fn code(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        let executable = |s: &&Segment| s.kind == PT_LOAD && s.flags & PF_X != 0;
        let content = |s: &Segment| Some((s.virtual_address, bytes(self.image, s.offset, s.file_size)?));
        self.segments.iter().filter(executable).filter_map(content)
    }

    /// Whether a segment that is loaded holds a physical address.
    pub(crate) fn loads(&self, address: u64) -> bool {
        self.segments.iter().any(|s| s.kind == PT_LOAD && address.wrapping_sub(s.address) < s.memory_size)
    }

    /// The PVH entry's physical address, if a note says so.
    pub fn pvh_entry(&self) -> Option<u64> {
        let notes = self.segments.iter().filter(|s| s.kind == PT_NOTE);
        notes.filter_map(|s| find_pvh_note(bytes(self.image, s.offset, s.file_size)?, s.align)).next()
    }

    /// Copies all segments into RAM and returns where the last ends, or the first MiB.
    pub(crate) fn load(&self, prepared: &Prepared<'_>) -> Result<u64, LoadError> {
        let mut end = TABLES_END;
        let loaded = |s: &(usize, &Segment)| s.1.kind == PT_LOAD && s.1.memory_size != 0;
        for (index, segment) in self.segments.iter().enumerate().filter(loaded) {
            let segment_end = segment.address.saturating_add(segment.memory_size);
            if !prepared.is_free(segment.address, segment_end) {
                return Err(LoadError::elf(
                    &self.path,
                    format!(
                        "the field p_paddr of program header {index} wants address {:#x}, where the firmware's tables are; 1 MiB and above are free",
                        segment.address
                    ),
                ));
            }
            if segment.file_size > segment.memory_size {
                return Err(LoadError::elf(
                    &self.path,
                    format!(
                        "the field p_filesz of program header {index} ({:#x}) is larger than p_memsz ({:#x}); the file is damaged",
                        segment.file_size, segment.memory_size
                    ),
                ));
            }
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
        flags: u32_at(header, 4)?,
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
        flags: u32_at(header, 24)?,
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
        // In 64 bits, 32-bit lengths cannot wrap.
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
