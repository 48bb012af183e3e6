//! Multiboot, version 1 (specification 0.6.96).

use crate::elf::{ElfImage, clear, is_elf};
use crate::fields::{Fields, bytes, put, u32_at};
use crate::layout::{BOOT_INFO, COMMAND_LINE_ROOM, LOW_RAM_USED, TABLES_END};
use crate::{Entry, LoadError, Prepared};

/// Where a header may start: in the first 8192 bytes, on four.
const SEARCH_LEN: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at the entry.
const LOADER_MAGIC: u32 = 0x2bad_b002;

/// Header flags (3.1.2). Those below bit 16 must be understood or refused: modules on page boundaries, memory
/// information, and a video mode, for which the information structure says that there is none.
mod header_flag {
    pub const KNOWN_NEEDS: u32 = 0b111;
    pub const ADDRESSES: u32 = 1 << 16;
}

/// Information flags (3.3).
mod info_flag {
    pub const MEMORY: u32 = 1 << 0;
    pub const COMMAND_LINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const LOADER_NAME: u32 = 1 << 9;
}

/// A multiboot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    offset: u64,
    flags: u32,
}

/// Finds the header, by magic and checksum.
pub fn find_header(image: &[u8]) -> Option<Header> {
    let area = &image[..image.len().min(SEARCH_LEN)];
    (0..area.len() as u64).step_by(4).find_map(|offset| {
        let (magic, flags) = (u32_at(area, offset)?, u32_at(area, offset + 4)?);
        let sum = magic.wrapping_add(flags).wrapping_add(u32_at(area, offset + 8)?);
        (magic == HEADER_MAGIC && sum == 0).then_some(Header { offset, flags })
    })
}

/// Loads a multiboot image.
pub(crate) fn load(prepared: &Prepared<'_>, image: &[u8], header: &Header) -> Result<Entry, LoadError> {
    let path = &prepared.boot.kernel;
    let unknown = header.flags & 0xffff & !header_flag::KNOWN_NEEDS;
    if unknown != 0 {
        return Err(LoadError::multiboot(
            path,
            format!(
                "its field flags at offset {:#x} needs features {unknown:#x}, which no version 1 defines",
                header.offset + 4
            ),
        ));
    }
    let (rip, end) = if header.flags & header_flag::ADDRESSES != 0 {
        load_flat(prepared, image, header)?
    } else if is_elf(image) {
        let elf = ElfImage::parse(path, image)?;
        let (entry, end) = (elf.entry(), elf.load(prepared)?);
        if !elf.loads(entry) {
            return Err(LoadError::multiboot(
                path,
                format!("its field e_entry names address {entry:#x}, where nothing is loaded"),
            ));
        }
        (entry, end)
    } else {
        let problem = format!(
            "it is not ELF, and its field flags at offset {:#x} announces no load addresses (bit 16)",
            header.offset + 4
        );
        return Err(LoadError::multiboot(path, problem));
    };
    // Kernels skip the first word, which GRUB and QEMU make the image's name.
    let line = [path.to_string_lossy().into_owned(), prepared.boot.append.clone()].join(" ");
    let command_line = prepared.write_text(line.trim_end(), COMMAND_LINE_ROOM)?;
    let module = prepared.load_initrd(end.next_multiple_of(x86::PAGE_SIZE), 1 << 32)?;
    let info = information(prepared, command_line, module);
    prepared.memory.write(BOOT_INFO, &info)?;
    let entry = Entry {
        protocol: "multiboot",
        rip,
        long_mode: false,
        rax: LOADER_MAGIC.into(),
        rbx: BOOT_INFO,
        rsi: 0,
    };
    entry.write_tables(prepared.memory)?;
    Ok(entry)
}

