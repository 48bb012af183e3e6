//! A Debian kernel with a busybox initramfs on the software CPU: it boots, and it computes what silicon does.

use anyhow::Result;
use vm_tests::Material;

/// Seconds a boot may take on a busy machine; well beyond what it needs.
const BOOT: u64 = 240;
const SOFTWARE: [&str; 2] = ["--engine", "software"];

#[test]
fn a_guest_boots_and_powers_off() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    for tier in ["interpreter", "translate", "auto"] {
        let mut vm =
            material.boot("vireo.test=poweroff", &["--engine", "software", "--software-tier", tier])?;
        vm.wait_for("VIREO-INIT-OK", BOOT)?;
        let outcome = vm.wait(60)?;
        assert_eq!(outcome.code, Some(0), "{tier}: {}", outcome.errors);
    }
    Ok(())
}

#[test]
fn the_debug_exit_port_sets_the_exit_status() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut vm = material.boot("vireo.test=exit,21", &["--engine", "software", "--debug-exit"])?;
    vm.wait_for("VIREO-INIT-OK", BOOT)?;
    assert_eq!(vm.wait(60)?.code, Some((21 << 1) | 1));
    Ok(())
}

#[test]
fn the_software_cpu_computes_what_this_processor_computes() -> Result<()> {
    computes_what_this_processor_computes("auto")
}

#[test]
fn the_interpreter_computes_what_this_processor_computes() -> Result<()> {
    computes_what_this_processor_computes("interpreter")
}

fn computes_what_this_processor_computes(tier: &str) -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let options = ["--engine", "software", "--software-tier", tier, "--cpu", "max", "--cpus", "2"];
    let mut vm = material.boot("vireo.test=cpu quiet", &options)?;
    let said = vm.wait_for("VIREO-CPU-DONE", BOOT)?;
    let wanted = material.on_this_processor(&["cpu"])?;
    let mut compared = 0;
    for line in wanted.lines().filter(|line| !line.ends_with("absent")) {
        let name = line.split_whitespace().nth(1).unwrap_or_default();
        if said.contains(&format!("vireo-cpu {name} absent")) {
            eprintln!("the guest's CPU model has no {name}");
            continue;
        }
        assert!(said.contains(line), "the host computes {line:?}, the guest:\n{said}");
        compared += 1;
    }
    assert!(compared >= 5, "only {compared} kinds of work were compared:\n{said}");
    Ok(())
}

#[test]
fn the_kernels_cryptography_passes_its_known_answers() -> Result<()> {
    cryptography_passes("auto")
}

#[test]
fn the_kernels_cryptography_passes_in_the_interpreter() -> Result<()> {
    cryptography_passes("interpreter")
}

fn cryptography_passes(tier: &str) -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let options = ["--engine", "software", "--software-tier", tier, "--cpu", "max"];
    let mut vm = material.boot("vireo.test=crypto quiet", &options)?;
    let said = vm.wait_for("VIREO-CRYPTO-OK", BOOT)?;
    let passed = said.lines().filter(|line| line.starts_with("crypto ") && line.trim().ends_with("passed"));
    assert!(passed.count() > 20, "{said}");
    let failed = said.lines().find(|line| line.starts_with("crypto ") && !line.trim().ends_with("passed"));
    assert_eq!(failed, None);
    Ok(())
}

#[test]
fn typed_lines_reach_the_guest() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut vm = material.boot("vireo.test=echo quiet", &SOFTWARE)?;
    vm.wait_for("VIREO-ECHO-READY", BOOT)?;
    vm.send("forty-two\n")?;
    vm.wait_for("VIREO-ECHO forty-two", 30)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    Ok(())
}

#[test]
fn two_seconds_in_the_guest_are_two_seconds_here() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut vm = material.boot("vireo.test=time quiet", &SOFTWARE)?;
    vm.wait_for("VIREO-TIME ", BOOT)?;
    let line = vm.wait_for("\n", 10)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let slept = words[1].parse::<f64>()? - words[0].parse::<f64>()?;
    assert!((2.0..4.0).contains(&slept), "slept {slept} s: {line}");
    vm.wait_for("VIREO-DATE ", 10)?;
    let date: u64 = vm.wait_for("\n", 10)?.trim().parse()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    assert!(now.abs_diff(date) < 10, "the guest's date is {date}, ours {now}");
    Ok(())
}

#[test]
fn every_vcpu_comes_up() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut vm = material.boot("vireo.test=smp quiet", &["--engine", "software", "--cpus", "4"])?;
    vm.wait_for("VIREO-SMP 4", BOOT)?;
    let line = vm.wait_for("\n", 10).and_then(|_| vm.wait_for("\n", 120))?;
    let wanted = material.on_this_processor(&["cpu"])?;
    assert!(wanted.contains(line.trim()), "lost additions: {line}");
    Ok(())
}

#[test]
fn the_power_button_reaches_the_guest() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut vm = material.boot("vireo.test=button quiet", &SOFTWARE)?;
    vm.wait_for("VIREO-BUTTON-READY", BOOT)?;
    vm.press_power_button()?;
    vm.wait_for("VIREO-BUTTON-PRESSED", 30)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    Ok(())
}
