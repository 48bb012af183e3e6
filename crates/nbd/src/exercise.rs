//! A client that keeps no rule, for the fuzz target and for the noise test.

use crate::server::{Bitmap, Export, Server, ServerOptions};
use crate::tls::ServerTls;
use crate::wire::Wire;
use block::{BlockBackend, Capabilities, Extent};
use parking_lot::Mutex;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Bytes of the disk that is served.
pub const DISK: u64 = 1 << 20;

/// A disk in memory, every other 64 KiB of which is said to be a hole at first.
pub struct MemoryDisk {
    bytes: Mutex<Vec<u8>>,
}

impl MemoryDisk {
    /// A disk of this size in bytes, a multiple of 512.
    pub fn new(size: usize) -> Self {
        let byte = |at: usize| if at >> 16 & 1 == 0 { (at >> 9) as u8 | 1 } else { 0 };
        MemoryDisk { bytes: Mutex::new((0..size).map(byte).collect()) }
    }

    /// Its content.
    pub fn content(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }

    fn with<T>(&self, offset: u64, len: u64, act: impl FnOnce(&mut [u8]) -> T) -> Result<T> {
        let end = self.check_range(offset, len)?;
        let mut bytes = self.bytes.lock();
        bytes.get_mut(offset as usize..end as usize).map(act).ok_or_else(|| ErrorKind::InvalidInput.into())
    }
}

impl BlockBackend for MemoryDisk {
    fn size(&self) -> u64 {
        self.bytes.lock().len() as u64
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: false, discard: true, zero_alignment: 512, growable: false }
    }

    fn read_at(&self, mut offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        for buffer in buffers {
            self.with(offset, buffer.len() as u64, |bytes| buffer.copy_from_slice(bytes))?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, mut offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        for buffer in buffers {
            self.with(offset, buffer.len() as u64, |bytes| bytes.copy_from_slice(buffer))?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        self.with(offset, len, |bytes| bytes.fill(0))
    }

    fn resize(&self, _size: u64) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.with(offset, len, |bytes| {
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count() as u64;
            if zeros > 0 || len == 0 {
                return Extent::hole(offset, zeros);
            }
            let data = bytes.iter().take_while(|byte| **byte != 0).count() as u64;
            Extent::data(offset, data, Some(offset))
        })
    }
}

/// A client that says what it was given and hears nothing.
struct Script {
    input: Mutex<(Vec<u8>, usize)>,
    heard: AtomicU64,
}

impl Wire for Script {
    fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut input = self.input.lock();
        let (bytes, at) = &mut *input;
        let rest = bytes.get(*at..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        *at += len;
        Ok(len)
    }

    fn send(&self, buffers: &mut [IoSlice<'_>]) -> Result<()> {
        let len: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        self.heard.fetch_add(len as u64, Ordering::Relaxed);
        Ok(())
    }

    fn set_deadline(&self, _deadline: Option<Instant>) -> Result<()> {
        Ok(())
    }

    fn close(&self) {
        self.input.lock().0.clear();
    }

    fn start_tls(&self, _tls: &ServerTls) -> Result<Arc<dyn Wire>> {
        Err(Error::from(ErrorKind::Unsupported))
    }
}

/// Lets a server of two exports hear `input` from a client. Answers how much it said.
///
/// The server must come to its end, must not panic, and must not say more than was asked for: no reply is longer than
/// the export and what is around it.
///
/// # Panics
/// When the server says more than its replies can be.
pub fn hear(input: &[u8]) -> u64 {
    let export = |name: &str, read_only| {
        Arc::new(Export {
            name: name.to_owned(),
            description: "a disk".to_owned(),
            disk: Arc::new(MemoryDisk::new(DISK as usize)),
            read_only,
            bitmaps: vec![Bitmap { name: "b".to_owned(), dirty: vec![0..512, 65536..131_072] }],
            preferred_block: 4096,
        })
    };
    let options = ServerOptions {
        exports: vec![export("", false), export("r", true)],
        tls: None,
        connections: 1,
        in_flight: 2,
        persistent: false,
    };
    let Ok(server) = Server::new(options) else { return 0 };
    let script = Script { input: Mutex::new((input.to_vec(), 0)), heard: AtomicU64::new(0) };
    let wire = Arc::new(script);
    server.serve_wire(wire.clone());
    let heard = wire.heard.load(Ordering::Relaxed);
    // Each of the 28-byte requests can ask for the whole disk.
    let most = (input.len() as u64 / 16 + 2) * (DISK + (1 << 16));
    assert!(heard <= most, "{heard} bytes in answer to {}", input.len());
    heard
}
