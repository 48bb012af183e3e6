//! A pseudo-terminal for the serial port.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::OpenOptionsExt;

/// A pseudo-terminal: its master, and the other side, which stays open.
///
/// While the other side is open, the master never reads an error when people come and go, and the attributes stay.
pub struct Pty {
    /// Our side.
    pub master: File,
    /// The path of the other side.
    pub path: String,
    _slave: File,
}

impl Pty {
    /// Opens one, in raw mode: an echo would send the guest its own words.
    pub fn open() -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?.to_string_lossy().into_owned();
        let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?;
        let mut attributes = tcgetattr(&slave)?;
        attributes.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &attributes)?;
        Ok(Pty { master: File::from(master), path, _slave: slave })
    }
}
