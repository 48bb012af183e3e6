//! The board as tables describe it, and the places the loader uses.

use std::ops::Range;

/// Least RAM a guest can be loaded into.
pub const MIN_RAM: u64 = 2 << 20;
/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// PVH or multiboot information.
pub const BOOT_INFO: u64 = 0x6000;
/// Linux zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Level-4 page table, followed by the level-3 table and four level-2 tables.
pub const PAGE_TABLES: u64 = 0x9000;
/// Command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes for the command line and its zero.
pub const COMMAND_LINE_ROOM: usize = 0x1_0000;
/// End of what the loader writes into low RAM.
pub const STRUCTURES_END: u64 = COMMAND_LINE + COMMAND_LINE_ROOM as u64;
/// RAM below this is free for the loader's structures.
pub const LOW_RAM_USED: u64 = 0x9_fc00;
/// SMBIOS and ACPI tables, in the area where a guest without a pointer searches for them.
pub const TABLES_START: u64 = 0xe_0000;
/// End of the tables' area.
pub const TABLES_END: u64 = 0x10_0000;

/// ACPI fixed power-management hardware, in ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerLayout {
    /// PM1a event block, four ports.
    pub event: u16,
    /// PM1a control block, two ports.
    pub control: u16,
    /// PM timer, four ports, 32 bits.
    pub timer: u16,
    /// GPE0 block: first port and number of ports.
    pub gpe0: (u16, u8),
    /// Interrupt (GSI), level-triggered.
    pub sci: u16,
    /// Sleep type of S5.
    pub s5: u8,
    /// Reset port.
    pub reset_port: u16,
    /// Value that resets.
    pub reset_value: u8,
}

/// Where a guest finds PCI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciWindows {
    /// ECAM, one MiB a bus.
    pub ecam_base: u64,
    /// Buses of ECAM, at most 256.
    pub ecam_buses: u16,
    /// Memory for BARs below 4 GiB.
    pub mmio32: Range<u64>,
    /// Memory for BARs above 4 GiB; may be empty.
    pub mmio64: Range<u64>,
    /// PIC inputs of the four INTx wires, for a system that does not use the IOAPIC.
    pub intx_irqs: [u8; 4],
}

/// A 16550 serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// First of eight ports.
    pub port: u16,
    /// Interrupt.
    pub irq: u8,
}

/// The HPET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HpetLayout {
    /// Address of its registers.
    pub address: u64,
    /// Low half of its capabilities register.
    pub block_id: u32,
}

/// The board in plain numbers. [`BoardLayout::default`] is a PC with the usual addresses and one processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoardLayout {
    /// Processors; their APIC IDs count from 0.
    pub cpus: u32,
    /// Local APIC registers.
    pub local_apic: u32,
    /// IOAPIC registers; its pins are GSI 0–23.
    pub io_apic: u32,
    /// HPET, if there is one.
    pub hpet: Option<HpetLayout>,
    /// PCI; device d's pin p (1–4) is wired to GSI 16 + (d + p - 1) mod 4.
    pub pci: PciWindows,
    /// Power management.
    pub power: PowerLayout,
    /// Serial ports.
    pub serial_ports: Vec<SerialPort>,
    /// The pvpanic port.
    pub panic_port: u16,
}

impl Default for BoardLayout {
    fn default() -> Self {
        BoardLayout {
            cpus: 1,
            local_apic: 0xfee0_0000,
            io_apic: 0xfec0_0000,
            hpet: Some(HpetLayout { address: 0xfed0_0000, block_id: 0x8086_a201 }),
            pci: PciWindows {
                ecam_base: 0xb000_0000,
                ecam_buses: 1,
                mmio32: 0xc000_0000..0xfc00_0000,
                mmio64: 0x40_0000_0000..0x60_0000_0000,
                intx_irqs: [5, 10, 11, 14],
            },
            power: PowerLayout {
                event: 0x600,
                control: 0x604,
                timer: 0x608,
                gpe0: (0x610, 16),
                sci: 9,
                s5: 5,
                reset_port: 0xcf9,
                reset_value: 6,
            },
            serial_ports: vec![SerialPort { port: 0x3f8, irq: 4 }],
            panic_port: 0x505,
        }
    }
}
