//! DSDT: what the fixed tables cannot say, in AML.

use super::aml::{Raw, all, device, name, raw, resources};
use super::host_bridge::{host_bridge, interrupt_model};
use super::tables::table;
use crate::BoardLayout;
use crate::layout::SerialPort;
use acpi_tables::Aml;
use acpi_tables::aml::{EISAName, IO, Interrupt, Memory32Fixed, Package, Path, Scope};

/// Builds the table.
pub fn build(layout: &BoardLayout) -> Vec<u8> {
    let mut devices = vec![host_bridge(&layout.pci), board_resources(layout), clock()];
    for (index, port) in layout.serial_ports.iter().enumerate().take(9) {
        devices.push(serial(index as u8 + 1, port));
    }
    devices.push(panic_port(layout.panic_port));
    let scope = raw(&Scope::new(Path::new("\\_SB_"), all(&devices)));
    let sleep_type = layout.power.s5;
    let soft_off = name("\\_S5_", &Package::new(vec![&sleep_type, &0_u8, &0_u8, &0_u8]));
    let [controller, told] = interrupt_model();
    table(b"DSDT", 2, &[controller.0, told.0, scope.0, soft_off.0].concat())
}

/// ECAM and power-management ports belong to the board: nobody else may take them.
fn board_resources(layout: &BoardLayout) -> Raw {
    let pci = &layout.pci;
    let ecam_len = u32::from(pci.ecam_buses.clamp(1, 256)) << 20;
    let ecam = Memory32Fixed::new(true, pci.ecam_base as u32, ecam_len);
    let event = IO::new(layout.power.event, layout.power.event, 1, 4);
    let control = IO::new(layout.power.control, layout.power.control, 1, 2);
    let timer = IO::new(layout.power.timer, layout.power.timer, 1, 4);
    let (gpe0, gpe0_len) = layout.power.gpe0;
    let events = IO::new(gpe0, gpe0, 1, gpe0_len);
    let items: Vec<&dyn Aml> = vec![&ecam, &event, &control, &timer, &events];
    device("MRES", &[name("_HID", &EISAName::new("PNP0C02")), name("_UID", &0_u8), resources(items)])
}

/// RTC.
fn clock() -> Raw {
    let ports = IO::new(0x70, 0x70, 1, 2);
    let interrupt = Interrupt::new(true, true, false, false, 8);
    device("RTC0", &[name("_HID", &EISAName::new("PNP0B00")), resources(vec![&ports, &interrupt])])
}

/// The port that takes the guest's last word, by QEMU's `docs/specs/pvpanic`.
fn panic_port(port: u16) -> Raw {
    let ports = IO::new(port, port, 1, 1);
    // Present, decoding, shown to people, working (ACPI 6.5, 6.3.7).
    device("PEVT", &[name("_HID", &"QEMU0001"), name("_STA", &0xf_u8), resources(vec![&ports])])
}

/// A 16550A.
fn serial(number: u8, port: &SerialPort) -> Raw {
    let ports = IO::new(port.port, port.port, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, port.irq.into());
    let parts =
        [name("_HID", &EISAName::new("PNP0501")), name("_UID", &number), resources(vec![&ports, &interrupt])];
    device(&format!("COM{number}"), &parts)
}
