//! A debugger that is connected.
//!
//! While the guest runs, the thread waits for the debugger and for the [`Bell`](super::commands::Bell) at once. When
//! the debugger goes, in whatever way, the guest runs on without breakpoints.

use super::target::{DebugTarget, SessionError};
use crate::driver::Request;
use crate::gdb::commands::{Bell, Stopped};
use gdbstub::conn::Connection;
use gdbstub::stub::GdbStub;
use gdbstub::stub::state_machine::GdbStubStateMachine as Machine;
use rustix::event::{PollFd, PollFlags, poll};
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Bytes of the longest packet.
const PACKET: usize = 16 << 10;
/// How long a debugger may take to read an answer.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// The debugger's connection.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
        })
    }

    fn limit(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.set_write_timeout(Some(WRITE_TIME)),
            Stream::Tcp(stream) => stream.set_write_timeout(Some(WRITE_TIME)),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => Write::write_all(stream, bytes),
            Stream::Tcp(stream) => Write::write_all(stream, bytes),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }
}

/// Collects a packet: they are written byte by byte.
struct Packets {
    stream: Stream,
    bytes: Vec<u8>,
}

impl Connection for Packets {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.bytes.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = self.stream.send(&self.bytes);
        self.bytes.clear();
        sent
    }
}

/// Serves a debugger until it goes.
pub(super) fn serve(stream: Stream, requests: &Sender<Request>) {
    let bell = match Bell::new() {
        Ok(bell) => Arc::new(bell),
        Err(error) => return tracing::warn!(%error, "no descriptor for a debugger"),
    };
    let mut target = match DebugTarget::attach(requests.clone(), bell) {
        Ok(target) => target,
        Err(error) => return tracing::warn!(%error, "a debugger cannot attach"),
    };
    tracing::info!("a debugger holds the guest");
    if let Err(error) = talk(stream, &mut target) {
        tracing::info!(error, "the debugger's connection ended");
    }
    target.detach();
}

fn talk(mut stream: Stream, target: &mut DebugTarget) -> Result<(), Box<dyn Error>> {
    stream.limit()?;
    let packets = Packets { stream: stream.try_clone()?, bytes: Vec::new() };
    let stub = GdbStub::builder(packets).packet_buffer_size(PACKET).build()?;
    let mut machine = stub.run_state_machine(target)?;
    let mut received = [0; 4096];
    let (mut at, mut end) = (0, 0);
    loop {
        let running = matches!(machine, Machine::Running(_));
        if running
            && at == end
            && let Some(stopped) = wait(&stream, target)?
        {
            machine = match machine {
                Machine::Running(inner) => inner.report_stop(target, target.reason(stopped))?,
                other => other,
            };
            continue;
        }
        machine = match machine {
            Machine::CtrlCInterrupt(inner) => {
                let reason = target.interrupt()?;
                inner.interrupt_handled(target, Some(reason))?
            }
            Machine::Disconnected(_) => return Ok(()),
            machine => {
                if at == end {
                    (at, end) = (0, stream.receive(&mut received)?);
                    if end == 0 {
                        return Err(Box::new(io::Error::from(io::ErrorKind::UnexpectedEof)));
                    }
                }
                at += 1;
                match machine {
                    Machine::Idle(inner) => inner.incoming_data(target, received[at - 1])?,
                    Machine::Running(inner) => inner.incoming_data(target, received[at - 1])?,
                    other => other,
                }
            }
        };
    }
}

/// Waits until the guest stops, or the debugger says something.
fn wait(stream: &Stream, target: &DebugTarget) -> Result<Option<Stopped>, SessionError> {
    loop {
        if let Some(stopped) = target.bell.hear() {
            return Ok(Some(stopped));
        }
        let mut ready = [PollFd::new(stream, PollFlags::IN), PollFd::new(&target.bell, PollFlags::IN)];
        let _ = poll(&mut ready, None);
        if !ready[0].revents().is_empty() {
            return Ok(None);
        }
    }
}
