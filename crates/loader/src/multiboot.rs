//! Multiboot, version 1 (specification 0.6.96).

use crate::elf::{ElfImage, clear, is_elf};
use crate::fields::{bytes, put, u32_at};
use crate::layout::{BOOT_INFO, COMMAND_LINE_ROOM, LOW_RAM_USED, TABLES_END};
use crate::{Entry, LoadError, Prepared};

/// Where a header may start: in the first 8192 bytes, on four.
const SEARCH_LEN: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at the entry.
const LOADER_MAGIC: u32 = 0x2bad_b002;

/// Header flags (3.1.2). Those below bit 16 must be understood or refused.
mod header_flag {
    pub const VIDEO: u32 = 1 << 2;
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
        return Err(LoadError::multiboot(path, format!("its header needs unknown features {unknown:#x}")));
    }
    if header.flags & header_flag::VIDEO != 0 && header.flags & header_flag::ADDRESSES == 0 && !is_elf(image)
    {
        return Err(LoadError::multiboot(path, "it needs a video mode and is not ELF"));
    }
    let (rip, end) = if header.flags & header_flag::ADDRESSES != 0 {
        load_flat(prepared, image, header)?
    } else if is_elf(image) {
        let elf = ElfImage::parse(path, image)?;
        (elf.entry(), elf.load(prepared)?)
    } else {
        return Err(LoadError::multiboot(path, "it is neither ELF nor does its header give load addresses"));
    };
    let command_line = prepared.write_command_line(COMMAND_LINE_ROOM)?;
    let module = prepared.load_initrd(end.next_multiple_of(x86::PAGE_SIZE), 1 << 32)?;
    prepared.memory.write(BOOT_INFO, &information(prepared, command_line, module))?;
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
    let field = |index: u64| {
        let value = u32_at(image, header.offset + 12 + index * 4);
        value.map(u64::from).ok_or_else(|| fail("its header is cut off; copy the file again".to_owned()))
    };
    let (own, load, load_end, bss_end, entry) = (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    let start = own.checked_sub(load).and_then(|before| header.offset.checked_sub(before));
    let Some(start) = start else {
        return Err(fail(format!("its header at {own:#x} lies outside of what it loads at {load:#x}")));
    };
    let available = image.len() as u64 - start;
    let len = if load_end == 0 { available } else { load_end.saturating_sub(load) };
    let Some(content) = bytes(image, start, len) else {
        return Err(fail(format!("it is truncated: {len} bytes are to be loaded, {available} are there")));
    };
    if load < TABLES_END {
        return Err(fail(format!("it wants address {load:#x}; images are loaded above 1 MiB")));
    }
    let end = bss_end.max(load + len);
    if end > prepared.low_end {
        return Err(LoadError::KernelTooLarge { path: path.clone(), needed: end, end: prepared.low_end });
    }
    prepared.memory.write(load, content)?;
    clear(prepared, load + len, end)?;
    Ok((entry, end))
}

/// The information structure, followed by the module, the memory map and the loader's name.
fn information(prepared: &Prepared<'_>, command_line: u64, module: Option<(u64, u64)>) -> Vec<u8> {
    const LEN: usize = 120;
    const MODULE_LEN: usize = 16;
    const MAP_ENTRY_LEN: usize = 24;
    let map_start = LEN + MODULE_LEN;
    let map_len = prepared.map.len() * MAP_ENTRY_LEN;
    let name = b"Vireo\0";
    let mut info = vec![0; map_start + map_len + name.len()];
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
        [address, address + size, command_line].iter().enumerate().for_each(|(i, &v)| set(LEN + i * 4, v));
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
    put(&mut info, map_start + map_len, name);
    info
}
