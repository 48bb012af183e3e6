//! Connections as both sides use them: one thread receives at a time, any thread sends whole messages.

use crate::tls::{ServerTls, TlsWire};
use parking_lot::Mutex;
use std::io::{Error, ErrorKind, IoSlice, Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection.
pub trait Wire: Send + Sync {
    /// Receives at least a byte; 0 when the peer has closed.
    fn receive(&self, buffer: &mut [u8]) -> Result<usize>;
    /// Sends all buffers, nothing of other threads between them.
    fn send(&self, buffers: &mut [IoSlice<'_>]) -> Result<()>;
    /// Receiving fails after this moment; `None`: it waits as long as it takes.
    fn set_deadline(&self, deadline: Option<Instant>) -> Result<()>;
    /// Lets whoever receives find the end; what is sent still goes out.
    fn close(&self);
    /// Begins TLS as the server; nothing may be sent or received here any more.
    fn start_tls(&self, tls: &ServerTls) -> Result<Arc<dyn Wire>>;
}

/// A socket.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix domain.
    Unix(UnixStream),
}

macro_rules! each {
    ($stream:expr, $socket:ident => $do:expr) => {
        match $stream {
            Stream::Tcp($socket) => $do,
            Stream::Unix($socket) => $do,
        }
    };
}

impl Stream {
    pub fn try_clone(&self) -> Result<Self> {
        Ok(match self {
            Stream::Tcp(socket) => Stream::Tcp(socket.try_clone()?),
            Stream::Unix(socket) => Stream::Unix(socket.try_clone()?),
        })
    }

    pub fn set_read_timeout(&self, time: Option<Duration>) -> Result<()> {
        each!(self, socket => socket.set_read_timeout(time))
    }

    /// A peer that takes nothing for so long is gone. `None`: wait for it.
    pub fn set_write_timeout(&self, time: Option<Duration>) -> Result<()> {
        each!(self, socket => socket.set_write_timeout(time))
    }

    pub fn shutdown(&self, how: Shutdown) {
        // A peer that has gone already is as good.
        let _ = each!(self, socket => socket.shutdown(how));
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        each!(*self, socket => (&mut &*socket).read(buffer))
    }
}

impl Write for &Stream {
    fn write(&mut self, buffer: &[u8]) -> Result<usize> {
        each!(*self, socket => (&mut &*socket).write(buffer))
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> Result<usize> {
        each!(*self, socket => (&mut &*socket).write_vectored(buffers))
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A socket with the moment until which it receives.
#[derive(Debug)]
pub struct TimedStream {
    pub stream: Stream,
    deadline: Mutex<Option<Instant>>,
}

impl TimedStream {
    pub fn new(stream: Stream) -> Self {
        TimedStream { stream, deadline: Mutex::new(None) }
    }

    pub fn set_deadline(&self, deadline: Option<Instant>) -> Result<()> {
        *self.deadline.lock() = deadline;
        if deadline.is_none() {
            self.stream.set_read_timeout(None)?;
        }
        Ok(())
    }

    pub fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let deadline = *self.deadline.lock();
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Error::new(ErrorKind::TimedOut, "the peer takes too long"));
                }
                self.stream.set_read_timeout(Some(left))?;
            }
            match (&self.stream).read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(Error::new(ErrorKind::TimedOut, "the peer takes too long"));
                }
                result => return result,
            }
        }
    }
}

/// A socket as it is.
pub struct PlainWire {
    socket: TimedStream,
    sending: Mutex<()>,
}

impl PlainWire {
    pub fn new(stream: Stream) -> Self {
        PlainWire { socket: TimedStream::new(stream), sending: Mutex::new(()) }
    }
}

impl Wire for PlainWire {
    fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        self.socket.receive(buffer)
    }

    fn send(&self, mut buffers: &mut [IoSlice<'_>]) -> Result<()> {
        let _turn = self.sending.lock();
        IoSlice::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            match (&self.socket.stream).write_vectored(buffers) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => IoSlice::advance_slices(&mut buffers, sent),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn set_deadline(&self, deadline: Option<Instant>) -> Result<()> {
        self.socket.set_deadline(deadline)
    }

    fn close(&self) {
        self.socket.stream.shutdown(Shutdown::Read);
    }

    fn start_tls(&self, tls: &ServerTls) -> Result<Arc<dyn Wire>> {
        let socket = TimedStream::new(self.socket.stream.try_clone()?);
        socket.set_deadline(*self.socket.deadline.lock())?;
        Ok(Arc::new(TlsWire::accept(socket, tls)?))
    }
}

/// Bytes that are received at once.
const BUFFER: usize = 64 << 10;

/// The receiving end with what came early.
pub struct Receiver {
    wire: Arc<dyn Wire>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Receiver {
    pub fn new(wire: Arc<dyn Wire>) -> Self {
        Receiver { wire, buffer: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0 }
    }

    pub fn wire(&self) -> &Arc<dyn Wire> {
        &self.wire
    }

    /// Bytes that are here already.
    pub fn ready(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The next bytes. `Ok(false)`: the peer has closed, before the first of them.
    pub fn exact_or_end(&mut self, bytes: &mut [u8]) -> Result<bool> {
        let mut done = self.take(bytes);
        while done < bytes.len() {
            let rest = &mut bytes[done..];
            let got = if rest.len() >= BUFFER {
                self.wire.receive(rest)?
            } else {
                (self.start, self.end) = (0, 0);
                self.end = self.wire.receive(&mut self.buffer)?;
                self.take(rest)
            };
            match (got, done) {
                (0, 0) => return Ok(false),
                (0, _) => return Err(ErrorKind::UnexpectedEof.into()),
                _ => done += got,
            }
        }
        Ok(true)
    }

    /// The next bytes; the end before them is an error.
    pub fn exact(&mut self, bytes: &mut [u8]) -> Result<()> {
        match self.exact_or_end(bytes)? {
            true => Ok(()),
            false if bytes.is_empty() => Ok(()),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The next bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Drops bytes.
    pub fn skip(&mut self, mut len: u64) -> Result<()> {
        let mut sink = [0; 4096];
        while len > 0 {
            let part = len.min(sink.len() as u64);
            self.exact(&mut sink[..part as usize])?;
            len -= part;
        }
        Ok(())
    }

    fn take(&mut self, bytes: &mut [u8]) -> usize {
        let len = (self.end - self.start).min(bytes.len());
        bytes[..len].copy_from_slice(&self.buffer[self.start..self.start + len]);
        self.start += len;
        len
    }
}
