//! The server: sockets, connections, and the end.

mod execute;
mod export;
mod handshake;
mod output;
mod transmission;

pub use export::{Bitmap, Export};

use crate::error::NbdError;
use crate::tls::ServerTls;
use crate::wire::{PlainWire, Stream, Wire};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest time a client takes to choose its export.
const HANDSHAKE_TIME: Duration = Duration::from_secs(20);
/// Longest time clients get to take their last replies when the server ends.
const FAREWELL_TIME: Duration = Duration::from_secs(10);

/// Where clients come in.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A socket in the file system, whose name goes when the server ends.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens on a TCP port.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn tcp(address: &str, port: u16) -> std::result::Result<Self, NbdError> {
        let failed = |source| NbdError::Listen { address: format!("{address}:{port}"), source };
        let listener = TcpListener::bind((address, port)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Listener::Tcp(listener))
    }

    /// Listens on a Unix socket; one that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// When the path cannot be had.
    pub fn unix(path: &Path) -> std::result::Result<Self, NbdError> {
        let failed = |source| NbdError::Listen { address: path.display().to_string(), source };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                match UnixStream::connect(path) {
                    Err(gone) if gone.kind() == ErrorKind::ConnectionRefused => {
                        std::fs::remove_file(path).map_err(failed)?;
                    }
                    _ => return Err(failed(error)),
                }
                UnixListener::bind(path).map_err(failed)?
            }
            result => result.map_err(failed)?,
        };
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Listener::Unix(listener, path.to_owned()))
    }

    /// The TCP port; `None` for a Unix socket.
    pub fn port(&self) -> Option<u16> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Listener::Unix(..) => None,
        }
    }

    fn accept(&self) -> Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (socket, _) = listener.accept()?;
                // Replies are whole messages: nothing to wait for.
                socket.set_nodelay(true)?;
                socket.set_nonblocking(false)?;
                Ok(Stream::Tcp(socket))
            }
            Listener::Unix(listener, _) => {
                let (socket, _) = listener.accept()?;
                socket.set_nonblocking(false)?;
                Ok(Stream::Unix(socket))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What is served, and to whom.
pub struct ServerOptions {
    /// The disks; names differ.
    pub exports: Vec<Arc<Export>>,
    /// Clients must use TLS.
    pub tls: Option<ServerTls>,
    /// Most connections at a time; others wait. With 1, clients are told not to open a second one.
    pub connections: usize,
    /// Most requests of a connection that are worked on at a time, at least 1.
    pub in_flight: usize,
    /// Goes on after the last client has left.
    pub persistent: bool,
}

/// What all threads of a server know.
pub(crate) struct Shared {
    options: ServerOptions,
    stopping: AtomicBool,
    /// Ends the main thread's wait.
    wake: OwnedFd,
    connections: Mutex<Connections>,
    /// A connection has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Connections {
    next: u64,
    sockets: BTreeMap<u64, Stream>,
    /// A client has used an export.
    served: bool,
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn wake(&self) {
        // It can fail only when it was woken 2^64 times.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// A client's whole visit. Whether it has used an export.
    fn visit(&self, wire: Arc<dyn Wire>) -> bool {
        let begin = || {
            wire.set_deadline(Some(Instant::now() + HANDSHAKE_TIME))?;
            let agreed = handshake::negotiate(self, wire)?;
            if let Some(agreed) = &agreed {
                agreed.receiver.wire().set_deadline(None)?;
            }
            Ok(agreed)
        };
        match begin() {
            Ok(Some(agreed)) => {
                if let Err(error) = transmission::serve(self, agreed) {
                    tracing::warn!("an NBD connection broke: {error}");
                }
                true
            }
            Ok(None) => false,
            Err(error) => {
                let error: Error = error;
                tracing::warn!("an NBD client was not let in: {error}");
                false
            }
        }
    }
}

/// A connection's place among those that are possible.
struct Place {
    shared: Arc<Shared>,
    number: u64,
    served: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.shared.connections.lock();
        connections.sockets.remove(&self.number);
        connections.served |= self.served;
        self.shared.ended.notify_all();
        self.shared.wake();
    }
}

/// A server.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

impl Server {
    /// A server that does not listen yet.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(options: ServerOptions) -> std::result::Result<Self, NbdError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|source| NbdError::Host { what: "a descriptor", source: source.into() })?;
        Ok(Server(Arc::new(Shared {
            options,
            stopping: AtomicBool::new(false),
            wake,
            connections: Mutex::default(),
            ended: Condvar::new(),
        })))
    }

    /// Ends [`Server::run`]: requests that are under way are done, others refused. From any thread.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.wake();
    }

    /// Serves a single connection on the calling thread.
    pub fn serve_wire(&self, wire: Arc<dyn Wire>) {
        self.0.visit(wire);
    }

    /// Serves until it is told to stop, or, unless persistent, the last client has left. Flushes all exports then.
    ///
    /// # Errors
    /// When the host fails, or an export cannot be flushed.
    pub fn run(&self, listeners: &[Listener]) -> Result<()> {
        let accepted = self.accept(listeners);
        self.farewell();
        for export in self.0.options.exports.iter().filter(|export| !export.is_read_only()) {
            export.disk.flush()?;
        }
        accepted
    }

    fn accept(&self, listeners: &[Listener]) -> Result<()> {
        let shared = &self.0;
        loop {
            let full = {
                let connections = shared.connections.lock();
                let count = connections.sockets.len();
                if shared.is_stopping() || (connections.served && count == 0 && !shared.options.persistent) {
                    return Ok(());
                }
                count >= shared.options.connections
            };
            let mut waits = vec![PollFd::new(&shared.wake, PollFlags::IN)];
            if !full {
                waits.extend(listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
            }
            match poll(&mut waits, None) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
            drop(waits);
            // Whether or not it was written to: it does not block.
            let _ = rustix::io::read(&shared.wake, &mut [0_u8; 8]);
            for (listener, _) in listeners.iter().zip(ready.iter().skip(1)).filter(|(_, ready)| **ready) {
                self.welcome(listener);
            }
        }
    }

    /// Lets a client in, if one is still there.
    fn welcome(&self, listener: &Listener) {
        let mut connections = self.0.connections.lock();
        if connections.sockets.len() >= self.0.options.connections {
            return;
        }
        let socket = match listener.accept() {
            Ok(socket) => socket,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => {
                tracing::warn!("an NBD client could not connect: {error}");
                // Out of descriptors, most likely: without a pause, this would be all the server does.
                std::thread::sleep(Duration::from_millis(50));
                return;
            }
        };
        let Ok(copy) = socket.try_clone() else { return };
        let number = connections.next;
        connections.next += 1;
        connections.sockets.insert(number, copy);
        drop(connections);
        let place = Place { shared: self.0.clone(), number, served: false };
        let visit = move || {
            let mut place = place;
            place.served = place.shared.visit(Arc::new(PlainWire::new(socket)));
        };
        // Without a thread, the place is free again and the client sees its connection closed.
        if let Err(error) = std::thread::Builder::new().name("nbd".to_owned()).spawn(visit) {
            tracing::warn!("an NBD client got no thread: {error}");
        }
    }

    /// Lets the connections end: first nothing is received any more, and after a while nothing is sent either.
    fn farewell(&self) {
        self.0.stopping.store(true, Ordering::Release);
        let mut connections = self.0.connections.lock();
        for socket in connections.sockets.values() {
            socket.shutdown(std::net::Shutdown::Read);
        }
        let until = Instant::now() + FAREWELL_TIME;
        while !connections.sockets.is_empty() {
            if self.0.ended.wait_until(&mut connections, until).timed_out() {
                break;
            }
        }
        for socket in connections.sockets.values() {
            socket.shutdown(std::net::Shutdown::Both);
        }
        while !connections.sockets.is_empty() {
            self.0.ended.wait(&mut connections);
        }
    }
}
