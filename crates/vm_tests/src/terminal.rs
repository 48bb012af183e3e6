//! A terminal for a program under test, as a person's shell gives one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// How long something may take that needs only milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(60);

/// A pseudo-terminal.
pub struct Terminal {
    keyboard: File,
    side: OwnedFd,
}

/// A program that has a [`Terminal`] as its controlling one. It is killed when this is dropped.
pub struct OnTerminal(Child);

impl Terminal {
    /// Opens one, with attributes that differ from the usual ones, and reads away what is said on it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn open() -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?;
        let side = open(path.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        let keyboard = File::from(master);
        let mut screen = keyboard.try_clone()?;
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while screen.read(&mut buffer).is_ok_and(|len| len > 0) {}
        });
        let terminal = Terminal { keyboard, side };
        terminal.stty(&["erase", "^A", "-ixon", "-echoctl", "tostop"])?;
        Ok(terminal)
    }

    /// All attributes, in the words of `stty -g`.
    ///
    /// # Errors
    /// When stty cannot be run.
    pub fn attributes(&self) -> Result<String> {
        self.stty(&["-g"])
    }

    /// Waits until the terminal is in raw mode, or not.
    ///
    /// # Errors
    /// When it does not become so.
    pub fn wait_raw(&self, raw: bool) -> Result<()> {
        let end = Instant::now() + SOON;
        while self.stty(&["-a"])?.contains("-icanon") != raw {
            ensure!(Instant::now() < end, "the terminal does not change to raw={raw}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Types.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn type_keys(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.keyboard.write_all(keys)?)
    }

    /// Starts a program in a session of its own on this terminal.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, command: &Command) -> Result<OnTerminal> {
        let mut started = Command::new("setsid");
        started.arg("--ctty").arg(command.get_program()).args(command.get_args());
        let child = started
            .stdin(self.side.try_clone()?)
            .stdout(self.side.try_clone()?)
            .stderr(self.side.try_clone()?)
            .spawn()
            .context("Cannot start setsid")?;
        Ok(OnTerminal(child))
    }

    /// Gives it another size, which its foreground processes hear of.
    ///
    /// # Errors
    /// When stty cannot be run.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.stty(&["columns", &columns.to_string(), "rows", &rows.to_string()]).map(drop)
    }

    fn stty(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("stty")
            .args(arguments)
            .stdin(Stdio::from(self.side.try_clone()?))
            .output()
            .context("Cannot run stty")?;
        ensure!(output.status.success(), "stty: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl OnTerminal {
    /// Sends a signal.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.0), signal).context("Cannot signal vireo")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "the program does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it is stopped as by a shell's job control.
    ///
    /// # Errors
    /// When it is not.
    pub fn wait_stopped(&self) -> Result<()> {
        let end = Instant::now() + SOON;
        let path = format!("/proc/{}/stat", self.0.id());
        loop {
            let stat = std::fs::read_to_string(&path)?;
            // The state follows the name, which stands in parentheses.
            match stat.rsplit(") ").next().and_then(|rest| rest.chars().next()) {
                Some('T') => return Ok(()),
                _ if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                state => bail!("the program is not stopped, it is {state:?}"),
            }
        }
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
