//! The fixed tables: plain numbers at the offsets of the specification.

use crate::BoardLayout;
use crate::fields::put;
use crate::layout::HpetLayout;

/// Length of a root pointer of revision 2 (5.2.5.3).
pub const RSDP_LEN: usize = 36;
const HEADER_LEN: usize = 36;
const OEM_ID: &[u8; 6] = b"VIREO ";
const OEM_TABLE_ID: &[u8; 8] = b"VIREOPC ";
const CREATOR_ID: &[u8; 4] = b"VIRE";

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg()
}

/// Puts the header (5.2.6) before a body.
pub fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    put(&mut bytes, 0, signature);
    put(&mut bytes, 4, &((HEADER_LEN + body.len()) as u32).to_le_bytes());
    bytes[8] = revision;
    put(&mut bytes, 10, OEM_ID);
    put(&mut bytes, 16, OEM_TABLE_ID);
    put(&mut bytes, 24, &1_u32.to_le_bytes());
    put(&mut bytes, 28, CREATOR_ID);
    put(&mut bytes, 32, &1_u32.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes[9] = checksum(&bytes);
    bytes
}

/// Root pointer (5.2.5.3).
pub fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut bytes = vec![0; RSDP_LEN];
    put(&mut bytes, 0, b"RSD PTR ");
    put(&mut bytes, 9, OEM_ID);
    bytes[15] = 2;
    put(&mut bytes, 20, &(RSDP_LEN as u32).to_le_bytes());
    put(&mut bytes, 24, &xsdt.to_le_bytes());
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// Extended root table (5.2.8).
pub fn xsdt(tables: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = tables.iter().flat_map(|address| address.to_le_bytes()).collect();
    table(b"XSDT", 1, &body)
}

/// Firmware control structure (5.2.10): no header, on 64 bytes.
pub fn facs() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    put(&mut bytes, 0, b"FACS");
    put(&mut bytes, 4, &64_u32.to_le_bytes());
    bytes[32] = 2;
    bytes
}

/// Generic address (5.2.3.2) of ports.
fn port_address(port: u16, bits: u8, access: u8) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&[1, bits, 0, access]);
    bytes[4..6].copy_from_slice(&port.to_le_bytes());
    bytes
}

/// Flags of the FADT (table 5.10).
mod fadt_flag {
    pub const WBINVD: u32 = 1 << 0;
    pub const PROC_C1: u32 = 1 << 2;
    /// No fixed sleep button. The power button's bit is zero: it is a fixed one.
    pub const SLP_BUTTON: u32 = 1 << 5;
    pub const FIX_RTC: u32 = 1 << 6;
    pub const TMR_VAL_EXT: u32 = 1 << 8;
    pub const RESET_REG_SUP: u32 = 1 << 10;
}

/// Legacy devices on the bus, no VGA to probe (table 5.11).
const BOOT_ARCH: u16 = 1 << 0 | 1 << 2;
/// Index of the century in CMOS memory.
const CMOS_CENTURY: u8 = 0x32;
/// Latencies that say: no C2, no C3.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// Fixed description (5.2.9). Offsets are those of the whole table.
pub fn fadt(layout: &BoardLayout, facs: u64, dsdt: u64) -> Vec<u8> {
    const LEN: usize = 276;
    let power = &layout.power;
    let mut body = vec![0; LEN - HEADER_LEN];
    let mut set = |offset: usize, value: &[u8]| put(&mut body, offset - HEADER_LEN, value);
    set(36, &(facs as u32).to_le_bytes());
    set(40, &(dsdt as u32).to_le_bytes());
    set(46, &power.sci.to_le_bytes());
    // No SMI command: ACPI mode is always on.
    set(56, &u32::from(power.event).to_le_bytes());
    set(64, &u32::from(power.control).to_le_bytes());
    set(76, &u32::from(power.timer).to_le_bytes());
    set(80, &u32::from(power.gpe0.0).to_le_bytes());
    // Lengths: PM1 event, PM1 control, PM2 control, timer, GPE0.
    set(88, &[4, 2, 0, 4, power.gpe0.1]);
    set(96, &NO_C2.to_le_bytes());
    set(98, &NO_C3.to_le_bytes());
    set(108, &[CMOS_CENTURY]);
    set(109, &BOOT_ARCH.to_le_bytes());
    let flags = fadt_flag::WBINVD
        | fadt_flag::PROC_C1
        | fadt_flag::SLP_BUTTON
        | fadt_flag::FIX_RTC
        | fadt_flag::TMR_VAL_EXT
        | fadt_flag::RESET_REG_SUP;
    set(112, &flags.to_le_bytes());
    set(116, &port_address(power.reset_port, 8, 1));
    set(128, &[power.reset_value]);
    set(131, &[5]);
    // X_FIRMWARE_CTRL stays zero: the 32-bit field says it, and only one may.
    set(140, &dsdt.to_le_bytes());
    set(148, &port_address(power.event, 32, 2));
    set(172, &port_address(power.control, 16, 2));
    set(208, &port_address(power.timer, 32, 3));
    set(220, &port_address(power.gpe0.0, power.gpe0.1.saturating_mul(8), 1));
    set(268, b"VIREO\0\0\0");
    table(b"FACP", 6, &body)
}

