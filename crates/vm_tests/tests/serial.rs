//! Where the serial port leads: sockets, pseudo-terminals, files, nowhere; and readers that do not read.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vm_tests::{Material, Signal, TestVm, TinyGuest};

/// More than what waits for a reader at most, and than what the host's own buffers hold.
const FLOOD: u32 = 3 << 20;
/// Bytes that wait for a reader at most, as the book says.
const WAITING: usize = 1 << 20;

fn connect(path: &Path) -> Result<UnixStream> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(60)))?;
                return Ok(stream);
            }
            Err(error) => ensure!(Instant::now() < end, "nobody listens at {}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn expect(from: &mut impl Read, wanted: &[u8]) -> Result<()> {
    let mut got = vec![0; wanted.len()];
    from.read_exact(&mut got)?;
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(wanted));
    Ok(())
}

#[test]
fn a_socket_serves_one_client_after_the_other_and_goes_away() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tty");
    // What a killed process left is no obstacle.
    drop(UnixListener::bind(&path)?);
    let serial = format!("unix:{}", path.display());
    let mut vm = TestVm::start(material.tiny(TinyGuest::Echo, folder.path(), &["--serial", &serial])?)?;
    let mut first = connect(&path)?;
    // What the guest said before anybody came.
    expect(&mut first, b"R")?;
    first.write_all(b"one")?;
    expect(&mut first, b"one")?;
    let mut second = connect(&path)?;
    second.write_all(b"two")?;
    // A client that says no more still hears.
    first.write_all(b"rest")?;
    first.shutdown(Shutdown::Write)?;
    expect(&mut first, b"rest")?;
    drop(first);
    expect(&mut second, b"two")?;
    // The third waits while the second is there.
    let mut third = connect(&path)?;
    third.write_all(b"3q")?;
    drop(second);
    expect(&mut third, b"3q")?;
    assert_eq!(vm.wait(60)?.code, Some(TinyGuest::EXIT_STATUS));
    assert!(!path.exists(), "the socket is left behind");
    Ok(())
}

#[test]
fn a_client_that_never_reads_stalls_neither_guest_nor_end() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tty");
    let serial = format!("unix:{}", path.display());
    let guest = TinyGuest::Flood(FLOOD);
    let mut vm = TestVm::start(material.tiny(guest, folder.path(), &["--serial", &serial])?)?;
    let _mute = connect(&path)?;
    let outcome = vm.wait(120)?;
    assert_eq!(outcome.code, Some(TinyGuest::EXIT_STATUS));
    assert!(outcome.errors.contains("bytes of the serial port were lost"), "{}", outcome.errors);
    Ok(())
}

#[test]
fn the_newest_bytes_wait_for_a_late_client() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (path, control) = (folder.path().join("tty"), folder.path().join("ctl").display().to_string());
    let serial = format!("unix:{}", path.display());
    let mut command = material.command(&["run", "--memory", "16M", "--engine", "software", "--kernel"]);
    // Without the device its last write is lost and the guest halts.
    command.arg(TinyGuest::Flood(FLOOD).image(folder.path())?);
    command.args(["--serial", &serial, "--control", &control]);
    let mut vm = TestVm::start(command)?;
    drop(connect(Path::new(&control))?);
    let end = Instant::now() + Duration::from_secs(60);
    let wanted = u64::from(FLOOD) - WAITING as u64;
    loop {
        let output = material.command(&["ctl", &control, "stats", "--json"]).output()?;
        let said = String::from_utf8(output.stdout)?;
        if said.contains(&format!("\"serial_bytes_lost\":{wanted}")) {
            break;
        }
        ensure!(Instant::now() < end, "not {wanted} bytes lost: {said}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut client = connect(&path)?;
    let mut got = vec![0; WAITING];
    client.read_exact(&mut got)?;
    let first = FLOOD - WAITING as u32;
    assert!((first..FLOOD).map(|at| TinyGuest::flood_byte(FLOOD, at)).eq(got), "other bytes came");
    vm.signal(Signal::INT)?;
    assert_eq!(vm.wait(60)?.code, Some(10));
    Ok(())
}

#[test]
fn a_standard_output_that_nobody_reads_stalls_neither_guest_nor_end() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let mut command = material.tiny(TinyGuest::Flood(FLOOD), folder.path(), &[])?;
    let mut child =
        command.stdout(std::process::Stdio::piped()).stdin(std::process::Stdio::null()).spawn()?;
    let end = Instant::now() + Duration::from_secs(120);
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            child.kill()?;
            anyhow::bail!("the machine waits for its reader");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(child.wait()?.code(), Some(TinyGuest::EXIT_STATUS));
    Ok(())
}

#[test]
fn everything_reaches_a_reader_that_reads() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let count = WAITING as u32;
    let all: Vec<u8> = (0..count).map(|at| TinyGuest::flood_byte(count, at)).collect();
    let outcome = TestVm::start(material.tiny(TinyGuest::Flood(count), folder.path(), &[])?)?.wait(120)?;
    assert!(outcome.console.as_bytes() == all, "{} of {count} bytes came", outcome.console.len());
    // A file is continued, never emptied.
    let log = folder.path().join("log");
    std::fs::write(&log, "before\n")?;
    let serial = format!("file:{}", log.display());
    let mut command = material.tiny(TinyGuest::Flood(count), folder.path(), &["--serial", &serial])?;
    assert_eq!(command.status()?.code(), Some(TinyGuest::EXIT_STATUS));
    assert!(std::fs::read(&log)? == [b"before\n", &all[..]].concat());
    Ok(())
}

#[test]
fn a_pseudo_terminal_is_named_and_works() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let mut vm = TestVm::start(material.tiny(TinyGuest::Echo, folder.path(), &["--serial", "pty"])?)?;
    let said = vm.wait_for_error("\n", 60)?;
    let path = said.trim().rsplit(' ').next().unwrap_or_default();
    assert!(path.starts_with("/dev/pts/"), "{said}");
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(path);
    let mut side = open()?;
    expect(&mut side, b"R")?;
    // Nothing is echoed, translated or interpreted on the way.
    side.write_all(b"a\r\n\x03\x1d")?;
    expect(&mut side, b"a\r\n\x03\x1d")?;
    drop(side);
    let mut again = open()?;
    again.write_all(b"bq")?;
    expect(&mut again, b"bq")?;
    assert_eq!(vm.wait(60)?.code, Some(TinyGuest::EXIT_STATUS));
    Ok(())
}
