//! A stock Debian with systemd from its own disk: to the login prompt, logged in, and down by the power button.

use anyhow::{Result, ensure};
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
    vm_tests::debian_up_and_down(&material, &["--engine", "software", "--software-tier", tier])?;
    Ok(())
}

/// As an administrator has it: the image becomes a template in a pool, mirrored and with checksums, and the machine boots
/// a clone of it.
#[test]
fn debian_boots_from_a_clone_in_a_pool() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    material.debian_disk(&folder.path().join("debian.raw"))?;
    for member in ["a.img", "b.img"] {
        std::fs::File::create(at(member))?.set_len(2 << 30)?;
    }
    let vireo = |line: &str| -> Result<()> {
        let output =
            material.command(&line.split(' ').collect::<Vec<_>>()).current_dir(folder.path()).output()?;
        ensure!(output.status.success(), "vireo {line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    vireo("pool create web.pool --member a.img --member b.img")?;
    vireo("image convert -f raw -O pool -o layout=mirrored,checksums=on debian.raw web.pool/golden")?;
    vireo("pool volume template web.pool golden")?;
    vireo("pool volume clone web.pool golden web")?;
    vm_tests::debian_from(
        &material,
        &format!("{}/web,format=pool", at("web.pool")),
        &["--engine", "software"],
    )?;
    // The guest has written to its clone, and to nothing else; every copy is right by its checksums.
    vireo("image compare -f raw -F pool debian.raw web.pool/golden")?;
    let same = material.command(&["image", "compare", "-f", "pool", "-F", "pool"]);
    let same = { same }.args(["web.pool/golden", "web.pool/web"]).current_dir(folder.path()).status()?;
    ensure!(same.code() == Some(1), "the guest has written nothing: {same}");
    vireo("pool scrub web.pool")
}
