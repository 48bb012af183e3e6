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
    vm_tests::debian_up_and_down(&material, &["--engine", "software", "--software-tier", tier])?;
    Ok(())
}
