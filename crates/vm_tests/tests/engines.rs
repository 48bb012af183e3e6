//! Machines on KVM, whatever it is worth, and machines that move between engines at work.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_tests::Material;

fn switch(material: &Material, socket: &Path, engine: &str) -> Result<()> {
    let command = &mut material.command(&["ctl", &socket.display().to_string(), "switch-engine", engine]);
    let output = command.output()?;
    ensure!(output.status.success(), "to {engine}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The number after `words` in the summary.
fn counter(summary: &str, words: &str) -> Result<u64> {
    let after = summary.split_once(words).with_context(|| format!("no {words:?} in {summary}"))?.1;
    let digits: String = after.trim_start().chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

fn work_lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| line.starts_with("vireo-work ")).map(str::to_owned).collect()
}

#[test]
fn a_guest_at_work_moves_from_software_to_kvm_and_back() -> Result<()> {
    const STEPS: usize = 120;
    let Some(material) = Material::find() else { return Ok(()) };
    let Some(found) = material.kvm()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("ctl");
    let path = socket.display().to_string();
    // Starting on KVM gives the machine what KVM can run: its CPU features and its time-stamp counter.
    let options = ["--engine", "kvm", "--cpus", "2", "--stats", "--control", &path];
    let mut vm = material.boot(&format!("vireo.test=work,{STEPS}"), &options)?;
    let mut moves = 0;
    let mut there_and_back = || {
        switch(&material, &socket, "software")?;
        switch(&material, &socket, "kvm")?;
        // Long enough for some work; what follows holds however much it was.
        std::thread::sleep(Duration::from_millis(40));
        moves += 1;
        switch(&material, &socket, "software")
    };
    // The kernel at work: memory, processors, buses, network.
    for words in ["Linux version", "smpboot: CPU0", "PCI: Using", "NET: Registered"] {
        vm.wait_for(words, 600)?;
        there_and_back()?;
    }
    let breaks_programs = found.contains("BAD  ring 3: ");
    vm.wait_for("Run /init as init", 600)?;
    if !breaks_programs {
        there_and_back()?;
    }
    vm.wait_for("vireo-work 10 ", 300)?;
    if breaks_programs {
        eprintln!("not tried: moves of programs at work; this KVM does not keep programs whole:");
        found.lines().filter(|line| line.starts_with("BAD  ring 3: ")).for_each(|line| eprintln!("  {line}"));
    } else {
        for step in [20, 40, 60, 80] {
            there_and_back()?;
            vm.wait_for(&format!("vireo-work {step} "), 300)?;
        }
    }
    vm.wait_for("VIREO-WORK-DONE", 600)?;
    let outcome = vm.wait(300)?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.errors);
    let wanted = work_lines(&material.on_this_processor(&["work", &STEPS.to_string()])?);
    assert_eq!(wanted.len(), STEPS);
    assert_eq!(work_lines(&outcome.console), wanted);
    // There and back each time.
    let switches = counter(&outcome.errors, "engine switches")?;
    assert!(switches >= 2 * moves, "{}", outcome.errors);
    assert!(counter(&outcome.errors, "kvm_entries")? > 0, "{}", outcome.errors);
    Ok(())
}

/// Starts stock Debian with `--engine kvm` on its own disk and waits for the prompt.
#[test]
#[ignore = "the host's KVM decides how long it takes: cargo xtask test -- --run-ignored all debian_boots_on_kvm"]
fn debian_boots_on_kvm_to_its_login_prompt() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    if material.kvm()?.is_none() {
        return Ok(());
    }
    let outcome = vm_tests::debian_up_and_down(&material, &["--engine", "kvm", "--stats"])?;
    assert!(counter(&outcome.errors, "kvm_entries")? > 0, "{}", outcome.errors);
    eprintln!("{}", outcome.errors);
    Ok(())
}
