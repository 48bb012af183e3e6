use super::*;
use crate::SerialPort;
use std::process::Command;

fn board() -> BoardLayout {
    BoardLayout {
        cpus: 3,
        serial_ports: vec![SerialPort { port: 0x3f8, irq: 4 }, SerialPort { port: 0x2f8, irq: 3 }],
        ..BoardLayout::default()
    }
}

fn read(memory: &GuestMemory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(address, &mut bytes).unwrap();
    bytes
}

fn table_at(memory: &GuestMemory, address: u64) -> Vec<u8> {
    let len = u32::from_le_bytes(read(memory, address + 4, 4).try_into().unwrap());
    read(memory, address, len as usize)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// Follows the pointers as a guest does: (signature, table).
fn walk(layout: &BoardLayout) -> Vec<(String, Vec<u8>)> {
    let memory = GuestMemory::new(&[(0, 2 << 20)]).unwrap();
    let (rsdp_address, _) = write(&memory, layout, 0xe_0000).unwrap();
    assert_eq!(rsdp_address % 16, 0);
    let rsdp = read(&memory, rsdp_address, tables::RSDP_LEN);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let pointer = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let xsdt = table_at(&memory, pointer(&rsdp, 24));
    let mut found = vec![("XSDT".to_owned(), xsdt.clone())];
    for entry in xsdt[36..].chunks(8) {
        let table = table_at(&memory, pointer(entry, 0));
        let signature = String::from_utf8(table[..4].to_vec()).unwrap();
        if signature == "FACP" {
            found.push(("DSDT".to_owned(), table_at(&memory, pointer(&table, 140))));
            let facs = u32::from_le_bytes(table[36..40].try_into().unwrap());
            assert_eq!(facs % 64, 0);
            assert_eq!(read(&memory, facs.into(), 4), b"FACS");
        }
        found.push((signature, table));
    }
    found
}

#[test]
fn every_table_is_reachable_and_sums_to_zero() {
    let tables = walk(&board());
    let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["XSDT", "DSDT", "FACP", "APIC", "MCFG", "HPET"]);
    for (name, table) in &tables {
        assert_eq!(sum(table), 0, "{name}");
    }
}

#[test]
fn the_tables_of_255_processors_fit() {
    let tables = walk(&BoardLayout { cpus: 255, ..board() });
    assert_eq!(tables[3].1.len(), 44 + 255 * 8 + 12 + 20 + 6);
}

/// The oracle: what ACPICA's disassembler reads out of the tables.
#[test]
fn acpica_reads_what_was_meant() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: no iasl (package acpica-tools)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for (name, table) in walk(&board()) {
        let file = folder.path().join(format!("{name}.aml"));
        std::fs::write(&file, table).unwrap();
        let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{name}: {messages}");
        for complaint in ["Warning", "Error", "Invalid", "unknown", "Could not"] {
            assert!(!messages.contains(complaint), "{name}: {messages}");
        }
        text += &std::fs::read_to_string(file.with_extension("dsl")).unwrap();
    }
    recompiles(&folder.path().join("DSDT.dsl"));
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "SCI Interrupt : 0009",
        "PM Timer Block Address : 00000608",
        "32-bit PM Timer (V1) : 1",
        "Reset Register Supported (V2) : 1",
        "Control Method Power Button (V1) : 0",
        "Base Address : 00000000B0000000",
        "Device (PC00)",
        "Device (COM2)",
        "EisaId (\"PNP0501\")",
        "Name (_HID, \"QEMU0001\")",
        "0x0505, // Range Minimum",
        "0x03F8, // Range Minimum",
        "Name (\\_S5, Package (0x04)",
        "0x00000000C0000000, // Range Minimum",
        "0x0000005FFFFFFFFF, // Range Maximum",
    ] {
        assert!(words.contains(expected), "no {expected:?} in\n{text}");
    }
    assert_eq!(words.matches("[Processor Local APIC]").count(), 3);
    // Device 1's INTA is GSI 17 (QEMU's and the chipset's swizzle).
    assert!(words.contains("0x0001FFFF, Zero, Zero, 0x11"), "{text}");
}

/// The compiler knows more rules than the disassembler: what reserved names must be, which resources make sense.
fn recompiles(source: &std::path::Path) {
    let output =
        Command::new("iasl").args(["-p", "again"]).arg(source).current_dir(source.parent().unwrap()).output();
    let output = output.unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(" 0 Errors, 0 Warnings"), "{said}");
}
