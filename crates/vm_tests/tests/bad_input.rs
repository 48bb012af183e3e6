//! Wrong input ends at once, with one clear line and an exit status that is neither success nor a guest's.

use std::path::Path;

use anyhow::Result;
use vm_tests::{Material, TestVm};

/// Runs `vireo run` with these arguments; it must fail within seconds, in one line that names `culprit`.
fn fails(material: &Material, arguments: &[&str], culprit: &str) -> Result<()> {
    let mut command = material.command(&["run", "--engine", "software"]);
    command.args(arguments);
    let outcome = TestVm::start(command)?.wait(20)?;
    let said = outcome.errors.trim();
    assert!(outcome.code.is_some_and(|code| code != 0), "{arguments:?} ended with {:?}", outcome.code);
    assert!(said.contains(culprit), "{arguments:?} does not name {culprit:?}: {said}");
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn kernels_that_are_none() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let missing = text(&folder.path().join("missing"));
    fails(&material, &["--kernel", &missing], "missing")?;
    let words = folder.path().join("words.txt");
    std::fs::write(&words, "This is not a kernel, it is a sentence.\n".repeat(99))?;
    fails(&material, &["--kernel", &text(&words)], "words.txt")?;
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "")?;
    fails(&material, &["--kernel", &text(&empty)], "empty")?;
    let whole = std::fs::read(material.kernel())?;
    for length in [1_usize, 600, 2_000, 40_000, whole.len() / 2] {
        let short = folder.path().join(format!("short-{length}"));
        std::fs::write(&short, &whole[..length])?;
        fails(&material, &["--kernel", &text(&short)], "short-")?;
    }
    Ok(())
}

#[test]
fn sizes_that_are_none() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let kernel = text(&material.kernel());
    fails(&material, &["--kernel", &kernel, "--memory", "3K"], "3K")?;
    fails(&material, &["--kernel", &kernel, "--memory", "many"], "many")?;
    fails(&material, &["--kernel", &kernel, "--cpus", "0"], "0")?;
    fails(&material, &["--kernel", &kernel, "--cpu", "z80"], "z80")?;
    Ok(())
}

#[test]
fn an_initrd_larger_than_memory() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let large = folder.path().join("large-initrd");
    std::fs::File::create(&large)?.set_len(200 << 20)?;
    let arguments = ["--kernel", &text(&material.kernel()), "--initrd", &text(&large), "--memory", "128M"];
    fails(&material, &arguments, "initrd")
}

#[test]
fn disks_that_are_none() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let kernel = text(&material.kernel());
    let missing = text(&folder.path().join("missing.raw"));
    fails(&material, &["--kernel", &kernel, "--disk", &missing], "missing.raw")?;
    let odd = folder.path().join("odd.raw");
    std::fs::write(&odd, vec![9; 1_000])?;
    fails(&material, &["--kernel", &kernel, "--disk", &text(&odd)], "odd.raw")?;
    assert!(std::fs::read(&odd)? == vec![9; 1_000], "the refused disk was changed");
    let unknown = format!("{},colour=red", text(&odd));
    fails(&material, &["--kernel", &kernel, "--disk", &unknown], "colour")
}

#[test]
fn machine_files_with_unknown_keys() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("machine.toml");
    std::fs::write(&file, "memroy = \"512M\"\n")?;
    fails(&material, &[&text(&file)], "memroy")
}
