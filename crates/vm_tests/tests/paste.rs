//! Pasted text: the serial port takes input no faster than the guest empties it, so nothing is lost on the way.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vm_tests::{Material, TestVm, TinyGuest};

/// What is pasted: many more bytes than any buffer between here and a guest's program holds.
const PASTE: usize = 100 << 10;
/// Seconds that a paste may take.
const PATIENCE: u64 = 120;
/// Seconds until the guest's shell.
const BOOT: u64 = 180;

/// Lines that differ, of which a lost one would show, without what a terminal interprets or the echoing guest ends by.
fn text() -> String {
    let lines = (0..).map(|line| format!("{line:07} a line that somebody pastes into a terminal\n"));
    let mut text: String = lines.take(PASTE / 40).collect();
    text.truncate(PASTE - 1);
    text.push('\n');
    text
}

/// The checksum that `sha256sum` of this host prints.
fn checksum(text: &str) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("sha256sum")?;
    child.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let line = String::from_utf8(output.stdout)?;
    Ok(line.split_whitespace().next().context("a checksum")?.to_owned())
}

/// The guest's shell command that sums up a paste: without echo, so that only the way in is measured. The quotes keep the
/// echoed command from looking like its output.
fn summing() -> String {
    format!("stty -echo; echo PASTE''-READY; head -c {PASTE} | sha256sum; echo PASTE''-DONE; poweroff -f\n")
}

/// Reads until a text has come; answers what came before it.
fn read_until(from: &mut impl Read, wanted: &str) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(BOOT);
    let mut heard = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let so_far = String::from_utf8_lossy(&heard).into_owned();
        if let Some((before, _)) = so_far.split_once(wanted) {
            return Ok(before.to_owned());
        }
        ensure!(Instant::now() < end, "no {wanted:?} in {BOOT} s: {so_far}");
        let count = from.read(&mut piece)?;
        ensure!(count > 0, "the port was closed before {wanted:?}: {so_far}");
        heard.extend_from_slice(&piece[..count]);
    }
}

/// Boots to a shell whose console is the other end of `side`, and pastes.
fn paste_into(side: &mut (impl Read + Write)) -> Result<()> {
    let text = text();
    read_until(side, "/ # ")?;
    side.write_all(summing().as_bytes())?;
    read_until(side, "PASTE-READY")?;
    side.write_all(text.as_bytes())?;
    let said = read_until(side, "PASTE-DONE")?;
    assert!(said.contains(&checksum(&text)?), "another text came: {said}");
    Ok(())
}

#[test]
fn a_paste_into_standard_input_arrives_whole() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let text = text();
    let mut vm = material.boot("vireo.test=shell quiet", &["--engine", "software"])?;
    vm.wait_for("/ # ", BOOT)?;
    vm.send(&summing())?;
    vm.wait_for("PASTE-READY", 30)?;
    vm.send(&text)?;
    let said = vm.wait_for("PASTE-DONE", PATIENCE)?;
    assert!(said.contains(&checksum(&text)?), "another text came: {said}");
    assert_eq!(vm.wait(60)?.code, Some(0));
    Ok(())
}

#[test]
fn a_paste_into_a_socket_arrives_whole() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tty");
    let serial = format!("unix:{}", path.display());
    let mut vm = material.boot("vireo.test=shell quiet", &["--engine", "software", "--serial", &serial])?;
    let end = Instant::now() + Duration::from_secs(60);
    let mut side = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(error) => ensure!(Instant::now() < end, "nobody listens: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    side.set_read_timeout(Some(Duration::from_secs(BOOT)))?;
    paste_into(&mut side)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    Ok(())
}

#[test]
fn a_paste_into_a_pseudo_terminal_arrives_whole() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut vm = material.boot("vireo.test=shell quiet", &["--engine", "software", "--serial", "pty"])?;
    let said = vm.wait_for_error("\n", 60)?;
    let path = said.trim().rsplit(' ').next().unwrap_or_default();
    let mut side = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    paste_into(&mut side)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    Ok(())
}

/// A guest that looks at the port byte by byte, without the FIFO: the holding register is all the room there is.
#[test]
fn a_paste_into_a_polling_guest_comes_back_whole() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let text = text().replace('q', "k");
    let mut vm = TestVm::start(material.tiny(TinyGuest::Echo, folder.path(), &[])?)?;
    vm.wait_for("R", 60)?;
    vm.send(&text)?;
    vm.send("q")?;
    let outcome = vm.wait(PATIENCE)?;
    assert_eq!(outcome.code, Some(TinyGuest::EXIT_STATUS));
    assert!(outcome.console == format!("R{text}q"), "{} bytes came back", outcome.console.len());
    Ok(())
}
