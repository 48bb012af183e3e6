//! The control socket: other programs, and `vireo ctl`, ask for what happens to a running machine.
//!
//! [`server`] gives each client two threads, one that reads requests and one that writes lines; neither touches the
//! machine: requests go to the state [`crate::driver`], which answers. [`protocol`] is what is said, [`client`] says
//! it from the other side. Who can connect can do everything, so the socket is its owner's alone.

pub mod client;
pub mod disk_commands;
pub mod protocol;
pub mod server;
