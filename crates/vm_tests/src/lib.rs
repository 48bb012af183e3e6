//! Guests booted through the public interface: the `vireo` program and its command line.
//!
//! A [`TestVm`] is one `vireo run` process whose guest's serial port is on its standard streams. Tests say what
//! they wait for and what must come of it; they know nothing of the crates underneath.
//!
//! `cargo xtask test` builds the program and the guests and names them in the environment: `VIREO_BIN` and
//! `VIREO_GUESTS` (see `xtask/src/guests/mod.rs`). Without them [`Material::find`] gives nothing and the tests
//! say that they were skipped.

mod debian;
mod material;
mod shell;
mod terminal;
mod test_vm;
mod tiny_guest;

pub use debian::{debian_from, debian_up_and_down};
pub use material::{LegacyGuest, Material};
pub use rustix::process::Signal;
pub use shell::Shell;
pub use terminal::{OnTerminal, Terminal};
pub use test_vm::{Outcome, TestVm};
pub use tiny_guest::TinyGuest;
