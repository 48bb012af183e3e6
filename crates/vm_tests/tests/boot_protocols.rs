//! Every way into a kernel, from the files to what the guest says.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use vm_tests::{Material, Signal, TestVm};

/// Seconds a boot may take on a busy machine; well beyond what it needs.
const BOOT: u64 = 300;

/// What only the PVH entry's code does: it adds the legacy hole, which our map leaves out, to the memory map.
const PVH_MARK: &str = "BIOS-e820: [mem 0x000000000009fc00-0x00000000000fffff] reserved";

/// Boots Debian's kernel to its `/init` and off again by this entry, and expects the kernel's own words about it.
fn debian(entry: &str, kernel: Option<&Path>, said_by_kernel: &str) -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let kernel = kernel.map_or_else(|| material.kernel(), Path::to_owned);
    let mut command =
        material.command(&["run", "--engine", "software", "--memory", "256M", "--entry", entry]);
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(material.initramfs());
    command.args(["--append", "console=ttyS0 vireo.test=poweroff"]);
    let mut vm = TestVm::start(command)?;
    vm.wait_for("VIREO-INIT-OK", BOOT)?;
    let outcome = vm.wait(60)?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.errors);
    assert!(outcome.console.contains(said_by_kernel), "no {said_by_kernel:?}: {}", outcome.console);
    Ok(())
}

#[test]
fn bzimage_by_the_32_bit_entry() -> Result<()> {
    debian("linux32", None, "Command line: console=ttyS0")
}

#[test]
fn bzimage_unpacked_and_entered_through_pvh() -> Result<()> {
    debian("pvh", None, PVH_MARK)
}

#[test]
fn vmlinux_through_pvh() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    match unpack(&material.kernel(), folder.path())? {
        Some(vmlinux) => debian("auto", Some(&vmlinux), PVH_MARK),
        None => Ok(()),
    }
}

/// Takes the ELF kernel out of a bzImage with the packer's own program; `None`, said, when that is missing.
fn unpack(kernel: &Path, folder: &Path) -> Result<Option<PathBuf>> {
    let image = std::fs::read(kernel)?;
    let number = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("The setup header is cut off")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let setup_len = (usize::from(image[0x1f1]) + 1) * 512;
    let start = setup_len + number(0x248)?;
    let packed = &image[start..start + number(0x24c)? - 4];
    let program = match packed {
        [0x02, 0x21, ..] => "lz4",
        [0xfd, b'7', ..] => "xz",
        [0x28, 0xb5, ..] => "zstd",
        _ => bail!("The kernel is packed in an unexpected way"),
    };
    let (from, to) = (folder.join("packed"), folder.join("vmlinux"));
    std::fs::write(&from, packed)?;
    let run = Command::new(program).arg("-dc").arg(&from).stdout(std::fs::File::create(&to)?).status();
    match run {
        Ok(status) if status.success() => Ok(Some(to)),
        Ok(_) => bail!("{program} cannot unpack the kernel"),
        Err(_) => {
            eprintln!("skipped: no {program}, which unpacks Debian's kernel");
            Ok(None)
        }
    }
}

/// Assembles the multiboot kernel of `guests/multiboot.s`; `None`, said, without an assembler.
fn multiboot_kernel(folder: &Path) -> Result<Option<PathBuf>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/multiboot.s");
    let (object, kernel) = (folder.join("multiboot.o"), folder.join("multiboot.elf"));
    let assembled = Command::new("as").arg("--32").arg("-o").arg(&object).arg(source).status();
    let Ok(assembled) = assembled else {
        eprintln!("skipped: no assembler `as` (package binutils)");
        return Ok(None);
    };
    let linked = Command::new("ld")
        .args(["-m", "elf_i386", "-n", "-Ttext=0x100000", "-z", "noexecstack", "-o"])
        .arg(&kernel)
        .arg(&object)
        .status()?;
    assert!(assembled.success() && linked.success(), "the multiboot kernel cannot be built");
    Ok(Some(kernel))
}

