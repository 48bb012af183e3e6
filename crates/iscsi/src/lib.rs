//! Disks of iSCSI targets: an initiator in user space, with no help of the kernel.
//!
//! The protocol is RFC 7143's, the commands inside it are those of SPC-4 and SBC-3; sections named in this crate are
//! theirs. A session has one connection, error recovery level 0, and as many commands under way as the target's window
//! allows.
//!
//! ```text
//! BlockBackend calls ─► Disk ─► Session::submit ─► pump ─► Wire ─► target
//!                         ▲         │ waits                  ▲
//!                         └─────────┴── driver: receives ◄───┘   courier: data that was asked for, pings, deadlines
//! ```
//!
//! A connection that breaks is made again by the session's driver, which takes the old session's place at the target,
//! makes sure that the logical unit is still the same one, repeats the writes that no flush has covered yet, and then
//! sends what was under way. Nothing a target says is believed: lengths have bounds before memory is taken, everything
//! has a deadline, and what breaks the protocol ends the connection with an error that says how.

mod chap;
mod disk;
mod error;
pub mod exercise;
mod identity;
mod login;
mod pdu;
mod scsi;
mod session;
#[cfg(test)]
mod tests;
mod text;
mod uri;
mod wire;

pub use disk::open;
pub use error::IscsiError;
pub use uri::Location;
