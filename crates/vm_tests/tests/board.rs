//! The board as a stock kernel finds it: its tables, its interrupts, its serial port.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use vm_tests::{Material, Shell};

/// Seconds a boot may take on a busy machine; well beyond what it needs.
const BOOT: u64 = 300;

/// The kernel is the oracle: its ACPI interpreter and its drivers complain about what is wrong.
#[test]
fn the_kernel_finds_no_fault_in_the_tables() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut shell = Shell::boot(&material, "", &["--cpus", "2"])?;
    let log = shell.run("dmesg")?;
    assert!(log.contains("ACPI: Interpreter enabled"), "{log}");
    let complaints = [
        "acpi error",
        "acpi warning",
        "acpi bios",
        "acpi exception",
        "bios bug",
        "firmware bug",
        "mp-bios",
        "----[ cut here",
    ];
    for line in log.lines() {
        let lower = line.to_lowercase();
        assert!(!complaints.iter().any(|complaint| lower.contains(complaint)), "{line}");
    }
    assert!(log.contains("ttyS0 at I/O 0x3f8 (irq = 4, base_baud = 115200) is a 16550A"), "{log}");

    let iomem = shell.run("cat /proc/iomem")?;
    for range in [
        "00100000-0fffffff : System RAM",
        "b0000000-b00fffff : PCI MMCONFIG 0000 [bus 00-00]",
        "fec00000-fec003ff : IOAPIC 0",
        "fed00000-fed003ff : HPET 0",
        "fee00000-fee00fff : Local APIC",
    ] {
        assert!(iomem.contains(range), "no {range:?}: {iomem}");
    }
    let ports = shell.run("cat /proc/ioports")?;
    for range in [
        "0600-0603 : ACPI PM1a_EVT_BLK",
        "0604-0605 : ACPI PM1a_CNT_BLK",
        "0608-060b : ACPI PM_TMR",
        "03f8-03ff : serial",
        "0070-0071 : rtc0",
    ] {
        assert!(ports.contains(range), "no {range:?}: {ports}");
    }
    let interrupts = shell.run("cat /proc/interrupts")?;
    for (line, pin) in [("ttyS0", "4-edge"), ("rtc0", "8-edge"), ("acpi", "9-fasteoi")] {
        let found = interrupts.lines().find(|found| found.ends_with(line));
        assert!(
            found.is_some_and(|found| found.contains("IO-APIC") && found.contains(pin)),
            "{line}: {interrupts}"
        );
    }
    let tables = shell.run("ls /sys/firmware/acpi/tables")?;
    for name in ["APIC", "DSDT", "FACP", "FACS", "HPET", "MCFG"] {
        assert!(tables.split_whitespace().any(|found| found == name), "{name}: {tables}");
    }
    shell.power_off()
}

/// Without message-signalled interrupts a disk interrupts through its pin: at the IOAPIC, at the PIC as the tables route
/// it, and at the PIC as the configuration space says.
#[test]
fn a_disk_interrupts_through_its_pin() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk.raw");
    let content: String = (0..16_384).map(|line| format!("{line:063x}\n")).collect();
    std::fs::write(&disk, &content)?;
    let disk = disk.display().to_string();
    // Slot 2, pin A: wire C, which is GSI 18 and the PIC's input 11.
    let cases = [
        ("pci=nomsi", "IO-APIC", "18-fasteoi"),
        ("pci=nomsi noapic", "XT-PIC", " 11:"),
        ("pci=nomsi acpi=off", "XT-PIC", " 11:"),
    ];
    for (words, controller, input) in cases {
        let mut shell = Shell::boot(&material, words, &["--disk", &format!("{disk},readonly=on")])?;
        shell.run("modprobe virtio_pci; modprobe virtio_blk; sleep 1")?;
        let read = shell.run("dd if=/dev/vda bs=64k 2>/dev/null | sha256sum")?;
        assert!(read.contains(&sha256(&content)?), "{words}: {read}");
        let interrupts = shell.run("cat /proc/interrupts")?;
        let line = interrupts.lines().find(|line| line.contains("virtio1"));
        let counted = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
        assert!(
            line.is_some_and(|line| line.contains(controller) && line.contains(input))
                && counted.is_some_and(|count| count > 0),
            "{words}: {interrupts}"
        );
    }
    Ok(())
}

/// The stock kernel finds the panic port by the tables and says its last word there; without its driver, the command
/// line's `panic=` decides.
#[test]
fn a_panic_has_an_exit_status_of_its_own() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let cases =
        [("vireo.test=panic", &[][..], 14), ("vireo.test=panic,silent panic=-1", &["--no-reboot"], 12)];
    for (words, options, status) in cases {
        let outcome = material.boot(words, &[&["--engine", "software"], options].concat())?.wait(BOOT)?;
        assert_eq!(outcome.code, Some(status), "{words}: {}\n{}", outcome.errors, outcome.console);
        assert!(outcome.console.contains("Kernel panic - not syncing: sysrq triggered crash"), "{words}");
    }
    Ok(())
}

/// One MiB in each direction, through the stock 8250 driver: no byte is lost, changed or doubled.
#[test]
fn a_mebibyte_passes_the_serial_port_in_both_directions() -> Result<()> {
    const LINES: usize = 16_384;
    const PORTION: usize = 32_768;
    let Some(material) = Material::find() else { return Ok(()) };
    let mut shell = Shell::boot(&material, "", &[])?;
    // 64 bytes a line, all different.
    let text: String = (0..LINES).map(|line| format!("{line:063x}\n")).collect();
    let wanted = sha256(&text)?;
    // In portions that the guest's own buffers hold: without flow control, a sender must not be faster than a reader.
    let read = format!("head -c {PORTION} >> /tmp/in; i=$((i+1)); echo GOT-$i");
    let portions = text.len() / PORTION;
    shell.vm.send(&format!(
        "stty raw -echo; i=0; echo READY-$((40 + 2)); while [ $i -lt {portions} ]; do {read}; done; stty sane -echo\n"
    ))?;
    shell.vm.wait_for("READY-42\n", 60)?;
    for (index, portion) in text.as_bytes().chunks(PORTION).enumerate() {
        shell.vm.send(std::str::from_utf8(portion)?)?;
        shell.vm.wait_for(&format!("GOT-{}\n", index + 1), 60)?;
    }
    let came = shell.run("sha256sum < /tmp/in")?;
    assert!(came.contains(&wanted), "to the guest: wanted {wanted}, got {came}");
    // Raw again, so that no carriage returns are put in.
    shell.vm.send("stty raw -echo; echo BEGIN-$((40 + 3)); cat /tmp/in; echo END-$((40 + 4))\n")?;
    shell.vm.wait_for("BEGIN-43\n", 60)?;
    let back = shell.vm.wait_for("END-44", 300)?;
    assert_eq!(back.len(), text.len());
    assert_eq!(sha256(&back)?, wanted, "from the guest");
    shell.vm.send("stty sane -echo\n")?;
    shell.power_off()
}

/// The digest by the host's own program.
fn sha256(text: &str) -> Result<String> {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("No standard input")?;
    std::io::Write::write_all(&mut input, text.as_bytes())?;
    drop(input);
    let output = String::from_utf8(child.wait_with_output()?.stdout)?;
    Ok(output.split_whitespace().next().unwrap_or_default().to_owned())
}