/// Processors and interrupt controllers (5.2.12).
pub fn madt(layout: &BoardLayout) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    /// Active high, level-triggered.
    const HIGH_LEVEL: u16 = 0b1101;
    /// The APIC ID 255 means all processors; from there on, x2APIC entries.
    const FIRST_X2APIC: u32 = 255;
    let mut body = [layout.local_apic.to_le_bytes(), PCAT_COMPAT.to_le_bytes()].concat();
    for id in 0..layout.cpus {
        if id < FIRST_X2APIC {
            body.extend_from_slice(&[0, 8, id as u8, id as u8]);
            body.extend_from_slice(&ENABLED.to_le_bytes());
        } else {
            body.extend_from_slice(&[9, 16, 0, 0]);
            [id, ENABLED, id].iter().for_each(|number| body.extend_from_slice(&number.to_le_bytes()));
        }
    }
    body.extend_from_slice(&[1, 12, 0, 0]);
    [layout.io_apic, 0].iter().for_each(|number| body.extend_from_slice(&number.to_le_bytes()));
    // The PIT's IRQ 0 arrives at pin 2; the SCI is level-triggered.
    for (irq, gsi, flags) in [(0, 2, 0), (layout.power.sci as u8, layout.power.sci.into(), HIGH_LEVEL)] {
        body.extend_from_slice(&[2, 10, 0, irq]);
        body.extend_from_slice(&u32::to_le_bytes(gsi));
        body.extend_from_slice(&flags.to_le_bytes());
    }
    // NMI is LINT1 of all processors.
    body.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    if layout.cpus > FIRST_X2APIC {
        body.extend_from_slice(&[10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    table(b"APIC", 5, &body)
}

/// PCI Express configuration space (PCI Firmware 3.3, 4.1.2).
pub fn mcfg(layout: &BoardLayout) -> Vec<u8> {
    let mut body = vec![0; 24];
    put(&mut body, 8, &layout.pci.ecam_base.to_le_bytes());
    // Segment 0, from bus 0.
    body[19] = layout.pci.ecam_buses.clamp(1, 256).wrapping_sub(1) as u8;
    table(b"MCFG", 1, &body)
}

/// High-precision timer (IA-PC HPET 1.0a, 3.2.4).
pub fn hpet(hpet: &HpetLayout) -> Vec<u8> {
    /// Clock ticks below which periodic interrupts may be lost.
    const MINIMUM_TICK: u16 = 0x80;
    let mut body = hpet.block_id.to_le_bytes().to_vec();
    body.extend_from_slice(&[0, 64, 0, 0]);
    body.extend_from_slice(&hpet.address.to_le_bytes());
    body.push(0);
    body.extend_from_slice(&MINIMUM_TICK.to_le_bytes());
    body.push(0);
    table(b"HPET", 1, &body)
}
