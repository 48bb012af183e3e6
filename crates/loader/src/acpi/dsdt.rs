//! DSDT: what the fixed tables cannot say, in AML.

use super::tables::table;
use crate::BoardLayout;
use crate::layout::{PciWindows, SerialPort};
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::{Aml, AmlSink};

/// The first GSI of PCI's wires, and how many there are.
const INTX_GSI: u32 = 16;
const INTX_WIRES: u32 = 4;
/// Devices on a bus.
const PCI_DEVICES: u32 = 32;
/// The ports of the configuration mechanism, which are not for devices on the bus.
const CONFIG_PORTS: u16 = 0xcf8;

/// AML already built.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn raw(object: &dyn Aml) -> Raw {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    Raw(bytes)
}

fn name(path: &str, value: &dyn Aml) -> Raw {
    raw(&Name::new(Path::new(path), value))
}

fn resources(items: Vec<&dyn Aml>) -> Raw {
    name("_CRS", &ResourceTemplate::new(items))
}

fn device(path: &str, parts: &[Raw]) -> Raw {
    raw(&Device::new(Path::new(path), parts.iter().map(|part| part as &dyn Aml).collect()))
}

/// Builds the table.
pub fn build(layout: &BoardLayout) -> Vec<u8> {
    let mut devices = vec![host_bridge(&layout.pci), board_resources(layout), clock()];
    for (index, port) in layout.serial_ports.iter().enumerate().take(9) {
        devices.push(serial(index as u8 + 1, port));
    }
    let scope = raw(&Scope::new(Path::new("\\_SB_"), devices.iter().map(|d| d as &dyn Aml).collect()));
    let sleep_type = layout.power.s5;
    let soft_off = name("\\_S5_", &Package::new(vec![&sleep_type, &0_u8, &0_u8, &0_u8]));
    table(b"DSDT", 2, &[scope.0, soft_off.0].concat())
}

/// PCI Express root: its windows, and how INTx is wired.
fn host_bridge(pci: &PciWindows) -> Raw {
    let last_bus = pci.ecam_buses.clamp(1, 256) - 1;
    let buses = AddressSpace::new_bus_number(0_u16, last_bus);
    let config = IO::new(CONFIG_PORTS, CONFIG_PORTS, 1, 8);
    let low_ports = AddressSpace::new_io(0_u16, CONFIG_PORTS - 1, None);
    let high_ports = AddressSpace::new_io(CONFIG_PORTS + 8, 0xffff, None);
    let memory = |start: u64, end: u64| {
        // A 64-bit descriptor also holds the window below 4 GiB.
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, end - 1, None)
    };
    let mut windows: Vec<AddressSpace<u64>> = Vec::new();
    for window in [&pci.mmio32, &pci.mmio64] {
        if !window.is_empty() {
            windows.push(memory(window.start, window.end));
        }
    }
    let mut crs: Vec<&dyn Aml> = vec![&buses, &config, &low_ports, &high_ports];
    crs.extend(windows.iter().map(|window| window as &dyn Aml));
    let parts = [
        name("_HID", &EISAName::new("PNP0A08")),
        name("_CID", &EISAName::new("PNP0A03")),
        name("_UID", &0_u8),
        name("_SEG", &0_u8),
        name("_BBN", &0_u8),
        resources(crs),
        routing(),
    ];
    device("PC00", &parts)
}

/// `_PRT`: pin p of device d at the IOAPIC's pin 16 + (d + p) mod 4, p from 0.
fn routing() -> Raw {
    let mut wires = Vec::new();
    for slot in 0..PCI_DEVICES {
        for pin in 0..4_u32 {
            let address = slot << 16 | 0xffff;
            let gsi = INTX_GSI + (slot + pin) % INTX_WIRES;
            wires.push(raw(&Package::new(vec![&address, &(pin as u8), &0_u8, &gsi])));
        }
    }
    name("_PRT", &Package::new(wires.iter().map(|wire| wire as &dyn Aml).collect()))
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

/// A 16550A.
fn serial(number: u8, port: &SerialPort) -> Raw {
    let ports = IO::new(port.port, port.port, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, port.irq.into());
    let parts =
        [name("_HID", &EISAName::new("PNP0501")), name("_UID", &number), resources(vec![&ports, &interrupt])];
    device(&format!("COM{number}"), &parts)
}
