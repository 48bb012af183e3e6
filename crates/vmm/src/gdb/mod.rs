//! The debugger's way in: GDB's remote protocol at a socket, one debugger at a time.
//!
//! The protocol is the `gdbstub` crate's. What the debugger wants is asked of the [`driver`](crate::driver), which owns
//! the machine's life; stops come back through a [`commands::Bell`].
//!
//! | file | holds |
//! |---|---|
//! | [`session`] | a debugger that is connected |
//! | [`target`] | the machine in the protocol's words |
//! | [`registers`], [`xsave`] | which registers there are, and where |
//! | [`monitor`] | `monitor` commands |
//! | [`commands`] | what is asked of the driver |

pub mod commands;
mod monitor;
mod registers;
mod session;
mod target;
mod xsave;

use crate::VmmError;
use crate::driver::Request;
use crate::socket::Listener;
use session::{Stream, serve};
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Where debuggers connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GdbAddress {
    /// A Unix socket, for its owner only.
    Unix(PathBuf),
    /// `HOST:PORT`. Whoever reaches it owns the guest.
    Tcp(String),
}

/// The debugger's socket. Text: `unix:PATH[,wait]` or `tcp:HOST:PORT[,wait]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GdbOptions {
    /// Where it listens.
    pub address: GdbAddress,
    /// The guest stands before its first instruction until a debugger lets it run.
    pub wait: bool,
}

impl FromStr for GdbOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, wait) = text.strip_suffix(",wait").map_or((text, false), |address| (address, true));
        let address = match address.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => GdbAddress::Unix(path.into()),
            Some(("tcp", place)) if has_port(place) => GdbAddress::Tcp(place.to_owned()),
            _ => return Err("unix:PATH or tcp:HOST:PORT is needed, perhaps with ,wait".to_owned()),
        };
        Ok(GdbOptions { address, wait })
    }
}

fn has_port(place: &str) -> bool {
    place.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

impl fmt::Display for GdbAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GdbAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            GdbAddress::Tcp(place) => write!(f, "tcp:{place}"),
        }
    }
}

enum Door {
    Unix(Listener),
    Tcp(TcpListener),
}

impl Door {
    fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Door::Unix(listener) => Stream::Unix(listener.socket.accept()?.0),
            Door::Tcp(listener) => {
                let stream = listener.accept()?.0;
                // Packets are small and wait for each other.
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        })
    }
}

/// The listening side. A Unix socket's path goes away with it.
pub struct GdbServer(Arc<Door>);

impl GdbServer {
    /// Listens; debuggers are served from [`GdbServer::start`] on.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(address: &GdbAddress) -> Result<Self, VmmError> {
        let door = match address {
            GdbAddress::Unix(path) => Door::Unix(Listener::bind(path)?),
            GdbAddress::Tcp(place) => Door::Tcp(
                TcpListener::bind(place)
                    .map_err(|source| VmmError::Listen { place: place.clone(), source })?,
            ),
        };
        Ok(GdbServer(Arc::new(door)))
    }

    /// Serves one debugger after the other, on a thread of its own.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn start(&self, requests: Sender<Request>) -> io::Result<()> {
        let door = self.0.clone();
        crate::thread::spawn("gdb", move || {
            loop {
                match door.accept() {
                    Ok(stream) => serve(stream, &requests),
                    // Out of descriptors, perhaps: others may close some.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        })
    }
}

impl Drop for GdbServer {
    fn drop(&mut self) {
        if let Door::Unix(listener) = self.0.as_ref() {
            listener.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_shown() {
        for (text, wait) in
            [("unix:/tmp/g", false), ("tcp:127.0.0.1:1234", false), ("tcp:[::1]:9,wait", true)]
        {
            let options: GdbOptions = text.parse().unwrap();
            assert_eq!(options.wait, wait);
            assert_eq!(options.address.to_string(), text.trim_end_matches(",wait"));
        }
        for text in ["", "unix:", "tcp:1234", "tcp::1234", "tcp:host:port", "1234", "stdio", "unix:,wait"] {
            assert!(text.parse::<GdbOptions>().is_err(), "{text}");
        }
    }
}