/// The value of a line `NAME VALUE` that the multiboot kernel printed.
fn fact<'a>(console: &'a str, name: &str) -> &'a str {
    let line = console.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {console}")).trim_end()
}

fn number(console: &str, name: &str) -> u64 {
    u64::from_str_radix(fact(console, name), 16).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What the multiboot specification 0.6.96 promises (3.2 and 3.3), seen by a kernel.
#[test]
fn a_multiboot_kernel_sees_what_the_specification_says() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let Some(kernel) = multiboot_kernel(folder.path())? else { return Ok(()) };
    let module = folder.path().join("module.bin");
    let content: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&module, &content)?;
    let mut command = material.command(&["run", "--engine", "software", "--memory", "64M", "--debug-exit"]);
    command.arg("--kernel").arg(&kernel).arg("--initrd").arg(&module).args(["--append", "one  two=3"]);
    let outcome = TestVm::start(command)?.wait(60)?;
    assert_eq!(outcome.code, Some((21 << 1) | 1), "{} {}", outcome.console, outcome.errors);
    let said = outcome.console.as_str();
    assert!(said.contains("MULTIBOOT-OK"), "{said}");
    assert_eq!(number(said, "magic"), 0x2bad_b002);
    assert_eq!(number(said, "cr0") & 0x8000_0001, 1, "protection on, paging off");
    assert_eq!(number(said, "eflags") & 0x2_0200, 0, "no interrupts, no virtual-8086 mode");
    assert_eq!(number(said, "a20"), 0x1111_1111, "line A20 is on");
    assert_eq!(number(said, "bss"), 0);
    assert_eq!(number(said, "flags") & 0x4d, 0x4d, "memory, command line, modules, memory map");
    assert_eq!(number(said, "mem_lower"), 0x9_fc00 >> 10);
    assert_eq!(number(said, "mem_upper"), (64 << 10) - 1024);
    assert_eq!(fact(said, "cmdline"), format!("{} one  two=3", kernel.display()));
    assert_eq!(number(said, "mods_count"), 1);
    assert_eq!(number(said, "mod_start") % 4096, 0, "modules on page boundaries were asked for");
    assert_eq!(number(said, "mod_len"), content.len() as u64);
    assert_eq!(number(said, "mod_sum"), content.iter().map(|&byte| u64::from(byte)).sum::<u64>());
    assert_eq!(fact(said, "mod_string"), module.display().to_string());
    let usable: u64 = said
        .lines()
        .filter_map(|line| line.strip_prefix("range "))
        .map(|line| line.split_whitespace().map(|word| u64::from_str_radix(word, 16)).collect::<Vec<_>>())
        .filter(|range| range[2] == Ok(1))
        .map(|range| range[1].clone().unwrap_or_default())
        .sum();
    assert_eq!(usable, 0x9_fc00 + (63 << 20), "{said}");
    Ok(())
}

/// A multiboot kernel that is not ours, with Debian's kernel as its module: Xen finds processor, tables, timers and
/// interrupts, and starts the kernel as its first guest.
#[test]
fn xen_starts_and_starts_its_first_guest() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    if !material.xen().is_file() {
        eprintln!("skipped: no xen beside the other guest material; `cargo xtask guests` fetches it");
        return Ok(());
    }
    let mut command = material.command(&["run", "--engine", "software", "--memory", "512M"]);
    command.arg("--kernel").arg(material.xen()).arg("--initrd").arg(material.kernel());
    // There is no BIOS to be called in real mode.
    command.args(["--append", "com1=115200,8n1 console=com1 loglvl=all no-real-mode dom0_mem=256M"]);
    let mut vm = TestVm::start(command)?;
    for said in [
        "(XEN) Bootloader: Vireo",
        "Platform timer is 100.000MHz HPET",
        "ENABLING IO-APIC IRQs",
        "Brought up 1 CPUs",
        "*** Building a PV Dom0 ***",
        // The first words of the kernel itself.
        "mapping kernel into physical memory",
    ] {
        vm.wait_for(said, BOOT)?;
    }
    vm.signal(Signal::INT)?;
    assert_eq!(vm.wait(60)?.code, Some(10));
    Ok(())
}
