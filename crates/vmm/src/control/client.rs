//! The other side of a control socket.

use super::protocol::{Command, MAX_LINE, Refusal, VERSION, request_line};
use serde_json::Value;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use thiserror::Error as ThisError;

/// Longest line from a machine: counters of many processors stay far below it.
const MAX_ANSWER: u64 = 16 * MAX_LINE as u64;

/// Why there is no answer.
#[derive(Debug, ThisError)]
pub enum ControlError {
    /// Nobody listens there, or this user may not ask.
    #[error("No machine can be reached at {}; give the PATH of its `vireo run --control PATH`", .path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: Error,
    },
    /// The machine went away.
    #[error("The connection to the machine ended")]
    Connection(#[from] Error),
    /// Something else than a machine answers.
    #[error("What answers does not speak version {VERSION} of the protocol of machines: {0:?}")]
    Strange(String),
    /// The machine says no.
    #[error("The machine refuses: {}", .0.message)]
    Refused(Refusal),
}

/// A connection.
pub struct Client {
    stream: BufReader<UnixStream>,
    last_id: u64,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ControlError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let fail = |source| ControlError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(fail)?;
        Ok(Client { stream: BufReader::new(stream), last_id: 0 })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When the machine refuses or goes away.
    pub fn ask(&mut self, command: &Command) -> Result<Value, ControlError> {
        self.last_id += 1;
        self.stream.get_mut().write_all(request_line(self.last_id, command).as_bytes())?;
        loop {
            let mut line = self.line()?;
            if line.get("event").is_some() {
                continue;
            }
            if let Some(error) = line.get("error") {
                let refusal = Refusal::deserialize_from(error);
                return Err(
                    refusal.map_or_else(|| ControlError::Strange(line.to_string()), ControlError::Refused)
                );
            }
            let ours = line.get("id").and_then(Value::as_u64) == Some(self.last_id);
            return match line.get_mut("result") {
                Some(result) if ours => Ok(result.take()),
                _ => Err(ControlError::Strange(line.to_string())),
            };
        }
    }

    /// The next event, of a client that asked for [`Command::Events`]; `None` when the machine has ended.
    ///
    /// # Errors
    /// When the machine goes away without a word.
    pub fn event(&mut self) -> Result<Option<Value>, ControlError> {
        loop {
            match self.line() {
                Ok(line) if line.get("event").is_some() => return Ok(Some(line)),
                Ok(_) => {}
                Err(ControlError::Connection(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn line(&mut self) -> Result<Value, ControlError> {
        let mut line = Vec::new();
        self.stream.by_ref().take(MAX_ANSWER).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(ControlError::Connection(ErrorKind::UnexpectedEof.into()));
        }
        let strange = || ControlError::Strange(String::from_utf8_lossy(&line).chars().take(100).collect());
        let value: Value = serde_json::from_slice(&line).map_err(|_| strange())?;
        if value.get("version").and_then(Value::as_u64) != Some(VERSION) {
            return Err(strange());
        }
        Ok(value)
    }
}

impl Refusal {
    fn deserialize_from(value: &Value) -> Option<Self> {
        serde_json::from_value(value.clone()).ok()
    }
}
