//! Debian's 32-bit kernel, which has no 64-bit code: booted translated, with 32-bit programs.

use anyhow::{Context, Result, ensure};
use vm_tests::{Material, TestVm};

/// The number behind a name in the summary that `--stats` prints.
fn counter(summary: &str, name: &str) -> Result<u64> {
    let mut words = summary.split_whitespace().skip_while(|word| *word != name);
    let value = words.nth(1).with_context(|| format!("no {name} in {summary}"))?;
    Ok(value.trim_end_matches(',').parse()?)
}

fn work(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.trim().strip_prefix("vireo-686 work ")).collect()
}

#[test]
fn a_32_bit_kernel_and_its_programs_run_translated() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let Some(guest) = material.of_32_bits() else { return Ok(()) };
    let mut command =
        material.command(&["run", "--memory", "256M", "--engine", "software", "--stats=detail"]);
    command.args(["--software-tier", "auto"]);
    command.arg("--kernel").arg(&guest.kernel).arg("--initrd").arg(&guest.initramfs);
    command.args(["--append", "console=ttyS0"]);
    let mut vm = TestVm::start(command)?;
    vm.wait_for("vireo-686 machine i686", 300)?;
    vm.wait_for("VIREO-686-DONE", 300)?;
    let outcome = vm.wait(120)?;
    ensure!(outcome.code == Some(0), "ended with {:?}: {}", outcome.code, outcome.errors);

    let wanted = material.work_of_32_bits(&guest)?;
    match &wanted {
        Some(wanted) => {
            let wanted: Vec<&str> = wanted.lines().collect();
            assert!(wanted.len() == 7, "{wanted:?}");
            assert_eq!(work(&outcome.console), wanted, "as on this processor");
        }
        None => eprintln!("not compared: this host does not run 32-bit programs itself"),
    }

    let translated = counter(&outcome.errors, "translated_blocks")?;
    let legacy = counter(&outcome.errors, "translated_blocks_legacy")?;
    assert!(legacy > 10_000, "{}", outcome.errors);
    assert_eq!(legacy, translated, "the guest has no 64-bit code: {}", outcome.errors);
    let (all, run) = (counter(&outcome.errors, "instructions")?, counter(&outcome.errors, "translated_run")?);
    assert!(all > 100_000_000 && run >= all / 10 * 9, "{run} of {all}: {}", outcome.errors);
    Ok(())
}
