//! The board in the plain numbers that the loader's tables carry.

use crate::memory_map;
use chipset::acpi_pm;
use loader::{BoardLayout, HpetLayout, PciWindows, PowerLayout, SerialPort};

/// Describes the board that [`crate::board`] builds.
pub(crate) fn of_board(cpus: u32) -> BoardLayout {
    let (serial, gsi) = chipset::serial::COM_PORTS[0];
    let defaults = BoardLayout::default();
    BoardLayout {
        cpus,
        io_apic: chipset::ioapic::ADDRESS as u32,
        hpet: defaults.hpet.map(|hpet| HpetLayout { address: chipset::hpet::ADDRESS, ..hpet }),
        pci: PciWindows {
            ecam_base: memory_map::ECAM_BASE,
            ecam_buses: memory_map::ECAM_BUSES,
            mmio32: memory_map::MMIO32,
            mmio64: memory_map::MMIO64,
            intx_irqs: chipset::routing::INTX_PIC_INPUTS,
        },
        power: PowerLayout {
            event: acpi_pm::PM1A_EVENT,
            control: acpi_pm::PM1A_CONTROL,
            timer: acpi_pm::PM_TIMER,
            sci: acpi_pm::SCI_GSI as u16,
            s5: acpi_pm::SLP_TYP_S5,
            reset_port: acpi_pm::RESET_PORT,
            reset_value: acpi_pm::RESET_VALUE,
            ..defaults.power
        },
        serial_ports: vec![SerialPort { port: serial as u16, irq: gsi as u8 }],
        panic_port: chipset::pvpanic::PORT,
        ..defaults
    }
}
