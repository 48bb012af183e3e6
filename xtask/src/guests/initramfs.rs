//! The initramfs: busybox, the modules a virtual machine needs, our `init.sh` and the guest program. That of the 32-bit
//! guest has a busybox and scripts only.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::packages::Kernel;
use super::{Program, made_from};
use crate::command;

/// The first program of the guest.
const INIT: &str = include_str!("init.sh");
/// That of the 32-bit guest.
const INIT_686: &str = include_str!("init-686.sh");
/// What the 32-bit guest computes.
const WORK_686: &str = include_str!("../../../crates/vm_tests/guest/work-686.sh");
/// Raised when the way the archive is made changes.
const RECIPE: u32 = 3;
/// Modules and folders of modules taken from the kernel package.
const MODULES: &[&str] = &[
    "drivers/virtio",
    "drivers/block/virtio_blk.ko",
    "drivers/char/hw_random/virtio-rng.ko",
    "drivers/char/virtio_console.ko",
    "drivers/acpi/button.ko",
    "drivers/misc/pvpanic",
    "drivers/input/evdev.ko",
    "arch/x86/crypto",
    "crypto",
    "lib/crypto",
    "lib/raid6",
];

/// The folder with the chosen modules and their index, made from the kernel package.
pub fn module_tree(folder: &Path, kernel: &Kernel, busybox: &Path) -> Result<PathBuf> {
    let tree = folder.join("modules");
    let inputs = format!("{RECIPE} {} {MODULES:?}", kernel.release);
    made_from(&tree, &inputs, || {
        let _ = std::fs::remove_dir_all(&tree);
        let target = tree.join("lib/modules").join(&kernel.release);
        for module in MODULES {
            let from = kernel.modules.join("kernel").join(module);
            let to = target.join("kernel").join(module);
            let above = to.parent().context("A module has no folder")?;
            std::fs::create_dir_all(above)?;
            // Debian compresses modules in some releases; the name then has one more suffix.
            let compressed = from.with_extension("ko.xz");
            let from = if from.exists() { from } else { compressed };
            command::run(Command::new("cp").arg("-r").arg(from).arg(above))?;
        }
        for index in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            std::fs::copy(kernel.modules.join(index), target.join(index))?;
        }
        command::run(Command::new(busybox).args(["depmod", "-b"]).arg(&tree).arg(&kernel.release))
    })?;
    Ok(tree)
}

/// The initramfs, made when its inputs changed.
pub fn build(
    folder: &Path,
    kernel: &Kernel,
    busybox: &Path,
    programs: &[(&str, Program)],
) -> Result<PathBuf> {
    let tree = module_tree(folder, kernel, busybox)?;
    let initramfs = folder.join("initramfs.cpio.gz");
    let texts: String = programs.iter().map(|(_, program)| program.text.as_str()).collect();
    let inputs = format!("{RECIPE} {} {MODULES:?}\n{INIT}\n{texts}", kernel.release);
    made_from(&initramfs, &inputs, || {
        let mut archive = Archive::default();
        for name in ["bin", "dev", "etc", "newroot", "proc", "root", "sbin", "sys", "tmp"] {
            archive.folder(name);
        }
        archive.character_device("dev/console", 5, 1);
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("bin/busybox", 0o755, &std::fs::read(busybox)?);
        archive.symlink("bin/sh", "busybox");
        archive.symlink("sbin/modprobe", "../bin/busybox");
        for (name, program) in programs {
            archive.file(&format!("bin/{name}"), 0o755, &std::fs::read(&program.executable)?);
        }
        add_tree(&mut archive, &tree, "")?;
        compress(&archive.finish(), &initramfs)
    })?;
    Ok(initramfs)
}

/// The initramfs of the 32-bit guest: a busybox and a script, made when its inputs changed.
pub fn build_32_bit(folder: &Path, busybox: &Path) -> Result<()> {
    let initramfs = folder.join("initramfs-686.cpio.gz");
    made_from(&initramfs, &format!("{RECIPE}\n{INIT_686}\n{WORK_686}"), || {
        let mut archive = Archive::default();
        for name in ["bin", "dev", "proc"] {
            archive.folder(name);
        }
        archive.character_device("dev/console", 5, 1);
        archive.file("init", 0o755, INIT_686.as_bytes());
        archive.file("work.sh", 0o755, WORK_686.as_bytes());
        archive.file("bin/busybox", 0o755, &std::fs::read(busybox)?);
        archive.symlink("bin/sh", "busybox");
        compress(&archive.finish(), &initramfs)
    })
}

/// Adds everything below a folder, in the order of names.
fn add_tree(archive: &mut Archive, folder: &Path, name: &str) -> Result<()> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    entries.sort();
    for path in entries {
        let own = path.file_name().unwrap_or_default().to_string_lossy();
        let inside = if name.is_empty() { own.into_owned() } else { format!("{name}/{own}") };
        if path.is_dir() {
            archive.folder(&inside);
            add_tree(archive, &path, &inside)?;
        } else {
            archive.file(&inside, 0o644, &std::fs::read(&path)?);
        }
    }
    Ok(())
}

/// Writes `bytes` through gzip; the name and time are left out, so equal bytes give equal files.
fn compress(bytes: &[u8], target: &Path) -> Result<()> {
    let mut gzip = Command::new("gzip")
        .args(["--best", "--no-name"])
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(target)?)
        .spawn()
        .context("Cannot start gzip")?;
    gzip.stdin.take().context("gzip has no standard input")?.write_all(bytes)?;
    let status = gzip.wait()?;
    if !status.success() {
        bail!("gzip ended with {status}");
    }
    Ok(())
}
