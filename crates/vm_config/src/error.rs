//! Refusals.

use std::path::PathBuf;
use thiserror::Error;

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A value out of range, or not of its form.
    #[error("{option} {found:?} is not usable: {reason}")]
    Value {
        /// Which option or key.
        option: &'static str,
        /// What was given.
        found: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Something necessary is not given.
    #[error("No {option} is given: {reason}")]
    Missing {
        /// Which option or key.
        option: &'static str,
        /// How to give it.
        reason: &'static str,
    },
    /// A machine file cannot be read.
    #[error("Machine file {} cannot be read", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A machine file does not say what a machine file says.
    #[error("Machine file {}, line {line}: {reason}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong; for an unknown key, the known ones.
        reason: String,
    },
    /// A machine file that is neither TOML nor JSON by its name.
    #[error("Machine file {} ends neither in .toml nor in .json; name it by its format", .path.display())]
    Format {
        /// Which file.
        path: PathBuf,
    },
}

impl ConfigError {
    pub(crate) fn value(option: &'static str, found: impl Into<String>, reason: impl Into<String>) -> Self {
        ConfigError::Value { option, found: found.into(), reason: reason.into() }
    }
}
