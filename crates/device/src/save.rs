//! Saved state: self-describing records, one a device.
//!
//! A record is (name, kind, version, payload); the payload is CBOR of the device's own state struct. A
//! machine that restores hands each record to the device of that name and refuses records nobody consumed
//! and devices that got none.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The state of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The device's name in the machine ("serial0").
    pub name: String,
    /// What it is ("uart16550").
    pub kind: String,
    /// Version of the payload's layout.
    pub version: u32,
    /// CBOR of the state struct.
    pub payload: Vec<u8>,
}

/// Why a state cannot be saved or restored.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The record belongs to something else or to another version.
    #[error("State of {name} is {found_kind} version {found_version}; {kind} version {version} is expected")]
    Mismatch {
        /// Device name.
        name: String,
        /// Kind in the record.
        found_kind: String,
        /// Version in the record.
        found_version: u32,
        /// Kind of the device.
        kind: String,
        /// Version the device reads.
        version: u32,
    },
    /// The payload is not what the kind and version promise.
    #[error("State of {name} cannot be read: {reason}")]
    Malformed {
        /// Device name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The device cannot be saved now.
    #[error("State of {name} cannot be saved: {reason}")]
    NotSavable {
        /// Device name.
        name: String,
        /// Why.
        reason: String,
    },
}

impl Record {
    /// Wraps a state struct.
    pub fn new(name: &str, kind: &str, version: u32, state: &impl Serialize) -> Result<Self, SaveError> {
        let mut payload = Vec::new();
        ciborium::into_writer(state, &mut payload)
            .map_err(|error| SaveError::NotSavable { name: name.to_owned(), reason: error.to_string() })?;
        Ok(Record { name: name.to_owned(), kind: kind.to_owned(), version, payload })
    }

    /// The state struct, if kind and version fit.
    pub fn open<S: DeserializeOwned>(&self, kind: &str, version: u32) -> Result<S, SaveError> {
        if self.kind != kind || self.version != version {
            return Err(SaveError::Mismatch {
                name: self.name.clone(),
                found_kind: self.kind.clone(),
                found_version: self.version,
                kind: kind.to_owned(),
                version,
            });
        }
        ciborium::from_reader(self.payload.as_slice()).map_err(|error| self.malformed(error.to_string()))
    }

    /// An error that says what the payload's content violates.
    pub fn malformed(&self, reason: impl Into<String>) -> SaveError {
        SaveError::Malformed { name: self.name.clone(), reason: reason.into() }
    }
}
