//! The process around one machine.
//!
//! [`run`] builds the machine of a [`vm_config::VmConfig`], connects it to its [`console`], and lets the state
//! [`driver`] decide what happens: it is the only owner of the machine's life, and people, [`signals`],
//! clients of the [`control`] socket, a debugger at the [`gdb`] socket and the guest itself only queue requests to it.
//!
//! ```text
//!   signalfd ──┐
//!   Ctrl-] ────┤
//!   control ───┤
//!   gdb ───────┼──> Request queue ──> driver ──> Machine
//!   guest ─────┘                        └──> Outcome ──> exit status
//! ```

pub mod console;
pub mod control;
pub mod disks;
pub mod driver;
pub mod fatal;
pub mod gdb;
mod outcome;
mod run;
pub mod signals;
pub mod socket;
pub mod stats;
pub mod terminal;
mod thread;

pub use outcome::{Outcome, VmmError, exit_code};
pub use run::{RunOptions, run};