/// Loads by the addresses in the header (3.1.3): the entry and the end.
fn load_flat(prepared: &Prepared<'_>, image: &[u8], header: &Header) -> Result<(u64, u64), LoadError> {
    let path = &prepared.boot.kernel;
    let fail = |problem: String| LoadError::multiboot(path, problem);
    let fields = Fields::new(path, image, LoadError::multiboot);
    let field = |index: u64, name| fields.u32(header.offset + 12 + index * 4, name).map(u64::from);
    let (own, load) = (field(0, "header_addr")?, field(1, "load_addr")?);
    let (load_end, bss_end) = (field(2, "load_end_addr")?, field(3, "bss_end_addr")?);
    let entry = field(4, "entry_addr")?;
    let start = own.checked_sub(load).and_then(|before| header.offset.checked_sub(before));
    let Some(start) = start else {
        return Err(fail(format!(
            "its field header_addr ({own:#x}) lies outside of what is loaded at load_addr ({load:#x})"
        )));
    };
    let available = (image.len() as u64).saturating_sub(start);
    let len = if load_end == 0 { Some(available) } else { load_end.checked_sub(load) };
    let Some(len) = len else {
        return Err(fail(format!(
            "its field load_end_addr ({load_end:#x}) lies below load_addr ({load:#x}); the file is damaged"
        )));
    };
    let Some(content) = bytes(image, start, len) else {
        return Err(fail(format!(
            "it is truncated: load_addr and load_end_addr ask for {len} bytes from offset {start:#x}, {available} are there; copy it again"
        )));
    };
    let end = bss_end.max(load + len);
    if !prepared.is_free(load, end) {
        return Err(fail(format!(
            "its field load_addr wants address {load:#x}, where the firmware's tables are; 1 MiB and above are free"
        )));
    }
    if !(load..end).contains(&entry) {
        return Err(fail(format!("its field entry_addr names address {entry:#x}, where nothing is loaded")));
    }
    if end > prepared.low_end {
        return Err(LoadError::KernelTooLarge { path: path.clone(), needed: end, end: prepared.low_end });
    }
    prepared.memory.write(load, content)?;
    clear(prepared, load + len, end)?;
    Ok((entry, end.max(TABLES_END)))
}

/// The information structure, followed by the module, the memory map, the loader's and the module's name.
fn information(prepared: &Prepared<'_>, command_line: u64, module: Option<(u64, u64)>) -> Vec<u8> {
    const LEN: usize = 120;
    const MODULE_LEN: usize = 16;
    const MAP_ENTRY_LEN: usize = 24;
    // The information has to end before the zero page.
    const MODULE_NAME_MAX: usize = 1024;
    let map_start = LEN + MODULE_LEN;
    let map_len = prepared.map.len() * MAP_ENTRY_LEN;
    let mut texts = b"Vireo\0".to_vec();
    let module_name = map_start + map_len + texts.len();
    if let Some(path) = &prepared.boot.initrd {
        texts.extend_from_slice(path.to_string_lossy().as_bytes());
        texts.truncate(MODULE_NAME_MAX);
        texts.push(0);
    }
    let mut info = vec![0; map_start + map_len + texts.len()];
    let mut flags =
        info_flag::MEMORY | info_flag::COMMAND_LINE | info_flag::MEMORY_MAP | info_flag::LOADER_NAME;
    // All of these lie below 4 GiB.
    let mut set = |offset: usize, value: u64| put(&mut info, offset, &(value as u32).to_le_bytes());
    set(4, LOW_RAM_USED >> 10);
    set(8, prepared.low_end.saturating_sub(1 << 20) >> 10);
    set(16, command_line);
    if let Some((address, size)) = module {
        flags |= info_flag::MODULES;
        set(20, 1);
        set(24, BOOT_INFO + LEN as u64);
        [address, address + size, BOOT_INFO + module_name as u64]
            .iter()
            .enumerate()
            .for_each(|(i, &v)| set(LEN + i * 4, v));
    }
    set(44, map_len as u64);
    set(48, BOOT_INFO + map_start as u64);
    set(64, BOOT_INFO + (map_start + map_len) as u64);
    set(0, flags.into());
    for (index, range) in prepared.map.iter().enumerate() {
        let at = map_start + index * MAP_ENTRY_LEN;
        // The size does not count itself.
        put(&mut info, at, &(MAP_ENTRY_LEN as u32 - 4).to_le_bytes());
        put(&mut info, at + 4, &range.start.to_le_bytes());
        put(&mut info, at + 12, &range.size.to_le_bytes());
        put(&mut info, at + 20, &(range.kind as u32).to_le_bytes());
    }
    put(&mut info, map_start + map_len, &texts);
    info
}
