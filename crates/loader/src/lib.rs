//! From files to a guest that can start: what firmware and boot loader do on a real machine.
//!
//! [`load`] recognises the kernel's format, places kernel, initrd, command line, memory map and firmware tables
//! in guest RAM, and returns the [`Entry`]: the registers of the boot processor.
//!
//! ```text
//!   0x00_0500  GDT                       0x02_0000  command line
//!   0x00_6000  PVH or multiboot tables   0x0e_0000  SMBIOS, ACPI (reserved in the memory map)
//!   0x00_7000  zero page                 0x10_0000  kernel, or where it asks to be
//!   0x00_9000  page tables               top of low RAM: initrd
//! ```
//!
//! | format | module | entered by |
//! |---|---|---|
//! | bzImage | [`bzimage`] | 64-bit or 32-bit Linux boot protocol ([`linux`]) |
//! | bzImage, unpacked here | [`payload`] | [`pvh`], if asked for |
//! | ELF with a PVH note | [`elf`] | [`pvh`] |
//! | ELF or flat file with a multiboot header | [`multiboot`] | multiboot |
//!
//! Files are hostile: every offset is checked, nothing is allocated beyond the size of the file, and each
//! refusal says which file, what is wrong with it, and what would be right.

pub mod acpi;
mod bios;
pub mod bzimage;
mod code;
pub mod elf;
mod entry;
mod error;
mod fields;
mod file;
mod layout;
pub mod linux;
mod memory_map;
pub mod multiboot;
pub mod payload;
pub mod pvh;
mod smbios;

pub use code::code;
pub use entry::Entry;
pub use error::LoadError;
pub use layout::{BoardLayout, HpetLayout, PciWindows, PowerLayout, SerialPort};
pub use memory_map::{MemoryRange, RangeKind};

use file::SourceFile;
use guest_memory::GuestMemory;
use std::path::PathBuf;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntryProtocol {
    /// The best one the kernel offers.
    #[default]
    Auto,
    /// Linux, 64-bit entry.
    Linux64,
    /// Linux, 32-bit entry.
    Linux32,
    /// PVH.
    Pvh,
    /// Multiboot version 1.
    Multiboot,
}

/// What to boot. The files are read at each [`load`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootSource {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk, or first multiboot module.
    pub initrd: Option<PathBuf>,
    /// Command line.
    pub append: String,
    /// How to enter.
    pub protocol: EntryProtocol,
}

/// Loads everything into RAM and says where the boot processor starts.
pub fn load(memory: &GuestMemory, boot: &BootSource, layout: &BoardLayout) -> Result<Entry, LoadError> {
    let prepared = Prepared::new(memory, boot, layout)?;
    let kernel = SourceFile::open(&boot.kernel, "kernel")?.read_all(memory.size())?;
    let image = kernel.as_slice();
    if bzimage::is_bzimage(image) {
        return linux::load(&prepared, image);
    }
    let elf = elf::is_elf(image);
    let wants = |protocol| matches!(boot.protocol, EntryProtocol::Auto) || boot.protocol == protocol;
    if elf && wants(EntryProtocol::Pvh) {
        let image = elf::ElfImage::parse(&boot.kernel, image)?;
        if let Some(entry) = image.pvh_entry() {
            return pvh::load(&prepared, &image, entry);
        }
        if boot.protocol == EntryProtocol::Pvh {
            return Err(LoadError::NoEntry { path: boot.kernel.clone(), protocol: "PVH" });
        }
    }
    if wants(EntryProtocol::Multiboot)
        && let Some(header) = multiboot::find_header(image)
    {
        return multiboot::load(&prepared, image, &header);
    }
    Err(if elf {
        // Says first whether the file is sound at all.
        elf::ElfImage::parse(&boot.kernel, image)?;
        LoadError::ElfWithoutEntry { path: boot.kernel.clone() }
    } else {
        LoadError::not_a_kernel(&boot.kernel, image)
    })
}

/// What all protocols need: RAM's map and the tables already in RAM.
pub(crate) struct Prepared<'a> {
    pub memory: &'a GuestMemory,
    pub boot: &'a BootSource,
    pub map: Vec<MemoryRange>,
    /// End of RAM below 4 GiB.
    pub low_end: u64,
    pub rsdp: u64,
    /// End of the firmware tables below 1 MiB.
    tables_end: u64,
}

impl<'a> Prepared<'a> {
    fn new(memory: &'a GuestMemory, boot: &'a BootSource, layout: &BoardLayout) -> Result<Self, LoadError> {
        let low_end = memory.regions().first().filter(|region| region.start() == 0).map_or(0, |r| r.size());
        if low_end < layout::MIN_RAM {
            return Err(LoadError::MemoryTooSmall { needed: layout::MIN_RAM, size: low_end });
        }
        let map = memory_map::build(memory, layout);
        bios::write(memory, layout)?;
        let after = smbios::write(memory, layout::TABLES_START)?;
        let (rsdp, tables_end) = acpi::write(memory, layout, after)?;
        Ok(Prepared { memory, boot, map, low_end, rsdp, tables_end })
    }

    /// Whether the loader's own structures leave room for a piece of a kernel from `start` to `end`.
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        start >= layout::STRUCTURES_END && end <= layout::LOW_RAM_USED || start >= self.tables_end
    }

    /// Copies the command line (with its terminating zero) into RAM.
    pub fn write_command_line(&self, limit: usize) -> Result<u64, LoadError> {
        self.write_text(&self.boot.append, limit)
    }

    /// Puts a text with its terminating zero where the command line belongs.
    fn write_text(&self, text: &str, limit: usize) -> Result<u64, LoadError> {
        let text = text.as_bytes();
        if text.contains(&0) {
            return Err(LoadError::CommandLineZero);
        }
        let limit = limit.min(layout::COMMAND_LINE_ROOM - 1);
        if text.len() > limit {
            return Err(LoadError::CommandLineTooLong { len: text.len(), limit });
        }
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.memory.write(layout::COMMAND_LINE, &bytes)?;
        Ok(layout::COMMAND_LINE)
    }

    /// Puts the initrd as high as possible below `limit`, above `floor`: its address and size.
    pub fn load_initrd(&self, floor: u64, limit: u64) -> Result<Option<(u64, u64)>, LoadError> {
        let Some(path) = &self.boot.initrd else { return Ok(None) };
        let file = SourceFile::open(path, "initrd")?;
        let size = file.size();
        let limit = limit.min(self.low_end);
        let room = limit.saturating_sub(floor);
        let too_large =
            || LoadError::InitrdTooLarge { path: path.clone(), size, room, memory: self.memory.size() };
        let address = limit.checked_sub(size).ok_or_else(too_large)? & !(x86::PAGE_SIZE - 1);
        if address < floor {
            return Err(too_large());
        }
        file.copy_to(self.memory, address)?;
        Ok(Some((address, size)))
    }
}
