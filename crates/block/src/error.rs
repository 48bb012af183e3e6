//! What can go wrong with an image, each with the file, and the place in it.

use std::fmt::Display;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use thiserror::Error as ThisError;

/// Why an image cannot be opened, made, or changed.
#[derive(Debug, ThisError)]
pub enum BlockError {
    /// The system refuses.
    #[error("Disk {path} cannot be opened{hint}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What would help, if anything is known.
        hint: &'static str,
        /// The system's reason.
        source: Error,
    },
    /// Neither a regular file nor a block device.
    #[error("Disk {path} is {what}; a regular file or a block device is needed")]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// No whole number of sectors.
    #[error("Disk {path} has {size} bytes, which is {problem}; grow it with: truncate -s {right} {path}")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// What is wrong with that.
        problem: &'static str,
        /// The next size that is right.
        right: u64,
    },
    /// Somebody else has it open.
    #[error("Disk {path} is in use by another process; a disk can be shared only if all open it read-only")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A field of the image's metadata is impossible.
    #[error("Image {path}, offset {offset:#x}: {field} {problem}")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Where the field is, in bytes.
        offset: u64,
        /// The specification's name of the field.
        field: &'static str,
        /// What it holds, and what would be right.
        problem: String,
    },
    /// The image is right, but asks for something that is not offered.
    #[error("Image {path} needs {what}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it would need.
        what: String,
    },
    /// A file the image refers to may not, or cannot, be used.
    #[error("Image {path} refers to {other:?}: {problem}")]
    Reference {
        /// The image.
        path: PathBuf,
        /// What it refers to.
        other: String,
        /// Why that is not used.
        problem: String,
    },
    /// Reading or writing failed.
    #[error("Image {path}: {action} failed")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: Error,
    },
    /// An option or argument is wrong.
    #[error("{what}: {problem}")]
    Option {
        /// Which.
        what: String,
        /// What it is, and what would be right.
        problem: String,
    },
}

impl BlockError {
    /// A wrong field; `problem` goes on the sentence that begins with the field's name.
    pub fn metadata(path: &Path, offset: u64, field: &'static str, problem: impl Display) -> Self {
        BlockError::Metadata { path: path.to_owned(), offset, field, problem: problem.to_string() }
    }

    /// Something an image needs and cannot have.
    pub fn unsupported(path: &Path, what: impl Display) -> Self {
        BlockError::Unsupported { path: path.to_owned(), what: what.to_string() }
    }

    /// A failed read or write.
    pub fn io(path: &Path, action: &'static str, source: Error) -> Self {
        BlockError::Io { path: path.to_owned(), action, source }
    }

    /// A wrong option.
    pub fn option(what: impl Display, problem: impl Display) -> Self {
        BlockError::Option { what: what.to_string(), problem: problem.to_string() }
    }
}

/// On the way of a request, every error is an I/O error; its text and causes are kept.
impl From<BlockError> for Error {
    fn from(error: BlockError) -> Self {
        let kind = match &error {
            BlockError::Open { source, .. } | BlockError::Io { source, .. } => source.kind(),
            BlockError::Metadata { .. } => ErrorKind::InvalidData,
            BlockError::Unsupported { .. } => ErrorKind::Unsupported,
            BlockError::Option { .. } => ErrorKind::InvalidInput,
            _ => ErrorKind::Other,
        };
        Error::new(kind, error)
    }
}
