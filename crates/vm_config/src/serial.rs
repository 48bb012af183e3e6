//! Where the serial port leads.

use crate::ConfigError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The other end of the first serial port. Text: `stdio`, `pty`, `unix:PATH`, `file:PATH`, `none`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SerialConfig {
    /// This process's terminal.
    #[default]
    Stdio,
    /// A new pseudo-terminal; its path is printed.
    Pty,
    /// A listening Unix socket, for one client at a time.
    Unix(PathBuf),
    /// A file that takes the output.
    File(PathBuf),
    /// Nowhere.
    None,
}

impl FromStr for SerialConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(SerialConfig::Stdio),
            None if text == "pty" => Ok(SerialConfig::Pty),
            None if text == "none" => Ok(SerialConfig::None),
            Some(("unix", path)) if !path.is_empty() => Ok(SerialConfig::Unix(path.into())),
            Some(("file", path)) if !path.is_empty() => Ok(SerialConfig::File(path.into())),
            _ => {
                let reason = "one of stdio, pty, unix:PATH, file:PATH, none is needed";
                Err(ConfigError::value("Serial port", text, reason))
            }
        }
    }
}

impl fmt::Display for SerialConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SerialConfig::Stdio => f.write_str("stdio"),
            SerialConfig::Pty => f.write_str("pty"),
            SerialConfig::Unix(path) => write!(f, "unix:{}", path.display()),
            SerialConfig::File(path) => write!(f, "file:{}", path.display()),
            SerialConfig::None => f.write_str("none"),
        }
    }
}

impl TryFrom<String> for SerialConfig {
    type Error = ConfigError;
    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<SerialConfig> for String {
    fn from(serial: SerialConfig) -> String {
        serial.to_string()
    }
}
