//! Disks: what the guest reads is what the file holds, what it writes is what the file gets.

use std::io::{Read, Seek, SeekFrom};
use std::process::Command;

use anyhow::Result;
use vm_tests::Material;

const BOOT: u64 = 240;
/// Size of the test disk in bytes.
const SIZE: usize = 16 << 20;

#[test]
fn a_guest_reads_and_writes_its_disk() -> Result<()> {
    read_and_write("")
}

#[test]
fn a_guest_reads_and_writes_its_disk_by_packed_rings() -> Result<()> {
    read_and_write(",packed=on,queues=2")
}

fn read_and_write(options: &str) -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.raw");
    let content: Vec<u8> = (0..SIZE as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&path, &content)?;
    let disk = format!("{},serial=VIREO42{options}", path.display());
    let mut vm =
        material.boot("vireo.test=block quiet", &["--engine", "software", "--cpus", "2", "--disk", &disk])?;
    vm.wait_for("VIREO-BLOCK-SIZE 32768 ro=0 serial=VIREO42", BOOT)?;
    vm.wait_for("VIREO-BLOCK-READ ", 180)?;
    let digest = vm.wait_for("\n", 60)?;
    std::fs::write(folder.path().join("head"), &content[..1 << 20])?;
    assert_eq!(digest.trim(), sha256(&folder.path().join("head"))?);
    vm.wait_for("VIREO-BLOCK-OK", 180)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    // The guest wrote the numbers from 1 on, a line each, 1 MiB into the disk, and nothing else anywhere.
    let mut file = std::fs::File::open(&path)?;
    file.seek(SeekFrom::Start(1 << 20))?;
    let mut written = vec![0; 4 << 20];
    file.read_exact(&mut written)?;
    let numbers: String = (1..700_000).map(|number| format!("{number}\n")).collect();
    assert!(written == numbers.as_bytes()[..4 << 20], "the file does not hold what the guest wrote");
    let after = std::fs::read(&path)?;
    assert!(after[..1 << 20] == content[..1 << 20] && after[5 << 20..] == content[5 << 20..]);
    Ok(())
}

#[test]
fn a_read_only_disk_stays_as_it_was() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![7; SIZE])?;
    let disk = format!("{},readonly=on", path.display());
    let mut vm = material.boot("vireo.test=block quiet", &["--engine", "software", "--disk", &disk])?;
    vm.wait_for("VIREO-BLOCK-SIZE 32768 ro=1", BOOT)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    assert!(std::fs::read(&path)? == vec![7; SIZE]);
    Ok(())
}

fn sha256(path: &std::path::Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    Ok(String::from_utf8(output.stdout)?.split_whitespace().next().unwrap_or_default().to_owned())
}
