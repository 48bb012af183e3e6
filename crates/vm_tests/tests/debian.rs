//! A stock Debian with systemd from its own disk: to the login prompt, logged in, and down by the power button.

use anyhow::Result;
use vm_tests::Material;

#[test]
fn debian_boots_to_its_login_prompt_on_the_software_cpu() -> Result<()> {
    debian_boots("auto")
}

#[test]
fn debian_boots_to_its_login_prompt_on_the_interpreter() -> Result<()> {
    debian_boots("interpreter")
}

fn debian_boots(tier: &str) -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("debian.raw");
    material.debian_disk(&disk)?;
    let options =
        ["--engine", "software", "--memory", "512M", "--cpus", "2", "--disk", &disk.display().to_string()];
    let mut command = material.command(&["run", "--kernel"]);
    command.arg(material.kernel()).arg("--initrd").arg(material.initramfs());
    command.args(["--append", "console=ttyS0 root=/dev/vda rw", "--software-tier", tier]).args(options);
    let mut vm = vm_tests::TestVm::start(command)?;
    vm.wait_for("vireo login:", 900)?;
    vm.send("root\n")?;
    vm.wait_for("root@vireo", 180)?;
    vm.send("echo cpus=$(nproc) root=$(findmnt -no SOURCE /)\n")?;
    vm.wait_for("cpus=2 root=/dev/vda", 60)?;
    vm.press_power_button()?;
    let outcome = vm.wait(300)?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.errors);
    Ok(())
}
