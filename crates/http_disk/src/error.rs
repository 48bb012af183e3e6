//! What can go wrong with a web server.

use thiserror::Error;

/// An error of a disk on a web server. Its text names the address.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The server was not reached, or the connection broke.
    #[error("Cannot read {address}")]
    Connection {
        /// The file.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The server has no range requests.
    #[error("The server of {address} sends files only as a whole (no range requests); download it first")]
    NoRanges {
        /// The file.
        address: String,
    },
    /// The file is not the one that was opened any more.
    #[error("{address} has changed on the server since it was opened; open it again")]
    Changed {
        /// The file.
        address: String,
    },
    /// The server answers something else than was asked for.
    #[error("The server of {address} {problem}")]
    Server {
        /// The file.
        address: String,
        /// What it does.
        problem: String,
    },
}
