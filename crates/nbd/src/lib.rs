//! Network block devices (NBD): a server for disks, and a client that is one.
//!
//! The protocol is the fixed newstyle one of the NBD project's `doc/proto.md`; section names in this crate are that
//! document's. A connection begins with the *handshake*, in which the client chooses an export by options, and goes on
//! with the *transmission*: requests and replies, told apart by their cookie.
//!
//! ```text
//! listener ─► handshake ─► transmission ─► Export ─► BlockBackend          (server)
//! BlockBackend calls ─► Client ─► handshake once ─► requests and replies   (client)
//!                 both: Receiver ─► Wire: socket, or TLS over one
//! ```
//!
//! Both sides believe nothing the peer says: lengths have bounds before memory is taken, and what breaks the protocol
//! ends the connection with an error.

mod client;
mod error;
pub mod exercise;
mod protocol;
mod server;
mod tls;
mod uri;
mod wire;

pub use client::Client;
pub use error::NbdError;
pub use server::{Bitmap, Export, Listener, Server, ServerOptions};
pub use tls::ServerTls;
pub use uri::{Location, percent_encoded};
pub use wire::Wire;
