//! The PVH entry: 32-bit protected mode with EBX pointing to `hvm_start_info` (Xen "x86/HVM direct boot ABI").

use crate::elf::ElfImage;
use crate::layout::{BOOT_INFO, COMMAND_LINE_ROOM};
use crate::{Entry, LoadError, Prepared};

/// "xEn3" with the high bit of the E set.
const MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const VERSION: u32 = 1;
const START_INFO_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;

/// Loads an ELF kernel with a PVH note.
pub(crate) fn load(prepared: &Prepared<'_>, image: &ElfImage<'_>, entry: u64) -> Result<Entry, LoadError> {
    let path = &prepared.boot.kernel;
    let end = image.load(prepared)?;
    if !image.loads(entry) {
        let problem = format!("its PVH note names address {entry:#x}, where nothing is loaded");
        return Err(LoadError::elf(path, problem));
    }
    let command_line = prepared.write_command_line(COMMAND_LINE_ROOM)?;
    let initrd = prepared.load_initrd(end, 1 << 32)?;
    let info = start_info(prepared, command_line, initrd);
    prepared.memory.write(BOOT_INFO, &info)?;
    let entry = Entry { protocol: "PVH", rip: entry, long_mode: false, rax: 0, rbx: BOOT_INFO, rsi: 0 };
    entry.write_tables(prepared.memory)?;
    Ok(entry)
}

/// The start info, followed by the module list and the memory map.
fn start_info(prepared: &Prepared<'_>, command_line: u64, initrd: Option<(u64, u64)>) -> Vec<u8> {
    let modules = BOOT_INFO + START_INFO_LEN;
    let map = modules + MODULE_LEN;
    let mut bytes = Vec::new();
    let mut number = |value: u64| bytes.extend_from_slice(&value.to_le_bytes());
    number(u64::from(MAGIC) | u64::from(VERSION) << 32);
    number(u64::from(initrd.is_some()) << 32);
    number(if initrd.is_some() { modules } else { 0 });
    number(command_line);
    number(prepared.rsdp);
    number(map);
    number(prepared.map.len() as u64);
    let (address, size) = initrd.unwrap_or_default();
    [address, size, 0, 0].into_iter().for_each(&mut number);
    for range in &prepared.map {
        [range.start, range.size, range.kind as u64].into_iter().for_each(&mut number);
    }
    bytes
}
