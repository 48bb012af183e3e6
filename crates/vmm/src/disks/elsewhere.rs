//! Disks that are no files of this host, by their URIs.

use block::BlockBackend;
use iscsi::IscsiError;
use nbd::NbdError;
use std::path::Path;
use std::sync::Arc;
use thiserror::Error;

/// A disk whose URI stands in the place of a path.
#[derive(Clone, Debug)]
pub enum DiskElsewhere {
    /// The export of an NBD server.
    Export(nbd::Location),
    /// A logical unit of an iSCSI target.
    Unit(iscsi::Location),
}

/// Why a disk that is no file of this host cannot be used.
#[derive(Debug, Error)]
pub enum ElsewhereError {
    /// On an NBD server.
    #[error(transparent)]
    Export(#[from] NbdError),
    /// On an iSCSI target.
    #[error(transparent)]
    Unit(#[from] IscsiError),
}

impl DiskElsewhere {
    /// Reads a URI; `None` for a path.
    ///
    /// # Errors
    /// When the text begins like a URI of one of these kinds and is none.
    pub fn parse(path: &Path) -> Result<Option<Self>, ElsewhereError> {
        let Some(text) = path.to_str() else { return Ok(None) };
        if let Some(unit) = iscsi::Location::parse(text)? {
            return Ok(Some(DiskElsewhere::Unit(unit)));
        }
        Ok(nbd::Location::parse(text)?.map(DiskElsewhere::Export))
    }

    /// Connects.
    ///
    /// # Errors
    /// When the server is not there, refuses, or offers only reading and `read_only` is not set.
    pub fn connect(&self, read_only: bool) -> Result<Arc<dyn BlockBackend>, ElsewhereError> {
        Ok(match self {
            DiskElsewhere::Export(location) => Arc::new(nbd::Client::connect(location, read_only)?),
            DiskElsewhere::Unit(location) => iscsi::open(location, read_only)?,
        })
    }
}
