//! How machines end, what they say about it, and the machine file.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vm_tests::{Material, Signal, TestVm, TinyGuest};

#[test]
fn exit_statuses_tell_how_the_guest_ended() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    for (guest, options, status, words) in [
        (TinyGuest::DebugExit(0), &[][..], 1, ""),
        (TinyGuest::DebugExit(21), &[], 43, ""),
        (TinyGuest::DebugExit(127), &[], 255, ""),
        // An exit status has eight bits.
        (TinyGuest::DebugExit(128), &[], 1, ""),
        (TinyGuest::TripleFault, &[], 8, "triple fault"),
        (TinyGuest::Reset, &["--no-reboot"], 12, "reset"),
        (TinyGuest::Panic(1), &[], 14, "kernel panicked"),
        (TinyGuest::Panic(3), &[], 14, "kernel panicked"),
        // It has a crash kernel, which goes on.
        (TinyGuest::Panic(2), &[], TinyGuest::EXIT_STATUS, ""),
    ] {
        let outcome = TestVm::start(material.tiny(guest, folder.path(), options)?)?.wait(60)?;
        assert_eq!(outcome.code, Some(status), "{guest:?}: {}", outcome.errors);
        assert!(outcome.errors.contains(words), "{guest:?}: {}", outcome.errors);
        assert!(outcome.errors.lines().count() <= 1, "{guest:?}: {}", outcome.errors);
    }
    Ok(())
}

#[test]
fn the_debug_exit_device_is_where_it_was_put() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    // It says one byte before it writes.
    let kernel = TinyGuest::Flood(1).image(folder.path())?.display().to_string();
    let base = ["run", "--engine", "software", "--kernel", &kernel];
    // At another port the write is lost; the guest halts.
    for (options, ends) in
        [(&["--debug-exit=0xf4"][..], true), (&["--debug-exit=0x501"], false), (&[], false)]
    {
        let mut command = material.command(&base);
        command.args(options);
        let mut vm = TestVm::start(command)?;
        vm.wait_for("1", 60)?;
        if !ends {
            vm.signal(Signal::USR1)?;
            vm.wait_for_error("instructions", 60)?;
            vm.signal(Signal::INT)?;
        }
        let status = if ends { TinyGuest::EXIT_STATUS } else { 10 };
        assert_eq!(vm.wait(60)?.code, Some(status), "{options:?}");
    }
    Ok(())
}

#[test]
fn counters_are_printed_when_asked_for() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let mut vm = TestVm::start(material.tiny(TinyGuest::Echo, folder.path(), &["--stats"])?)?;
    vm.wait_for("R", 60)?;
    vm.signal(Signal::USR1)?;
    let first = vm.wait_for_error("MIPS", 60)?;
    assert!(first.contains("engine software") && first.contains("engine switches 0"), "{first}");
    vm.send("q")?;
    let outcome = vm.wait(60)?;
    let counts: Vec<u64> = outcome
        .errors
        .lines()
        .filter_map(|line| line.strip_prefix("vireo: instructions ")?.split(',').next()?.parse().ok())
        .collect();
    assert!(counts.len() == 2 && counts[0] > 0 && counts[1] > counts[0], "{}", outcome.errors);
    assert!(outcome.errors.contains("vireo: pio_accesses "), "no exits by kind: {}", outcome.errors);
    Ok(())
}

#[test]
fn the_second_sigterm_ends_a_guest_that_does_not_listen() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    for guest in [TinyGuest::Spin, TinyGuest::Halt] {
        let socket = folder.path().join("ctl").display().to_string();
        let mut vm = TestVm::start(material.tiny(guest, folder.path(), &["--control", &socket])?)?;
        let status = || material.command(&["ctl", &socket, "status"]).output();
        let end = Instant::now() + Duration::from_secs(60);
        while !status()?.status.success() {
            ensure!(Instant::now() < end, "the machine does not start");
        }
        vm.press_power_button()?;
        // The first has been served when the next request is answered only if the signal came before it.
        std::thread::sleep(Duration::from_millis(500));
        assert!(status()?.status.success(), "the first SIGTERM ended the machine");
        vm.press_power_button()?;
        assert_eq!(vm.wait(60)?.code, Some(10));
    }
    Ok(())
}

#[test]
fn options_override_the_machine_file() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    TinyGuest::DebugExit(9).image(folder.path())?;
    let toml =
        "kernel = 'tiny-guest.elf'\nmemory = '3K'\nengine = 'software'\nserial = 'none'\ndebug-exit = 0xf0\n";
    let json = r#"{"kernel": "tiny-guest.elf", "memory": 3072, "engine": "software", "serial": "none",
        "debug-exit": 240}"#;
    for (name, content) in [("m.toml", toml), ("m.json", json)] {
        let path = folder.path().join(name);
        std::fs::write(&path, content)?;
        let path = path.display().to_string();
        // Relative paths of the file start at its folder, not here; wrong values that are overridden do no harm.
        for options in [&[&path[..]][..], &["--config", &path]] {
            let mut command = material.command(&["run", "--memory", "16M", "--debug-exit"]);
            command.args(options);
            let outcome = TestVm::start(command)?.wait(60)?;
            assert_eq!(outcome.code, Some(19), "{}", outcome.errors);
        }
    }
    Ok(())
}

#[test]
fn completions_and_help_are_there() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let script = material.command(&["completions", "bash"]).output()?;
    let text = String::from_utf8(script.stdout)?;
    assert!(script.status.success() && text.contains("--debug-exit"));
    let mut bash = std::process::Command::new("bash");
    let checked = bash.arg("-n").stdin(std::process::Stdio::piped()).spawn().and_then(|mut bash| {
        use std::io::Write;
        bash.stdin.take().map_or(Ok(()), |mut input| input.write_all(text.as_bytes()))?;
        bash.wait()
    });
    assert!(checked.is_ok_and(|status| status.success()), "bash does not take its completions");
    let help = String::from_utf8(material.command(&["run", "--help"]).output()?.stdout)?;
    for words in ["Examples:", "Exit status:", "Ctrl-]", "--control <PATH>", "readonly=on"] {
        assert!(help.contains(words), "{words:?} is not in the help");
    }
    Ok(())
}
