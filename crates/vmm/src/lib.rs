//! The process around one machine.
//!
//! [`run`] builds the machine of a [`vm_config::VmConfig`], connects it to its [`console`], and lets the state
//! [`driver`] decide what happens: it is the only owner of the machine's life, and people, [`signals`] and the
//! guest itself only queue requests to it.
//!
//! ```text
//!   signalfd ──┐
//!   Ctrl-] ────┼──> Request queue ──> driver ──> Machine
//!   guest ─────┘                        └──> Outcome ──> exit status
//! ```

pub mod console;
pub mod driver;

mod outcome;
mod run;
pub mod signals;
mod stats;
mod terminal;

pub use outcome::{Outcome, VmmError, exit_code};
pub use run::{RunOptions, run};
