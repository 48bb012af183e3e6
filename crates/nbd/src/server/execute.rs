//! What a request does.

use super::export::{Context, Export};
use super::output::Output;
use crate::protocol::{PAYLOAD_MAX, Request, command, command_flag, errno};
use std::io::{Error, ErrorKind, Result};

/// Bytes that are read and sent at once where a reply may have pieces.
pub const PIECE: u32 = 1 << 20;
/// From this length on, a read looks for holes first.
const LOOK_FOR_HOLES: u32 = 64 << 10;
/// Most extents of one answer; the client asks on from where it ends.
const EXTENTS_MAX: usize = 8192;

/// A connection's view of its export.
pub struct Executor<'a> {
    pub export: &'a Export,
    pub size: u64,
    pub structured: bool,
    pub contexts: &'a [Context],
}

impl Executor<'_> {
    /// Why a request is refused before it is tried: error number and message.
    pub fn refusal(&self, request: &Request) -> Option<(u32, &'static str)> {
        let allowed = match request.command {
            command::READ => command_flag::DF,
            command::WRITE | command::TRIM => command_flag::FUA,
            command::WRITE_ZEROES => command_flag::FUA | command_flag::NO_HOLE,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            command::FLUSH | command::CACHE => 0,
            _ => return Some((errno::EINVAL, "the command is not known")),
        };
        // Flags without meaning for a command are harmless when the protocol knows them for others: FUA is allowed
        // everywhere.
        if request.flags & !(allowed | command_flag::FUA) != 0 {
            return Some((errno::EINVAL, "the command does not have these flags"));
        }
        let writes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if writes && self.export.is_read_only() {
            return Some((errno::EPERM, "the export is read-only"));
        }
        if request.command == command::FLUSH {
            return None;
        }
        let end = request.offset.checked_add(request.len.into());
        if end.is_none_or(|end| end > self.size) {
            let number = if writes { errno::ENOSPC } else { errno::EINVAL };
            return Some((number, "the range leaves the export"));
        }
        let moves_data = matches!(request.command, command::READ | command::WRITE);
        if moves_data && request.len > PAYLOAD_MAX {
            let df = request.flags & command_flag::DF != 0;
            return Some((if df { errno::EOVERFLOW } else { errno::EINVAL }, "at most 32 MiB"));
        }
        if request.command == command::BLOCK_STATUS && (self.contexts.is_empty() || request.len == 0) {
            return Some((errno::EINVAL, "no metadata context was chosen, or the range is empty"));
        }
        None
    }

    /// Does what a request wants, and replies. `payload` is what a write has sent.
    ///
    /// # Errors
    /// Only those of the connection; the disk's go to the client.
    pub fn execute(&self, request: &Request, payload: &[u8], output: &mut Output<'_>) -> Result<()> {
        if let Some((number, message)) = self.refusal(request) {
            return output.fail_with(request.cookie, number, message);
        }
        match request.command {
            command::READ => self.read(request, output),
            command::BLOCK_STATUS => self.block_status(request, output),
            _ => match self.change(request, payload) {
                Ok(()) => output.done(request.cookie),
                Err(error) => output.fail(request.cookie, &error),
            },
        }
    }

    fn change(&self, request: &Request, payload: &[u8]) -> Result<()> {
        let disk = &self.export.disk;
        let (offset, len) = (request.offset, u64::from(request.len));
        match request.command {
            command::WRITE => disk.write_bytes(offset, payload)?,
            command::TRIM => disk.discard(offset, len)?,
            command::WRITE_ZEROES => {
                let may_unmap = request.flags & command_flag::NO_HOLE == 0;
                disk.write_zeroes(offset, len, may_unmap)?;
            }
            command::CACHE => self.prefetch(offset, len)?,
            command::FLUSH => return if self.export.is_read_only() { Ok(()) } else { disk.flush() },
            _ => return Err(ErrorKind::Unsupported.into()),
        }
        let durable = request.flags & command_flag::FUA != 0 && !self.export.is_read_only();
        if durable { disk.flush() } else { Ok(()) }
    }

    /// Reads into the host's page cache.
    fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        let mut buffer = vec![0; len.min(PIECE.into()) as usize];
        let mut at = 0;
        while at < len {
            let part = (len - at).min(PIECE.into());
            self.export.disk.read_bytes(offset + at, &mut buffer[..part as usize])?;
            at += part;
        }
        Ok(())
    }

    fn read(&self, request: &Request, output: &mut Output<'_>) -> Result<()> {
        let Request { cookie, offset, len, flags, .. } = *request;
        let read = |offset: u64, buffer: &mut [u8]| self.export.disk.read_bytes(offset, buffer);
        let whole = !self.structured || flags & command_flag::DF != 0;
        if whole || len < LOOK_FOR_HOLES {
            return match output.data(cookie, offset, len, true, |buffer| read(offset, buffer))? {
                Ok(()) => Ok(()),
                Err(error) => output.fail(cookie, &error),
            };
        }
        let mut at = 0;
        while at < len {
            let start = offset + u64::from(at);
            let extent = match self.export.extent(start, (len - at).into()) {
                Ok(extent) => extent,
                Err(error) => return output.fail(cookie, &error),
            };
            let mut part = extent.length.clamp(1, (len - at).into()) as u32;
            if extent.zero {
                output.hole(cookie, start, part, at + part == len)?;
            } else {
                part = part.min(PIECE);
                let last = at + part == len;
                match output.data(cookie, start, part, last, |buffer| read(start, buffer))? {
                    Ok(()) => {}
                    Err(error) => return output.fail(cookie, &error),
                }
            }
            at += part;
        }
        Ok(())
    }

    fn block_status(&self, request: &Request, output: &mut Output<'_>) -> Result<()> {
        let one = request.flags & command_flag::REQ_ONE != 0;
        let mut answers = Vec::with_capacity(self.contexts.len());
        for context in self.contexts {
            match self.extents(*context, request, if one { 1 } else { EXTENTS_MAX }) {
                Ok(extents) => answers.push((context.id(), extents)),
                Err(error) => return output.fail(request.cookie, &error),
            }
        }
        for (at, (id, extents)) in answers.iter().enumerate() {
            output.status(request.cookie, *id, extents, at + 1 == answers.len())?;
        }
        Ok(())
    }

    fn extents(&self, context: Context, request: &Request, most: usize) -> Result<Vec<(u32, u32)>> {
        let mut extents: Vec<(u32, u32)> = Vec::new();
        let mut at = 0;
        while at < request.len {
            let start = request.offset + u64::from(at);
            let (len, flags) = self.export.status(context, start, (request.len - at).into())?;
            let len = u32::try_from(len).map_err(|_| Error::from(ErrorKind::InvalidData))?;
            let full = extents.len() == most;
            match extents.last_mut() {
                Some(last) if last.1 == flags => last.0 += len,
                _ if full => break,
                _ => extents.push((len, flags)),
            }
            at += len;
        }
        Ok(extents)
    }
}
