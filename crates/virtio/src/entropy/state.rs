//! What is saved of an entropy device: nothing, but that it is one.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "virtio-rng";
/// Version of its layout.
pub const VERSION: u32 = 1;

/// The state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyState {}
