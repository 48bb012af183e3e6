//! A guest's console as the chores see it: a child process whose output is watched while it is shown.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A running program with a guest's serial port on its standard streams.
pub struct Console {
    child: Child,
    /// Kept open: a closed standard input would end the guest's console.
    _input: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// When the program was started.
    started: Instant,
    /// Everything the guest has said.
    said: Vec<u8>,
    live: bool,
}

impl Console {
    /// Starts a program. With `live`, what it says also goes to our standard output.
    pub fn start(command: &mut Command, live: bool) -> Result<Self> {
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("Cannot start {}", command.get_program().display()))?;
        let input = child.stdin.take().context("The program has no standard input")?;
        let mut stream = child.stdout.take().context("The program has no standard output")?;
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0_u8; 4096];
            while let Ok(count) = stream.read(&mut buffer) {
                if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, _input: input, output, started, said: Vec::new(), live })
    }

    /// Waits until the guest has said `text`; returns how long that took since the start.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<Duration> {
        loop {
            if self.said.windows(text.len()).any(|window| window == text.as_bytes()) {
                return Ok(self.started.elapsed());
            }
            let left = limit.saturating_sub(self.started.elapsed());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.take(&bytes)?,
                Err(RecvTimeoutError::Timeout) => {
                    self.kill();
                    bail!("No {text:?} within {} s; the end of the log:\n{}", limit.as_secs(), self.tail());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("The program ended ({status}) before {text:?}; its log ends:\n{}", self.tail());
                }
            }
        }
    }

    /// Waits until the guest's last line is whole.
    pub fn wait_for_line(&mut self) -> Result<()> {
        while self.said.last() != Some(&b'\n') {
            let bytes = self.output.recv_timeout(Duration::from_secs(60)).context("A line without an end")?;
            self.take(&bytes)?;
        }
        Ok(())
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).context("Cannot signal the program")
    }

    /// The child's process identifier.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end; a program that does not end in time is killed and reported.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            while let Ok(bytes) = self.output.try_recv() {
                self.take(&bytes)?;
            }
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                self.kill();
                bail!("The program did not end within {} s", limit.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the program at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Everything the guest has said so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.said.extend_from_slice(bytes);
        if self.live {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()?;
        }
        Ok(())
    }

    fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.kill();
    }
}
