//! One machine under test.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A running `vireo` process. It is killed when this is dropped.
pub struct TestVm {
    child: Child,
    input: ChildStdin,
    heard: Receiver<(Stream, Vec<u8>)>,
    console: Vec<u8>,
    errors: Vec<u8>,
    /// How much of the console earlier waits have used up.
    read_to: usize,
}

/// How a machine ended.
#[derive(Debug)]
pub struct Outcome {
    /// The program's exit status, `None` when a signal ended it.
    pub code: Option<i32>,
    /// Everything the guest said on its serial port.
    pub console: String,
    /// Everything the program said on standard error.
    pub errors: String,
}

/// Which of the two streams was heard.
#[derive(Clone, Copy)]
enum Stream {
    Console,
    Errors,
}

impl TestVm {
    /// Starts a program with its standard streams in our hands.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("Cannot start vireo")?;
        let (sender, heard) = mpsc::channel();
        let input = child.stdin.take().context("No standard input")?;
        listen(child.stdout.take().context("No standard output")?, Stream::Console, sender.clone());
        listen(child.stderr.take().context("No standard error")?, Stream::Errors, sender);
        Ok(Self { child, input, heard, console: Vec::new(), errors: Vec::new(), read_to: 0 })
    }

    /// Waits until the guest says `text`, after whatever the last wait found; returns what it said before.
    ///
    /// # Errors
    /// When the time runs out or the program ends first; the message holds the end of the console.
    pub fn wait_for(&mut self, text: &str, seconds: u64) -> Result<String> {
        let end = Instant::now() + Duration::from_secs(seconds);
        // Where no match can begin any more: long outputs come in small pieces.
        let mut searched = self.read_to;
        loop {
            let fresh = &self.console[searched..];
            if let Some(at) = fresh.windows(text.len()).position(|window| window == text.as_bytes()) {
                let before = String::from_utf8_lossy(&self.console[self.read_to..searched + at]).into_owned();
                self.read_to = searched + at + text.len();
                return Ok(before);
            }
            searched = searched.max((self.console.len() + 1).saturating_sub(text.len()));
            match self.heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((stream, bytes)) => self.take(stream, &bytes),
                Err(_) => bail!("No {text:?} from the guest in {seconds} s; {}", self.ends()),
            }
        }
    }

    /// Types on the guest's console.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes())?;
        Ok(self.input.flush()?)
    }

    /// Presses the power button (SIGTERM).
    ///
    /// # Errors
    /// When the program is gone.
    pub fn press_power_button(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends the program a signal.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("Cannot signal vireo")
    }

    /// Waits until the program says `text` on standard error; returns all it said there.
    ///
    /// # Errors
    /// As [`TestVm::wait_for`].
    pub fn wait_for_error(&mut self, wanted: &str, seconds: u64) -> Result<String> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            let said = text(&self.errors);
            if said.contains(wanted) {
                return Ok(said);
            }
            match self.heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((stream, bytes)) => self.take(stream, &bytes),
                Err(_) => bail!("No {wanted:?} on standard error in {seconds} s; {}", self.ends()),
            }
        }
    }

    /// Waits for the machine's end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(&mut self, seconds: u64) -> Result<Outcome> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            match self.heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((stream, bytes)) => self.take(stream, &bytes),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    bail!("The machine did not end in {seconds} s; {}", self.ends())
                }
            }
        }
        let status: ExitStatus = self.child.wait()?;
        Ok(Outcome { code: status.code(), console: text(&self.console), errors: text(&self.errors) })
    }

    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Console => self.console.extend_from_slice(bytes),
            Stream::Errors => self.errors.extend_from_slice(bytes),
        }
    }

    /// The ends of both streams, for messages.
    fn ends(&self) -> String {
        let end = |bytes: &[u8]| {
            let all = text(bytes);
            let lines: Vec<&str> = all.lines().collect();
            lines[lines.len().saturating_sub(12)..].join("\n")
        };
        format!("its console ends:\n{}\nand standard error:\n{}", end(&self.console), end(&self.errors))
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes on what a stream says until it ends.
fn listen(mut from: impl Read + Send + 'static, stream: Stream, to: Sender<(Stream, Vec<u8>)>) {
    thread::spawn(move || {
        let mut buffer = [0_u8; 4096];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 || to.send((stream, buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
