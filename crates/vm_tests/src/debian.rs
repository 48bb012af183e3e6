//! A stock Debian with systemd from its own disk.

use crate::{Material, Outcome, TestVm};
use anyhow::{Result, ensure};
use std::time::Instant;

/// Boots Debian on two processors with further options of `vireo run`, logs in at its prompt, looks around, and presses
/// the power button.
///
/// # Errors
/// When it does not get so far, or ends otherwise.
pub fn debian_up_and_down(material: &Material, options: &[&str]) -> Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("debian.raw");
    material.debian_disk(&disk)?;
    debian_from(material, &disk.display().to_string(), options)
}

/// The same from a disk as `--disk` takes it, with Debian's content.
///
/// # Errors
/// As [`debian_up_and_down`].
pub fn debian_from(material: &Material, disk: &str, options: &[&str]) -> Result<Outcome> {
    let mut command = material.command(&["run", "--memory", "512M", "--cpus", "2", "--kernel"]);
    command.arg(material.kernel()).arg("--initrd").arg(material.initramfs()).args(["--disk", disk]);
    command.args(["--append", "console=ttyS0 root=/dev/vda rw"]).args(options);
    let started = Instant::now();
    let mut vm = TestVm::start(command)?;
    vm.wait_for("vireo login:", 1500)?;
    eprintln!("login after {:.1} s", started.elapsed().as_secs_f64());
    vm.send("root\n")?;
    vm.wait_for("root@vireo", 300)?;
    vm.send("echo cpus=$(nproc) root=$(findmnt -no SOURCE /)\n")?;
    vm.wait_for("cpus=2 root=/dev/vda", 120)?;
    vm.press_power_button()?;
    let outcome = vm.wait(600)?;
    ensure!(outcome.code == Some(0), "Debian ended with {:?}: {}", outcome.code, outcome.errors);
    Ok(outcome)
}
