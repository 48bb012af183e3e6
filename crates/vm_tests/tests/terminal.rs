//! The terminal is as it was, however `vireo run` ends. SIGKILL is the exception that no program can mend.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::Result;
use vm_tests::{Material, OnTerminal, Signal, Terminal, TinyGuest};

/// A guest that stands on a terminal in raw mode, with the attributes from before.
fn started(material: &Material, folder: &std::path::Path) -> Result<(Terminal, OnTerminal, String)> {
    let terminal = Terminal::open()?;
    let before = terminal.attributes()?;
    let program = terminal.start(&material.tiny(TinyGuest::Halt, folder, &[])?)?;
    terminal.wait_raw(true)?;
    assert_ne!(terminal.attributes()?, before);
    Ok((terminal, program, before))
}

#[test]
fn signals_that_ask_restore_it() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    for signals in [&[Signal::TERM, Signal::TERM][..], &[Signal::INT], &[Signal::HUP], &[Signal::QUIT]] {
        let (terminal, mut program, before) = started(&material, folder.path())?;
        for signal in signals {
            program.signal(*signal)?;
            // Two signals that wait at once are one.
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        assert_eq!(program.wait()?.code(), Some(10), "{signals:?}");
        assert_eq!(terminal.attributes()?, before, "{signals:?}");
    }
    Ok(())
}

#[test]
fn fatal_signals_restore_it_and_stay_fatal() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    for signal in [
        Signal::SEGV,
        Signal::BUS,
        Signal::ABORT,
        Signal::ILL,
        Signal::FPE,
        Signal::TRAP,
        Signal::SYS,
        Signal::ALARM,
        Signal::USR2,
        Signal::XCPU,
    ] {
        let (terminal, mut program, before) = started(&material, folder.path())?;
        program.signal(signal)?;
        assert_eq!(program.wait()?.signal(), Some(signal.as_raw()), "{signal:?}");
        assert_eq!(terminal.attributes()?, before, "{signal:?}");
    }
    Ok(())
}

#[test]
fn the_escape_key_restores_it_even_when_the_guest_reads_nothing() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (mut terminal, mut program, before) = started(&material, folder.path())?;
    for _ in 0..50 {
        terminal.type_keys(&[b'x'; 100])?;
    }
    // What interrupts, suspends and ends input elsewhere is the guest's here.
    terminal.type_keys(&[0x03, 0x1a, 0x1c, 0x04])?;
    terminal.type_keys(&[0x1d])?;
    assert_eq!(program.wait()?.code(), Some(10));
    assert_eq!(terminal.attributes()?, before);
    Ok(())
}

#[test]
fn the_guests_own_ends_restore_it() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let cases = [
        (TinyGuest::DebugExit(4), 9),
        (TinyGuest::TripleFault, 8),
        (TinyGuest::Flood(3000), TinyGuest::EXIT_STATUS),
    ];
    for (guest, status) in cases {
        let terminal = Terminal::open()?;
        let before = terminal.attributes()?;
        let mut program = terminal.start(&material.tiny(guest, folder.path(), &[])?)?;
        assert_eq!(program.wait()?.code(), Some(status), "{guest:?}");
        assert_eq!(terminal.attributes()?, before, "{guest:?}");
    }
    let terminal = Terminal::open()?;
    let before = terminal.attributes()?;
    let mut refused = terminal.start(&material.command(&["run", "--kernel", "/nonexistent"]))?;
    assert_eq!(refused.wait()?.code(), Some(2));
    assert_eq!(terminal.attributes()?, before);
    Ok(())
}

#[test]
fn a_suspended_process_leaves_it_to_the_shell_and_takes_it_again() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (mut terminal, mut program, before) = started(&material, folder.path())?;
    for _ in 0..2 {
        program.signal(Signal::TSTP)?;
        program.wait_stopped()?;
        assert_eq!(terminal.attributes()?, before);
        program.signal(Signal::CONT)?;
        terminal.wait_raw(true)?;
    }
    terminal.type_keys(&[0x1d])?;
    assert_eq!(program.wait()?.code(), Some(10));
    assert_eq!(terminal.attributes()?, before);
    Ok(())
}

/// VIRTIO_CONSOLE_F_SIZE (virtio 1.3, 5.3.4): at the start and after each change, in the words of the guest's stty.
#[test]
fn the_guest_knows_the_terminals_size_and_its_changes() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let said = folder.path().join("serial.txt");
    let serial = format!("file:{}", said.display());
    let mut command = material.command(&["run", "--memory", "256M", "--engine", "software"]);
    command.arg("--kernel").arg(material.kernel()).arg("--initrd").arg(material.initramfs());
    command.args(["--serial", &serial, "--console", "stdio", "--append", "console=ttyS0 console=hvc0"]);
    let mut terminal = Terminal::open()?;
    terminal.resize(132, 43)?;
    let _program = terminal.start(&command)?;
    for size in [(132, 43), (90, 31)] {
        terminal.resize(size.0, size.1)?;
        let wanted = format!("SIZE {} {}", size.1, size.0);
        let end = Instant::now() + Duration::from_secs(300);
        while !std::fs::read_to_string(&said).unwrap_or_default().contains(&wanted) {
            anyhow::ensure!(Instant::now() < end, "no {wanted:?}: {:?}", std::fs::read_to_string(&said));
            terminal.type_keys(b"echo SIZE $(stty size) > /dev/ttyS0\r")?;
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    Ok(())
}
