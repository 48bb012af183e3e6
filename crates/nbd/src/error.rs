//! What can go wrong.

use std::io::Error;
use std::path::PathBuf;
use thiserror::Error as ThisError;

/// Why a server cannot begin, or a client cannot use an export.
#[derive(Debug, ThisError)]
pub enum NbdError {
    /// No socket.
    #[error("NBD socket {address} cannot be opened")]
    Listen {
        /// Where.
        address: String,
        /// The system's reason.
        source: Error,
    },
    /// A certificate or key.
    #[error("TLS file {path}: {problem}")]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// TLS cannot be used as it was asked for.
    #[error("TLS cannot be used: {problem}")]
    Tls {
        /// Why.
        problem: String,
    },
    /// No NBD URI.
    #[error(
        "{uri:?} is no NBD URI: {problem}; examples: nbd://host:10809/name, nbd+unix:///name?socket=PATH"
    )]
    Uri {
        /// As written.
        uri: String,
        /// What is wrong.
        problem: String,
    },
    /// The server is not there, or the connection broke.
    #[error("NBD server {server}: {action} failed")]
    Connect {
        /// Its address.
        server: String,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: Error,
    },
    /// The server refuses, or says what no server may.
    #[error("NBD server {server}: {problem}")]
    Server {
        /// Its address.
        server: String,
        /// What it answered.
        problem: String,
    },
    /// The host gives no thread or descriptor.
    #[error("The host cannot give {what}")]
    Host {
        /// What.
        what: &'static str,
        /// The system's reason.
        source: Error,
    },
}
