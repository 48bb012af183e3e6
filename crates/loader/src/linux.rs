//! The Linux/x86 boot protocol: zero page, placement, 32-bit and 64-bit entries.

use crate::bzimage::{HEADER, SetupHeader};
use crate::elf::ElfImage;
use crate::fields::{bytes, put};
use crate::layout::ZERO_PAGE;
use crate::memory_map::MemoryRange;
use crate::{Entry, EntryProtocol, LoadError, Prepared, payload, pvh};

/// Offsets in the zero page (`struct boot_params`) and in the setup header it contains.
mod offset {
    pub const ACPI_RSDP: usize = 0x070;
    pub const ALT_MEMORY_KIB: usize = 0x1e0;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const SETUP_HEADER: usize = 0x1f1;
    pub const VIDEO_MODE: usize = 0x1fa;
    pub const LOADER_TYPE: usize = 0x210;
    pub const LOAD_FLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const INITRD_ADDRESS: usize = 0x218;
    pub const INITRD_SIZE: usize = 0x21c;
    pub const COMMAND_LINE: usize = 0x228;
    pub const E820_TABLE: usize = 0x2d0;
}

/// Bytes of the zero page.
const ZERO_PAGE_LEN: usize = 4096;
/// Places in the zero page's e820 table.
const E820_MAX: usize = 128;
/// A boot loader without a number of its own.
const UNKNOWN_LOADER: u8 = 0xff;
/// "Normal" video mode.
const NORMAL_VIDEO: u16 = 0xffff;
/// The 64-bit entry's offset.
const ENTRY64: u64 = 0x200;

/// Loads a bzImage.
pub(crate) fn load(prepared: &Prepared<'_>, image: &[u8]) -> Result<Entry, LoadError> {
    let boot = prepared.boot;
    let path = &boot.kernel;
    let header = SetupHeader::parse(path, image)?;
    let long_mode = match boot.protocol {
        EntryProtocol::Auto => header.entry64,
        EntryProtocol::Linux64 if !header.entry64 => {
            return Err(LoadError::NoEntry { path: path.clone(), protocol: "64-bit Linux" });
        }
        EntryProtocol::Linux64 => true,
        EntryProtocol::Linux32 => false,
        EntryProtocol::Pvh => return load_packed(prepared, image, &header),
        EntryProtocol::Multiboot => {
            return Err(LoadError::NoEntry { path: path.clone(), protocol: "multiboot" });
        }
    };
    let end = header.load_address.saturating_add(header.init_size);
    if end > prepared.low_end {
        let (path, end_of_ram) = (path.clone(), prepared.low_end);
        return Err(LoadError::KernelTooLarge { path, needed: end, end: end_of_ram });
    }
    // The last paragraph may be shorter in the file than the header says.
    let kernel = &image[header.setup_len as usize..];
    let kernel = &kernel[..kernel.len().min(header.kernel_len as usize)];
    prepared.memory.write(header.load_address, kernel)?;
    let command_line = prepared.write_command_line(header.command_line_max)?;
    let initrd = prepared.load_initrd(end, header.initrd_max.saturating_add(1))?;
    let zero_page = zero_page(prepared, image, &header, command_line, initrd);
    prepared.memory.write(ZERO_PAGE, &zero_page)?;
    let entry = Entry {
        protocol: if long_mode { "64-bit Linux" } else { "32-bit Linux" },
        rip: header.load_address + if long_mode { ENTRY64 } else { 0 },
        long_mode,
        rax: 0,
        rbx: 0,
        rsi: ZERO_PAGE,
    };
    entry.write_tables(prepared.memory)?;
    Ok(entry)
}

/// Enters the ELF file that is packed in a bzImage through its PVH note. Unpacking is ours then, not the guest's.
fn load_packed(prepared: &Prepared<'_>, image: &[u8], header: &SetupHeader) -> Result<Entry, LoadError> {
    let path = &prepared.boot.kernel;
    let no_entry = || LoadError::NoEntry { path: path.clone(), protocol: "PVH" };
    let unpacked = payload::unpack(path, image, header.payload.ok_or_else(no_entry)?, prepared.low_end)?;
    let elf = ElfImage::parse(path, &unpacked)?;
    pvh::load(prepared, &elf, elf.pvh_entry().ok_or_else(no_entry)?)
}

fn zero_page(
    prepared: &Prepared<'_>,
    image: &[u8],
    header: &SetupHeader,
    command_line: u64,
    initrd: Option<(u64, u64)>,
) -> Vec<u8> {
    let mut page = vec![0; ZERO_PAGE_LEN];
    if let Some(setup) = bytes(image, HEADER, header.header_len) {
        put(&mut page, offset::SETUP_HEADER, setup);
    }
    // All below 4 GiB, as the placement made sure.
    let (initrd_address, initrd_size) = initrd.unwrap_or_default();
    let high_kib = (prepared.low_end.saturating_sub(1 << 20) >> 10).min(u32::MAX.into()) as u32;
    put(&mut page, offset::ACPI_RSDP, &prepared.rsdp.to_le_bytes());
    put(&mut page, offset::ALT_MEMORY_KIB, &high_kib.to_le_bytes());
    put(&mut page, offset::VIDEO_MODE, &NORMAL_VIDEO.to_le_bytes());
    put(&mut page, offset::LOADER_TYPE, &[UNKNOWN_LOADER]);
    // Loaded high; no heap, and no segments to keep.
    put(&mut page, offset::LOAD_FLAGS, &[1]);
    put(&mut page, offset::CODE32_START, &(header.load_address as u32).to_le_bytes());
    put(&mut page, offset::INITRD_ADDRESS, &(initrd_address as u32).to_le_bytes());
    put(&mut page, offset::INITRD_SIZE, &(initrd_size as u32).to_le_bytes());
    put(&mut page, offset::COMMAND_LINE, &(command_line as u32).to_le_bytes());
    let entries = &prepared.map[..prepared.map.len().min(E820_MAX)];
    put(&mut page, offset::E820_ENTRIES, &[entries.len() as u8]);
    let table: Vec<u8> = entries.iter().flat_map(e820_entry).collect();
    put(&mut page, offset::E820_TABLE, &table);
    page
}

/// Address, size, type: 20 bytes.
fn e820_entry(range: &MemoryRange) -> Vec<u8> {
    let numbers = [range.start.to_le_bytes(), range.size.to_le_bytes()].concat();
    [numbers.as_slice(), &(range.kind as u32).to_le_bytes()].concat()
}
