//! Connections: bytes, and the protocol's units of a header and data (RFC 7143, 11.2).

use crate::pdu::{HEADER, Header};
use crate::uri::Portal;
use block::Crc32c;
use std::io::{Error, ErrorKind, IoSlice, Read, Result, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection. All may be called from several threads; only one at a time receives, and one sends.
pub(crate) trait Wire: Send + Sync {
    /// Receives some bytes; 0 at the end.
    fn receive(&self, buffer: &mut [u8]) -> Result<usize>;
    /// Sends all.
    fn send(&self, buffers: &mut [IoSlice<'_>]) -> Result<()>;
    /// Ends it; whoever waits in `receive` comes back.
    fn close(&self);
}

/// Makes connections.
pub(crate) trait Dialer: Send + Sync {
    /// Makes one, and lets nothing wait longer than `patience`.
    fn dial(&self, portal: &Portal, patience: Duration) -> Result<Arc<dyn Wire>>;
}

/// Makes connections over TCP.
pub(crate) struct Tcp;

struct TcpWire {
    stream: TcpStream,
    patience: Duration,
}

impl Dialer for Tcp {
    fn dial(&self, portal: &Portal, patience: Duration) -> Result<Arc<dyn Wire>> {
        let mut error = Error::new(ErrorKind::NotFound, "the host's name has no address");
        for address in (portal.host.as_str(), portal.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, patience) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_write_timeout(Some(patience))?;
                    return Ok(Arc::new(TcpWire { stream, patience }));
                }
                Err(refusal) => error = refusal,
            }
        }
        Err(error)
    }
}

impl Wire for TcpWire {
    fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match (&self.stream).read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn send(&self, mut buffers: &mut [IoSlice<'_>]) -> Result<()> {
        let begin = Instant::now();
        while !buffers.is_empty() {
            match (&self.stream).write_vectored(buffers) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => IoSlice::advance_slices(&mut buffers, sent),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            // A peer that takes a byte now and then is no peer.
            if begin.elapsed() > self.patience {
                return Err(ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    fn close(&self) {
        // Who has closed it already did what is wanted.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Which parts have checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    pub header: bool,
    pub data: bool,
}

fn crc(parts: &[&[u8]]) -> [u8; 4] {
    let mut crc = Crc32c::default();
    parts.iter().for_each(|part| crc.add(part));
    // The checksum's lowest byte goes first (RFC 7143, 13.1 and appendix A.4).
    crc.value().to_le_bytes()
}

fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// Sends a header with its data.
pub(crate) fn send(wire: &dyn Wire, digests: Digests, header: &Header, data: &[u8]) -> Result<()> {
    let header_crc = digests.header.then(|| crc(&[&header.0]));
    let pad = &[0; 3][..padding(data.len())];
    let data_crc = (digests.data && !data.is_empty()).then(|| crc(&[data, pad]));
    let mut buffers = [
        IoSlice::new(&header.0),
        IoSlice::new(header_crc.as_ref().map_or(&[], |crc| crc.as_slice())),
        IoSlice::new(data),
        IoSlice::new(pad),
        IoSlice::new(data_crc.as_ref().map_or(&[], |crc| crc.as_slice())),
    ];
    wire.send(&mut buffers)
}

/// The receiving half of a connection.
pub(crate) struct Receiver {
    wire: Arc<dyn Wire>,
    /// Longest data of one header that are taken, in bytes.
    longest: usize,
    pub digests: Digests,
    buffer: Vec<u8>,
    /// What of the buffer is not used yet.
    filled: std::ops::Range<usize>,
}

/// Bytes that are received at once where less is needed.
const BUFFER: usize = 16 << 10;

impl Receiver {
    /// Of a connection whose headers come with at most `longest` bytes of data.
    pub fn new(wire: Arc<dyn Wire>, longest: usize) -> Self {
        Receiver { wire, longest, digests: Digests::default(), buffer: vec![0; BUFFER], filled: 0..0 }
    }

    fn exact(&mut self, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let have = self.buffer.get(self.filled.clone()).unwrap_or_default();
            let len = have.len().min(out.len());
            let (first, rest) = out.split_at_mut(len);
            first.copy_from_slice(&have[..len]);
            self.filled.start += len;
            out = rest;
            if out.len() >= BUFFER {
                match self.wire.receive(out)? {
                    0 => return Err(ended()),
                    len => out = out.get_mut(len..).unwrap_or_default(),
                }
            } else if !out.is_empty() {
                match self.wire.receive(&mut self.buffer)? {
                    0 => return Err(ended()),
                    len => self.filled = 0..len.min(BUFFER),
                }
            }
        }
        Ok(())
    }

    /// Receives a header.
    pub fn header(&mut self) -> Result<Header> {
        let mut bytes = [0; HEADER];
        self.exact(&mut bytes)?;
        let header = Header(bytes);
        let mut more = vec![0; header.more_headers()];
        self.exact(&mut more)?;
        if self.digests.header {
            self.check(&[&bytes, &more], "header")?;
        }
        if header.data_len() > self.longest {
            return Err(wrong("the target sends more data at once than it was told that we take"));
        }
        Ok(header)
    }

    /// Receives the data that follow a header, all of `out`.
    pub fn data_into(&mut self, out: &mut [u8]) -> Result<()> {
        self.exact(out)?;
        let mut pad = [0; 3];
        let pad = &mut pad[..padding(out.len())];
        self.exact(pad)?;
        if self.digests.data && !out.is_empty() {
            self.check(&[out, pad], "data")?;
        }
        Ok(())
    }

    /// Receives the data that follow a header.
    pub fn data(&mut self, header: &Header) -> Result<Vec<u8>> {
        let mut data = vec![0; header.data_len().min(self.longest)];
        self.data_into(&mut data)?;
        Ok(data)
    }

    fn check(&mut self, parts: &[&[u8]], what: &str) -> Result<()> {
        let mut digest = [0; 4];
        self.exact(&mut digest)?;
        if digest == crc(parts) {
            return Ok(());
        }
        Err(wrong(&format!("the checksum of the {what} is wrong")))
    }
}

/// What no target may say.
pub(crate) fn wrong(problem: &str) -> Error {
    Error::new(ErrorKind::InvalidData, problem)
}

fn ended() -> Error {
    Error::new(ErrorKind::UnexpectedEof, "the target has closed the connection")
}
