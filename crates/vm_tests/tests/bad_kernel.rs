//! Kernels, initrds and command lines that cannot be used: each ends `vireo run` at once, in one line that says
//! which file, where and what is wrong; exit status 2; the files stay as they were.

use std::path::{Path, PathBuf};

use anyhow::Result;
use vm_tests::{Material, TestVm};

/// The exit status for unusable options and files, as `vireo run --help` says.
const UNUSABLE: i32 = 2;

/// A folder of files that have to survive.
struct Files {
    folder: tempfile::TempDir,
    written: Vec<(PathBuf, Vec<u8>)>,
}

impl Files {
    fn new() -> Result<Self> {
        Ok(Files { folder: tempfile::tempdir()?, written: Vec::new() })
    }

    fn write(&mut self, name: &str, content: Vec<u8>) -> Result<String> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, &content)?;
        self.written.push((path.clone(), content));
        Ok(text(&path))
    }

    fn are_unchanged(&self) -> Result<()> {
        for (path, content) in &self.written {
            assert!(std::fs::read(path)? == *content, "{} was changed", path.display());
        }
        Ok(())
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Runs `vireo run` with these arguments; it must end in one line that has all these words.
fn fails(material: &Material, arguments: &[&str], words: &[&str]) -> Result<()> {
    let mut command = material.command(&["run", "--engine", "software"]);
    command.args(arguments);
    let outcome = TestVm::start(command)?.wait(60)?;
    let said = outcome.errors.trim();
    assert_eq!(outcome.code, Some(UNUSABLE), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    assert_eq!(outcome.console, "", "{arguments:?}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
    }
    Ok(())
}

#[test]
fn files_that_are_no_kernel() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut files = Files::new()?;
    let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
    qcow2.resize(4096, 0);
    for (name, content, what) in [
        ("words.txt", b"This is not a kernel, it is a sentence.\n".repeat(99), "a text file"),
        ("zeros", vec![0; 5000], "full of zeros"),
        ("disk.qcow2", qcow2, "a qcow2 disk image"),
        (
            "noise",
            (0..5000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
            "unknown format",
        ),
        ("initrd", std::fs::read(material.initramfs())?, "gzip data"),
    ] {
        let kernel = files.write(name, content)?;
        fails(&material, &["--kernel", &kernel], &[&kernel, "is not a kernel", what, "bzImage"])?;
    }
    let folder = text(files.folder.path());
    fails(&material, &["--kernel", &folder], &[&folder, "a directory"])?;
    let missing = text(&files.folder.path().join("missing"));
    fails(&material, &["--kernel", &missing], &[&missing, "No such file"])?;
    let empty = files.write("empty", Vec::new())?;
    fails(&material, &["--kernel", &empty], &[&empty, "is empty"])?;
    fails(&material, &[], &["--kernel"])?;
    files.are_unchanged()
}

#[test]
fn damaged_bzimages() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let whole = std::fs::read(material.kernel())?;
    let mut files = Files::new()?;
    for len in [0x210, 0x1000, 40_000, whole.len() / 2, whole.len() - 4096] {
        let kernel = files.write("cut", whole[..len].to_vec())?;
        fails(&material, &["--kernel", &kernel], &[&kernel, "copy it again"])?;
    }
    // A bit of the header, of the setup code, of the packed kernel, of the checksum itself.
    for (offset, field) in
        [(0x1fe, "boot_flag"), (0x211, "loadflags"), (0x207, "version"), (0x1f7, "syssize")]
    {
        let mut flipped = whole.clone();
        flipped[offset] ^= if field == "version" { 2 } else { 1 };
        let kernel = files.write("flipped", flipped)?;
        fails(&material, &["--kernel", &kernel], &[&kernel, field, "at offset 0x"])?;
    }
    // What follows that end is the signature for secure boot, which the checksum does not cover.
    let paragraphs = u32::from_le_bytes(whole[0x1f4..0x1f8].try_into()?) as usize;
    let end = (usize::from(whole[0x1f1]) + 1) * 512 + paragraphs * 16;
    for offset in [0x800, 0x5000, end / 3, end - 2] {
        let mut flipped = whole.clone();
        flipped[offset] ^= 0x10;
        let kernel = files.write("flipped", flipped)?;
        fails(&material, &["--kernel", &kernel], &[&kernel, "CRC-32", "damaged"])?;
    }
    assert!(std::fs::read(material.kernel())? == whole);
    Ok(())
}

/// A 32-bit x86 ELF program with one segment and neither a PVH note nor a multiboot header.
fn plain_elf32(segment_size: u32) -> Vec<u8> {
    let mut image = vec![0x90_u8; 8192];
    let header: [u32; 13] =
        [0x464c_457f, 0x0001_0101, 0, 0, 2 | 3 << 16, 1, 0x10_0000, 52, 0, 0, 52 | 32 << 16, 1, 0];
    let segment: [u32; 8] = [1, 4096, 0x10_0000, 0x10_0000, 4096, segment_size, 7, 4096];
    for (index, word) in header.iter().chain(&segment).enumerate() {
        image[index * 4..index * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    image
}

#[test]
fn elf_files_that_cannot_be_entered() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut files = Files::new()?;
    let plain = files.write("plain.elf", plain_elf32(8192))?;
    fails(&material, &["--kernel", &plain], &[&plain, "neither a PVH note nor a multiboot header"])?;
    fails(&material, &["--kernel", &plain, "--entry", "pvh"], &[&plain, "no PVH entry"])?;
    let mut arm = plain_elf32(8192);
    arm[18] = 40;
    let arm = files.write("arm.elf", arm)?;
    fails(&material, &["--kernel", &arm], &[&arm, "e_machine at offset 0x12"])?;
    let mut cut = plain_elf32(8192);
    cut.truncate(60);
    let cut = files.write("cut.elf", cut)?;
    fails(&material, &["--kernel", &cut], &[&cut, "e_phoff"])?;
    // The multiboot header makes it a kernel, the segment is larger than memory.
    let mut large = plain_elf32(0x4000_0000);
    for (index, word) in [0x1bad_b002_u32, 0, 0x1bad_b002_u32.wrapping_neg()].iter().enumerate() {
        large[4096 + index * 4..4096 + index * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    let large = files.write("large.elf", large)?;
    fails(&material, &["--kernel", &large, "--memory", "64M"], &[&large, "memory ends at 0x4000000"])?;
    files.are_unchanged()
}

#[test]
fn entries_that_a_kernel_does_not_have() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let kernel = text(&material.kernel());
    fails(&material, &["--kernel", &kernel, "--entry", "multiboot"], &[&kernel, "no multiboot entry"])?;
    fails(
        &material,
        &["--kernel", &kernel, "--entry", "coreboot"],
        &["coreboot", "auto, linux64, linux32, pvh"],
    )
}

#[test]
fn what_does_not_fit_into_memory() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let files = Files::new()?;
    let kernel = text(&material.kernel());
    for memory in ["2M", "8M", "32M"] {
        fails(&material, &["--kernel", &kernel, "--memory", memory], &[&kernel, "memory", "guest"])?;
    }
    let large = files.folder.path().join("large-initrd");
    std::fs::File::create(&large)?.set_len(200 << 20)?;
    let large = text(&large);
    let arguments = ["--kernel", &kernel, "--initrd", &large, "--memory", "128M"];
    fails(&material, &arguments, &[&large, "209715200 bytes", "more memory"])?;
    let missing = text(&files.folder.path().join("missing"));
    fails(&material, &["--kernel", &kernel, "--initrd", &missing], &[&missing, "No such file"])?;
    let folder = text(files.folder.path());
    fails(&material, &["--kernel", &kernel, "--initrd", &folder], &[&folder, "a directory"])
}

#[test]
fn command_lines_that_are_too_long() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let kernel = text(&material.kernel());
    // x86 Linux takes 2047 bytes and says so in its field cmdline_size.
    fails(&material, &["--kernel", &kernel, "--append", &"x".repeat(2048)], &["2048 bytes", "at most 2047"])
}
