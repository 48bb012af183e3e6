//! A panic on any thread gives the terminal back and ends the process.
//!
//! Nothing a person can do makes `vireo` panic, so this test's own program stands in for it: it starts itself again
//! on a pseudo-terminal, enters raw mode there as `vireo run` does, and panics on a second thread.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

const CHILD: &str = "VMM_TEST_PANICS";

fn stty(side: &OwnedFd, argument: &str) -> String {
    let mut command = Command::new("stty");
    let output = command.arg(argument).stdin(Stdio::from(side.try_clone().unwrap())).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The stand-in; in an ordinary run of the tests it does nothing.
#[test]
fn panics_when_asked_to() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    vmm::fatal::install().unwrap();
    let _raw = vmm::terminal::RawTerminal::enter().unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let _ = std::thread::spawn(|| panic!("a test")).join();
    std::thread::sleep(Duration::from_secs(3600));
}

#[test]
fn a_panic_restores_the_terminal() {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let side = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let before = stty(&side, "-g");
    let mut child = Command::new("setsid")
        .arg("--ctty")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "panics_when_asked_to", "--nocapture"])
        .env(CHILD, "1")
        .stdin(side.try_clone().unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while !stty(&side, "-a").contains("-icanon") {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "the terminal is never raw");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_ne!(stty(&side, "-g"), before);
    rustix::io::write(&master, b"\n").unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("the process outlives a panic");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(vmm::exit_code::HOST.into()));
    assert_eq!(stty(&side, "-g"), before);
}
