//! What can go wrong before there is a disk.

use std::io::Error;
use std::path::PathBuf;
use thiserror::Error as ThisError;

/// Why a logical unit cannot be used as a disk.
#[derive(Debug, ThisError)]
pub enum IscsiError {
    /// No iSCSI URI. The text has no secret.
    #[error(
        "{uri:?} is no iSCSI URI: {problem}; the form is iscsi://[USER[%SECRET]@]HOST[:PORT]/TARGET/LUN[?secret_file=PATH]"
    )]
    Uri {
        /// As written, without the secret.
        uri: String,
        /// What is wrong.
        problem: String,
    },
    /// A file with a secret.
    #[error("The file {path} with the secret cannot be used: {problem}")]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The target is not there, or the connection broke.
    #[error("iSCSI target {target} at {portal}: {action} failed")]
    Connect {
        /// Its name.
        target: String,
        /// Its address.
        portal: String,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: Error,
    },
    /// The target refuses, or says what no target may.
    #[error("iSCSI target {target} at {portal}: {problem}")]
    Target {
        /// Its name.
        target: String,
        /// Its address.
        portal: String,
        /// What it answered.
        problem: String,
    },
    /// The logical unit is no disk, or none that can be used so.
    #[error("Logical unit {lun} of iSCSI target {target}: {problem}")]
    Unit {
        /// Its number.
        lun: u16,
        /// The target's name.
        target: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The host gives no thread.
    #[error("The host cannot give {what}")]
    Host {
        /// What.
        what: &'static str,
        /// The system's reason.
        source: Error,
    },
}
