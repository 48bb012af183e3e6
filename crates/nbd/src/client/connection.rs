//! Requests and replies of one connection, shared by all threads that use the disk.
//!
//! There is no thread of its own: whoever waits for a reply while nobody receives does so for all, until its own is
//! there. A connection that broke stays broken: writes that were acknowledged and not flushed may be lost with the
//! server, and a new connection could not know that.

use super::handshake::Offer;
use crate::protocol::{
    CHUNK_LEN, CHUNK_MAGIC, Chunk, Fields, Request, SIMPLE_REPLY_MAGIC, chunk, command, error_of,
};
use crate::wire::{Receiver, Wire};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::sync::Arc;

/// Longest chunk that is no data.
const CHUNK_MAX: u32 = 1 << 20;

/// A request that is on its way.
struct Slot {
    request: Request,
    /// What is read.
    data: Vec<u8>,
    /// Bytes of it that have not come.
    missing: u64,
    /// First extent of `base:allocation`: length and flags.
    status: Option<(u32, u32)>,
    error: Option<Error>,
    done: bool,
}

/// What came of a request.
pub struct Answer {
    pub data: Vec<u8>,
    pub status: Option<(u32, u32)>,
}

struct State {
    slots: HashMap<u64, Slot>,
    next: u64,
    /// Somebody receives.
    receiving: bool,
    /// Why nothing goes any more.
    broken: Option<String>,
}

pub struct Connection {
    wire: Arc<dyn Wire>,
    receiver: Mutex<Receiver>,
    structured: bool,
    allocation: Option<u32>,
    state: Mutex<State>,
    changed: Condvar,
}

