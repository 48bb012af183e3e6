//! What a person asks for: one machine, in the same structs whether it comes from options, a file or an API.
//!
//! ```toml
//! name = "web"
//! kernel = "vmlinuz"
//! initrd = "initrd.img"
//! append = "console=ttyS0 root=/dev/vda"
//! memory = "2G"
//! cpus = 2
//! serial = "stdio"
//!
//! [[disks]]
//! path = "root.raw"
//! serial = "root"
//! ```
//!
//! Texts are parsed by [`std::str::FromStr`], files by [`VmConfig::from_file`], and [`VmConfig::validate`] checks the
//! ranges of what either gave.

mod disk;
mod error;
mod file;
mod machine;
mod serial;
mod size;
mod throttle;
mod trace;

pub use disk::{DiskAio, DiskCache, DiskConfig, DiskErrorAction, DiskFormat, MAX_DISK_QUEUES};
pub use error::ConfigError;
pub use machine::{
    DEFAULT_DEBUG_EXIT_PORT, EngineChoice, EntryChoice, MAX_CPUS, MAX_MEMORY, MAX_TRANSLATION_CACHE,
    MIN_MEMORY, MIN_TRANSLATION_CACHE, SoftwareTier, VmConfig,
};
pub use serial::SerialConfig;
pub use size::ByteSize;
pub use throttle::{ByteRate, IoRate, MAX_BURST, RequestRate, ThrottleConfig};
pub use trace::{TraceConfig, TraceFrom};
