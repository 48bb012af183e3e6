//! SMBIOS 3 (DMTF DSP0134): firmware, system, end.

use crate::LoadError;
use crate::fields::put;
use guest_memory::GuestMemory;

/// Bytes of the 64-bit entry point (5.2.2).
const ENTRY_LEN: usize = 24;

/// A structure: type, handle, fields, strings.
fn structure(kind: u8, handle: u16, fields: &[u8], strings: &[&str]) -> Vec<u8> {
    let mut bytes = vec![kind, fields.len() as u8 + 4];
    bytes.extend_from_slice(&handle.to_le_bytes());
    bytes.extend_from_slice(fields);
    for string in strings {
        bytes.extend_from_slice(string.as_bytes());
        bytes.push(0);
    }
    if strings.is_empty() {
        bytes.push(0);
    }
    bytes.push(0);
    bytes
}

fn structures() -> Vec<u8> {
    // Type 0 (7.1): vendor, version, segment, date, size; characteristics: not supported; a virtual machine.
    let mut firmware = vec![0; 0x16];
    put(&mut firmware, 0, &[1, 2, 0, 0xe8, 3, 0]);
    put(&mut firmware, 6, &(1_u64 << 3).to_le_bytes());
    put(&mut firmware, 14, &[0, 1 << 4, 0xff, 0xff, 0xff, 0xff]);
    // Type 1 (7.2): maker, product, version, serial number, UUID, wake-up by the power switch.
    let mut system = vec![0; 0x17];
    put(&mut system, 0, &[1, 2, 3, 0]);
    system[20] = 6;
    [
        structure(0, 0, &firmware, &["Vireo", env!("CARGO_PKG_VERSION"), "01/01/2026"]),
        structure(1, 1, &system, &["Vireo", "Vireo PC", env!("CARGO_PKG_VERSION")]),
        structure(127, 2, &[], &[]),
    ]
    .concat()
}

/// Writes entry point and structures at `start` (on 16 bytes) and returns where they end.
pub fn write(memory: &GuestMemory, start: u64) -> Result<u64, LoadError> {
    let table_address = start + 32;
    let table = structures();
    let mut entry = vec![0; ENTRY_LEN];
    put(&mut entry, 0, b"_SM3_");
    put(&mut entry, 6, &[ENTRY_LEN as u8, 3, 6, 0, 1]);
    put(&mut entry, 12, &(table.len() as u32).to_le_bytes());
    put(&mut entry, 16, &table_address.to_le_bytes());
    entry[5] = entry.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg();
    memory.write(start, &entry)?;
    memory.write(table_address, &table)?;
    Ok(table_address + table.len() as u64)
}
