//! Replies on their way: whole messages are collected and sent together.

use crate::protocol::{Chunk, chunk, errno_of, simple_reply};
use crate::wire::Wire;
use std::io::{Error, ErrorKind, IoSlice, Result};

/// Bytes and replies beyond which they go out at once: the client works on them while the server does the rest.
const ENOUGH: usize = 32 << 10;
const ENOUGH_REPLIES: usize = 8;
/// Capacity that is kept from one request to the next.
const KEPT: usize = 1 << 20;

/// Replies of one thread.
pub struct Output<'a> {
    wire: &'a dyn Wire,
    structured: bool,
    /// Initialized memory; what is used of it is `used`.
    bytes: Vec<u8>,
    used: usize,
    replies: usize,
}

impl<'a> Output<'a> {
    pub fn new(wire: &'a dyn Wire, structured: bool) -> Self {
        Output { wire, structured, bytes: Vec::new(), used: 0, replies: 0 }
    }

    /// Room for the next bytes of a message.
    fn space(&mut self, len: usize) -> &mut [u8] {
        let end = self.used + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let space = &mut self.bytes[self.used..end];
        self.used = end;
        space
    }

    fn put(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    /// Sends what is collected.
    pub fn send(&mut self) -> Result<()> {
        if self.used > 0 {
            self.wire.send(&mut [IoSlice::new(&self.bytes[..self.used])])?;
            (self.used, self.replies) = (0, 0);
        }
        if self.bytes.len() > KEPT {
            self.bytes = Vec::new();
        }
        Ok(())
    }

    fn send_if_enough(&mut self) -> Result<()> {
        self.replies += 1;
        if self.used >= ENOUGH || self.replies >= ENOUGH_REPLIES { self.send() } else { Ok(()) }
    }

    /// The request is done, and its reply has no data.
    pub fn done(&mut self, cookie: u64) -> Result<()> {
        self.put(&simple_reply(0, cookie));
        self.send_if_enough()
    }

    /// The request failed.
    pub fn fail(&mut self, cookie: u64, error: &Error) -> Result<()> {
        let number = errno_of(error);
        self.fail_with(cookie, number, &error.to_string())
    }

    /// The request failed with this number.
    pub fn fail_with(&mut self, cookie: u64, number: u32, message: &str) -> Result<()> {
        if !self.structured {
            self.put(&simple_reply(number, cookie));
            return self.send_if_enough();
        }
        let message = &message.as_bytes()[..message.floor_char_boundary(1024)];
        let len = 6 + message.len() as u32;
        self.put(&Chunk { flags: chunk::DONE, kind: chunk::ERROR, cookie, len }.bytes());
        self.put(&number.to_be_bytes());
        self.put(&(message.len() as u16).to_be_bytes());
        self.put(message);
        self.send_if_enough()
    }

    /// Data of the disk from `offset` on, which `read` fills in. When it fails, nothing of the message stays, and
    /// its error comes back in the outer `Ok`.
    pub fn data(
        &mut self,
        cookie: u64,
        offset: u64,
        len: u32,
        last: bool,
        read: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Result<()>> {
        let start = self.used;
        if self.structured {
            let flags = if last { chunk::DONE } else { 0 };
            let Some(payload) = len.checked_add(8) else { return Ok(Err(ErrorKind::InvalidInput.into())) };
            self.put(&Chunk { flags, kind: chunk::OFFSET_DATA, cookie, len: payload }.bytes());
            self.put(&offset.to_be_bytes());
        } else {
            self.put(&simple_reply(0, cookie));
        }
        if let Err(error) = read(self.space(len as usize)) {
            self.used = start;
            return Ok(Err(error));
        }
        self.send_if_enough()?;
        Ok(Ok(()))
    }

    /// Zeros of the disk; only in structured replies.
    pub fn hole(&mut self, cookie: u64, offset: u64, len: u32, last: bool) -> Result<()> {
        let flags = if last { chunk::DONE } else { 0 };
        self.put(&Chunk { flags, kind: chunk::OFFSET_HOLE, cookie, len: 12 }.bytes());
        self.put(&offset.to_be_bytes());
        self.put(&len.to_be_bytes());
        self.send_if_enough()
    }

    /// Extents of a metadata context: lengths and flags.
    pub fn status(&mut self, cookie: u64, context: u32, extents: &[(u32, u32)], last: bool) -> Result<()> {
        let flags = if last { chunk::DONE } else { 0 };
        let len = 4 + 8 * extents.len() as u32;
        self.put(&Chunk { flags, kind: chunk::BLOCK_STATUS, cookie, len }.bytes());
        self.put(&context.to_be_bytes());
        for (len, flags) in extents {
            self.put(&len.to_be_bytes());
            self.put(&flags.to_be_bytes());
        }
        self.send_if_enough()
    }
}