fn wrong(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

impl Connection {
    pub fn new(offer: Offer) -> Self {
        Connection {
            wire: offer.receiver.wire().clone(),
            receiver: Mutex::new(offer.receiver),
            structured: offer.structured,
            allocation: offer.allocation,
            state: Mutex::new(State { slots: HashMap::new(), next: 0, receiving: false, broken: None }),
            changed: Condvar::new(),
        }
    }

    /// Sends a request and waits for its reply. `payload` is what a write sends.
    pub fn call(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        payload: &[IoSlice<'_>],
    ) -> Result<Answer> {
        let reads = if command == command::READ { len } else { 0 };
        let cookie = {
            let mut state = self.state.lock();
            if let Some(why) = &state.broken {
                return Err(gone(why));
            }
            let cookie = state.next;
            state.next = cookie.wrapping_add(1);
            let slot = Slot {
                request: Request { flags, command, cookie, offset, len },
                data: vec![0; reads as usize],
                missing: reads.into(),
                status: None,
                error: None,
                done: false,
            };
            state.slots.insert(cookie, slot);
            cookie
        };
        let header = Request { flags, command, cookie, offset, len }.bytes();
        let mut message = Vec::with_capacity(payload.len() + 1);
        message.push(IoSlice::new(&header));
        message.extend_from_slice(payload);
        if let Err(error) = self.wire.send(&mut message) {
            self.fail(&error);
        }
        self.wait(cookie)
    }

    fn wait(&self, cookie: u64) -> Result<Answer> {
        let mut state = self.state.lock();
        loop {
            if state.slots.get(&cookie).is_none_or(|slot| slot.done) {
                let slot = state.slots.remove(&cookie).ok_or_else(|| wrong("a request was lost"))?;
                return match slot.error {
                    Some(error) => Err(error),
                    None => Ok(Answer { data: slot.data, status: slot.status }),
                };
            }
            if let Some(why) = &state.broken {
                let error = gone(why);
                state.slots.remove(&cookie);
                return Err(error);
            }
            if state.receiving {
                self.changed.wait(&mut state);
                continue;
            }
            state.receiving = true;
            drop(state);
            if let Err(error) = self.receive(&mut self.receiver.lock()) {
                self.fail(&error);
            }
            state = self.state.lock();
            state.receiving = false;
            self.changed.notify_all();
        }
    }

    fn fail(&self, error: &Error) {
        let why = match error.kind() {
            ErrorKind::UnexpectedEof => "the server has closed it".to_owned(),
            _ => error.to_string(),
        };
        self.state.lock().broken.get_or_insert(why);
        self.wire.close();
        self.changed.notify_all();
    }

    /// Says farewell; no reply comes.
    pub fn disconnect(&self) {
        let farewell = Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, len: 0 };
        // Who cannot hear it sees the end of the connection.
        let _ = self.wire.send(&mut [IoSlice::new(&farewell.bytes())]);
    }

    /// Receives one reply or one chunk, for whomever it is.
    fn receive(&self, receiver: &mut Receiver) -> Result<()> {
        match u32::from_be_bytes(receiver.array()?) {
            SIMPLE_REPLY_MAGIC => {
                let error = u32::from_be_bytes(receiver.array()?);
                let cookie = u64::from_be_bytes(receiver.array()?);
                let (mut data, request) = self.data_of(cookie)?;
                if error == 0 && request.command == command::READ {
                    if self.structured {
                        return Err(wrong("the server's reply to a read is not structured"));
                    }
                    receiver.exact(&mut data)?;
                }
                self.with(cookie, |slot| {
                    slot.data = data;
                    slot.missing = 0;
                    slot.error = (error != 0).then(|| error_of(error, ""));
                    slot.done = true;
                })
            }
            CHUNK_MAGIC if self.structured => {
                let chunk = Chunk::parse(&receiver.array::<{ CHUNK_LEN - 4 }>()?);
                self.chunk(receiver, chunk.ok_or_else(|| wrong("a chunk is wrong"))?)
            }
            _ => Err(wrong("the server's reply has no magic number")),
        }
    }

    fn chunk(&self, receiver: &mut Receiver, chunk: Chunk) -> Result<()> {
        let cookie = chunk.cookie;
        match chunk.kind {
            chunk::OFFSET_DATA => {
                let len = chunk.len.checked_sub(8).ok_or_else(|| wrong("a chunk of data is too short"))?;
                let offset = u64::from_be_bytes(receiver.array()?);
                let (mut data, request) = self.data_of(cookie)?;
                receiver.exact(part(&mut data, &request, offset, len)?)?;
                self.with(cookie, |slot| slot.add(data, len))?;
            }
            chunk::OFFSET_HOLE if chunk.len == 12 => {
                let offset = u64::from_be_bytes(receiver.array()?);
                let len = u32::from_be_bytes(receiver.array()?);
                let (mut data, request) = self.data_of(cookie)?;
                part(&mut data, &request, offset, len)?.fill(0);
                self.with(cookie, |slot| slot.add(data, len))?;
            }
            kind => {
                if chunk.len > CHUNK_MAX {
                    return Err(wrong("a chunk is too long"));
                }
                let mut payload = vec![0; chunk.len as usize];
                receiver.exact(&mut payload)?;
                self.with(cookie, |slot| self.tell(slot, kind, &payload))??;
            }
        }
        if chunk.flags & chunk::DONE == 0 {
            return Ok(());
        }
        self.with(cookie, |slot| {
            if slot.missing > 0 && slot.error.is_none() {
                slot.error = Some(wrong("the server's reply to a read is not complete"));
            }
            slot.done = true;
        })
    }

    /// A chunk that is no data.
    fn tell(&self, slot: &mut Slot, kind: u16, payload: &[u8]) -> Result<()> {
        let mut fields = Fields(payload);
        match kind {
            chunk::NONE => Ok(()),
            chunk::BLOCK_STATUS => {
                let id = fields.u32().ok_or_else(|| wrong("an extent is too short"))?;
                if Some(id) == self.allocation {
                    slot.status = fields.u32().zip(fields.u32());
                }
                Ok(())
            }
            // All errors have the same beginning, known or not.
            kind if kind & (1 << 15) != 0 => {
                let number = fields.u32().ok_or_else(|| wrong("an error is too short"))?;
                let len = fields.u16().unwrap_or(0).into();
                let text = String::from_utf8_lossy(fields.bytes(len).unwrap_or_default());
                slot.error.get_or_insert_with(|| error_of(number, &text.escape_debug().to_string()));
                Ok(())
            }
            _ => Err(wrong("the server's reply has an unknown kind")),
        }
    }

    fn with<T>(&self, cookie: u64, act: impl FnOnce(&mut Slot) -> T) -> Result<T> {
        let mut state = self.state.lock();
        let slot = state.slots.get_mut(&cookie).filter(|slot| !slot.done);
        slot.map(act).ok_or_else(|| wrong("the server replies to what nobody asked"))
    }

    /// Takes a request's data out, so that nobody waits for the state while they are received.
    fn data_of(&self, cookie: u64) -> Result<(Vec<u8>, Request)> {
        self.with(cookie, |slot| (std::mem::take(&mut slot.data), slot.request))
    }
}

impl Slot {
    fn add(&mut self, data: Vec<u8>, len: u32) {
        self.data = data;
        self.missing = self.missing.saturating_sub(len.into());
    }
}

/// The place of a chunk in what was asked for.
fn part<'a>(data: &'a mut [u8], request: &Request, offset: u64, len: u32) -> Result<&'a mut [u8]> {
    let start = offset.checked_sub(request.offset).and_then(|start| usize::try_from(start).ok());
    let range = start.and_then(|start| Some(start..start.checked_add(len as usize)?));
    range
        .and_then(|range| data.get_mut(range))
        .ok_or_else(|| wrong("the server sends data that were not asked for"))
}

fn gone(why: &str) -> Error {
    let advice = "writes since the last flush may be lost; open the disk again";
    Error::new(ErrorKind::NotConnected, format!("the connection to the NBD server broke: {why}; {advice}"))
}
