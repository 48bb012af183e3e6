//! PCI Express root in the DSDT: its windows, what it lets the system control, and how INTx is wired.

use super::aml::{Raw, all, device, method, name, raw, resources};
use crate::layout::PciWindows;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, EISAName, Equal, IO, If, Local,
    NotEqual, ONE, Or, Package, Path, Return, Store, Uuid, ZERO,
};

/// The first GSI of PCI's wires.
const INTX_GSI: u32 = 16;
const INTX_WIRES: u32 = 4;
/// Devices on a bus.
const PCI_DEVICES: u32 = 32;
/// The ports of the configuration mechanism, which are not for devices on the bus.
const CONFIG_PORTS: u16 = 0xcf8;
/// Which interrupt controller the system uses: what `\_PIC` was told (ACPI 6.5, 5.8.1).
const CONTROLLER: &str = "PICM";
/// `_OSC` of PCI host bridges (PCI Firmware 3.3, 4.5.1).
const OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// What the system may control: hot plug, PME, AER, the capability structure, LTR (table 4-5). There is no firmware
/// that would do it instead; only SHPC is left out, which nothing here has.
const OSC_CONTROL: u32 = 0b11_1101;
/// Bits of the first doubleword of `_OSC`'s answer (ACPI 6.5, 6.2.11.1.3).
const OSC_UNKNOWN_UUID: u8 = 1 << 2;
const OSC_UNKNOWN_REVISION: u8 = 1 << 3;
const OSC_MASKED: u8 = 1 << 4;

/// `\_PIC` and what it remembers; the PIC is in use unless the system says otherwise.
pub fn interrupt_model() -> [Raw; 2] {
    let remember = raw(&Store::new(&Path::new(CONTROLLER), &Arg(0)));
    [name(CONTROLLER, &ZERO), method("_PIC", 1, &[remember])]
}

/// The host bridge.
pub fn host_bridge(pci: &PciWindows) -> Raw {
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
        operating_system_capabilities(),
        wires("PRTP", |wire| pci.intx_irqs.get(wire as usize).copied().unwrap_or_default().into()),
        wires("PRTA", |wire| INTX_GSI + wire),
        routing(),
    ];
    device("PC00", &parts)
}

/// A routing table (ACPI 6.5, 6.2.13): pin p of device d is wire (d + p) mod 4, p from 0.
fn wires(table: &str, interrupt: impl Fn(u32) -> u32) -> Raw {
    let mut wires = Vec::new();
    for slot in 0..PCI_DEVICES {
        for pin in 0..INTX_WIRES {
            let address = slot << 16 | 0xffff;
            let number = interrupt((slot + pin) % INTX_WIRES);
            wires.push(raw(&Package::new(vec![&address, &(pin as u8), &ZERO, &number])));
        }
    }
    name(table, &Package::new(wires.iter().map(|wire| wire as &dyn Aml).collect()))
}

/// `_PRT`: the table of the controller in use.
fn routing() -> Raw {
    let (controller, pic, apic) = (Path::new(CONTROLLER), Path::new("PRTP"), Path::new("PRTA"));
    let with_pic = raw(&If::new(&Equal::new(&controller, &ZERO), vec![&Return::new(&pic)]));
    method("_PRT", 0, &[with_pic, raw(&Return::new(&apic))])
}

/// `_OSC`: the system gets what it asks for of [`OSC_CONTROL`].
fn operating_system_capabilities() -> Raw {
    let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
    let (answer, granted) = (Arg(3), Local(0));
    let set_status = |bit: u8| raw(&Or::new(&Path::new("CDW1"), &Path::new("CDW1"), &bit));
    let unknown = [set_status(OSC_UNKNOWN_UUID), raw(&Return::new(&answer))];
    let foreign = raw(&NotEqual::new(&Arg(0), &Uuid::new(OSC_UUID)));
    let other_revision = raw(&NotEqual::new(&Arg(1), &ONE));
    let less = raw(&NotEqual::new(&granted, &control));
    let body = [
        raw(&CreateDWordField::new(&status, &answer, &ZERO)),
        raw(&If::new(&foreign, all(&unknown))),
        raw(&CreateDWordField::new(&control, &answer, &8_u8)),
        raw(&If::new(&other_revision, vec![&set_status(OSC_UNKNOWN_REVISION)])),
        raw(&And::new(&granted, &control, &OSC_CONTROL)),
        raw(&If::new(&less, vec![&set_status(OSC_MASKED)])),
        raw(&Store::new(&control, &granted)),
        raw(&Return::new(&answer)),
    ];
    method("_OSC", 4, &body)
}
