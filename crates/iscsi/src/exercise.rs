//! A target in memory: one that keeps the rules, for the tests, and one whose every byte may be wrong, for the fuzz
//! target and for the noise test.

use crate::disk::open_with;
use crate::pdu::{FINAL, HEADER, Header, NO_TAG, field, opcode};
use crate::text::{Keys, push};
use crate::uri::{Location, Portal};
use crate::wire::{Dialer, Wire};
use block::BlockBackend;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the target's disk.
pub const SIZE: usize = 1 << 20;
const BLOCK: usize = 512;

/// What a target does that not every one does.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    /// Connections that it accepts.
    pub connections: u32,
    /// It forgets what was not flushed when a connection ends.
    pub forgets: bool,
    /// It ends a connection instead of answering every so many commands (0: never), having done them or not.
    pub drops: u32,
    /// It is busy every so many commands; 0: never.
    pub busy: u32,
    /// It pings before every answer.
    pub pings: bool,
    /// It answers so many commands and then no more, not even pings.
    pub falls_silent: Option<u32>,
    /// Each connection finds another disk.
    pub swaps: bool,
    /// Bytes it asks for at a time, and takes with a header.
    pub burst: usize,
    /// Commands it takes at a time.
    pub window: u32,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour {
            connections: u32::MAX,
            forgets: false,
            drops: 0,
            busy: 0,
            pings: false,
            falls_silent: None,
            swaps: false,
            burst: 8192,
            window: 16,
        }
    }
}

pub(crate) struct Memory {
    /// What survives a power loss.
    pub stored: Vec<u8>,
    /// What is read.
    cached: Vec<u8>,
    pub connections: u32,
    commands: u32,
    /// Pings that were answered.
    pub pongs: u32,
}

/// A target whose connections are made by [`Dialer::dial`].
#[derive(Clone)]
pub(crate) struct Target {
    behaviour: Behaviour,
    pub memory: Arc<Mutex<Memory>>,
    /// Changes to what it says: so many bytes further on, this is added to one.
    noise: Arc<Mutex<VecDeque<(usize, u8)>>>,
}

impl Target {
    pub fn new(behaviour: Behaviour) -> Self {
        let memory =
            Memory { stored: vec![0; SIZE], cached: vec![0; SIZE], connections: 0, commands: 0, pongs: 0 };
        Target { behaviour, memory: Arc::new(Mutex::new(memory)), noise: Arc::default() }
    }
}

impl Dialer for Target {
    fn dial(&self, _portal: &Portal, _patience: Duration) -> Result<Arc<dyn Wire>> {
        let mut memory = self.memory.lock();
        if memory.connections >= self.behaviour.connections {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        memory.connections += 1;
        if self.behaviour.forgets {
            memory.cached = memory.stored.clone();
        }
        let side = Side {
            target: self.clone(),
            number: memory.connections,
            heard: Vec::new(),
            said: VecDeque::new(),
            status: 1,
            command: 1,
            writes: BTreeMap::new(),
            noise_at: 0,
            total: 0,
            end: false,
        };
        Ok(Arc::new(Pipe { side: Mutex::new(side), more: Condvar::new() }))
    }
}

/// A write whose data come piece by piece.
struct Pending {
    header: Header,
    data: Vec<u8>,
    have: usize,
}

/// The target's side of a connection.
struct Side {
    target: Target,
    number: u32,
    heard: Vec<u8>,
    said: VecDeque<u8>,
    /// `StatSN`, and `ExpCmdSN`.
    status: u32,
    command: u32,
    writes: BTreeMap<u32, Pending>,
    /// Bytes said, up to which the noise has been used.
    noise_at: usize,
    total: usize,
    end: bool,
}

struct Pipe {
    side: Mutex<Side>,
    more: Condvar,
}

impl Wire for Pipe {
    fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut side = self.side.lock();
        while side.said.is_empty() && !side.end {
            self.more.wait(&mut side);
        }
        let len = side.said.len().min(buffer.len());
        buffer.iter_mut().zip(side.said.drain(..len)).for_each(|(to, from)| *to = from);
        Ok(len)
    }

    fn send(&self, buffers: &mut [IoSlice<'_>]) -> Result<()> {
        let mut side = self.side.lock();
        if side.end {
            return Err(ErrorKind::BrokenPipe.into());
        }
        buffers.iter().for_each(|buffer| side.heard.extend_from_slice(buffer));
        side.hear();
        self.more.notify_all();
        Ok(())
    }

    fn close(&self) {
        self.side.lock().end = true;
        self.more.notify_all();
    }
}

impl Side {
    fn hear(&mut self) {
        while let Some(bytes) = self.heard.first_chunk::<HEADER>() {
            let header = Header(*bytes);
            let len = header.data_len();
            let whole = HEADER + len.next_multiple_of(4);
            let Some(data) = self.heard.get(HEADER..whole).map(<[u8]>::to_vec) else { return };
            self.heard.drain(..whole);
            self.answer(&header, data.get(..len).unwrap_or_default());
        }
    }

    /// Says something, with the numbers that all answers have, and the noise.
    fn say(&mut self, header: Header, counts: bool, data: &[u8]) {
        let last = self.command.wrapping_add(self.target.behaviour.window).wrapping_sub(1);
        let header = header.set(field::NUMBER, self.status).set(field::EXPECTED, self.command);
        let header = header.set(field::WINDOW, last).length(data.len());
        self.status = self.status.wrapping_add(counts.into());
        let mut bytes = header.0.to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let mut noise = self.target.noise.lock();
        while let Some((distance, change)) = noise.front().copied() {
            let at = self.noise_at + distance;
            let Some(byte) = at.checked_sub(self.total).and_then(|at| bytes.get_mut(at)) else { break };
            *byte = byte.wrapping_add(change);
            // The end of the connection is noise too.
            self.end |= change == 0;
            self.noise_at = at;
            noise.pop_front();
        }
        self.total += bytes.len();
        self.said.extend(bytes);
    }

    fn answer(&mut self, header: &Header, data: &[u8]) {
        let target = self.target.clone();
        let commands = target.memory.lock().commands;
        if target.behaviour.falls_silent.is_some_and(|most| commands >= most) {
            return;
        }
        match header.opcode() {
            opcode::LOGIN => self.login(header, data),
            opcode::COMMAND => {
                target.memory.lock().commands += 1;
                let number = commands + 1;
                let every = |n: u32| n > 0 && number.is_multiple_of(n);
                self.command = header.get(field::NUMBER).wrapping_add(1);
                if target.behaviour.pings {
                    let ping = Header::new(opcode::NOP_IN, FINAL);
                    self.say(ping.set(field::TASK, NO_TAG).set(field::TRANSFER, 7), false, b"ping");
                }
                if every(target.behaviour.busy) {
                    return self.status(header, 0x08, &[]);
                }
                if every(target.behaviour.drops) {
                    if number.is_multiple_of(2) {
                        self.carry_out(header, data);
                    }
                    self.said.clear();
                    self.end = true;
                    return;
                }
                self.carry_out(header, data);
            }
            opcode::DATA_OUT => self.data(header, data),
            opcode::NOP_OUT if header.get(field::TASK) == NO_TAG => target.memory.lock().pongs += 1,
            opcode::NOP_OUT => {
                let answer = Header::new(opcode::NOP_IN, FINAL).set(field::TASK, header.get(field::TASK));
                self.say(answer.set(field::TRANSFER, NO_TAG), true, data);
            }
            opcode::LOGOUT => {
                let answer = Header::new(opcode::LOGOUT_RESPONSE, FINAL);
                self.say(answer.set(field::TASK, header.get(field::TASK)), true, &[]);
            }
            _ => self.end = true,
        }
    }

    fn login(&mut self, header: &Header, data: &[u8]) {
        let mut text = Vec::new();
        let behaviour = &self.target.behaviour;
        let stage = header.flags() >> 2 & 3;
        if stage == 0 {
            push(&mut text, "AuthMethod", "None");
            push(&mut text, "TargetPortalGroupTag", "1");
        } else if let Ok(keys) = Keys::parse(data) {
            for (key, value) in keys.iter() {
                let value = match key {
                    "MaxRecvDataSegmentLength" | "MaxBurstLength" | "FirstBurstLength" => {
                        behaviour.burst.to_string()
                    }
                    "HeaderDigest" | "DataDigest" => "None".to_owned(),
                    _ => value.to_owned(),
                };
                push(&mut text, key, &value);
            }
        }
        let answer = Header::new(opcode::LOGIN_RESPONSE, header.flags());
        self.say(answer.set(field::TASK, header.get(field::TASK)), true, &text);
    }

    fn status(&mut self, header: &Header, status: u8, sense: &[u8]) {
        let mut data = Vec::new();
        if !sense.is_empty() {
            data.extend_from_slice(&(sense.len() as u16).to_be_bytes());
            data.extend_from_slice(sense);
        }
        let answer = Header::new(opcode::RESPONSE, FINAL).put(3, &[status]);
        self.say(answer.set(field::TASK, header.get(field::TASK)), true, &data);
    }

    fn sense(&mut self, header: &Header, key: u8, code: u8) {
        self.status(header, 0x02, &[0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, 0]);
    }

    /// Sends data in pieces, the status with the last one.
    fn send(&mut self, header: &Header, data: &[u8]) {
        let wanted = header.get(field::TRANSFER) as usize;
        let data = data.get(..wanted.min(data.len())).unwrap_or_default().to_vec();
        let pieces = data.chunks(self.target.behaviour.burst).count();
        for (number, piece) in data.chunks(self.target.behaviour.burst).enumerate() {
            let last = number + 1 == pieces;
            let short = if data.len() < wanted { 0x02 } else { 0 };
            let flags = if last { FINAL | 1 | short } else { 0 };
            let answer = Header::new(opcode::DATA_IN, flags).set(field::TASK, header.get(field::TASK));
            let answer = answer.set(field::OFFSET, (number * self.target.behaviour.burst) as u32);
            let answer = answer.set(field::SEQUENCE, number as u32);
            let left = if last { (wanted - data.len()) as u32 } else { 0 };
            self.say(answer.set(field::COUNT, left), last, piece);
        }
    }

    fn carry_out(&mut self, header: &Header, immediate: &[u8]) {
        let byte = |at: usize| header.byte(field::WINDOW + at);
        // Block and count of the long commands.
        let start = (0..8).fold(0, |value, at| value << 8 | usize::from(byte(2 + at))).saturating_mul(BLOCK);
        let len = (header.get(field::WINDOW + 10) as usize).saturating_mul(BLOCK);
        let range = start..start.saturating_add(len);
        match byte(0) {
            0x00 => self.status(header, 0, &[]),
            0x12 => self.inquiry(header, byte(1) & 1 != 0, byte(2)),
            0x1A => self.send(header, &[23, 0, 0, 0, 0x08, 0x12, 0x04, 0]),
            0x9E if byte(1) == 0x10 => {
                let mut answer = vec![0; 32];
                answer[..8].copy_from_slice(&((SIZE / BLOCK - 1) as u64).to_be_bytes());
                answer[8..12].copy_from_slice(&(BLOCK as u32).to_be_bytes());
                answer[14] = 0xC0;
                self.send(header, &answer);
            }
            0x88 => {
                let data = self.target.memory.lock().cached.get(range).map(<[u8]>::to_vec);
                match data {
                    Some(data) => self.send(header, &data),
                    None => self.sense(header, 5, 0x21),
                }
            }
            0x8A | 0x93 | 0x42 => {
                let data = vec![0; header.get(field::TRANSFER).min(SIZE as u32) as usize];
                let write = Pending { header: header.clone(), data, have: 0 };
                self.writes.insert(header.get(field::TASK), write);
                self.take(header.get(field::TASK), immediate);
            }
            0x91 => {
                {
                    let mut memory = self.target.memory.lock();
                    memory.stored = memory.cached.clone();
                }
                self.status(header, 0, &[]);
            }
            _ => self.sense(header, 5, 0x20),
        }
    }

    fn inquiry(&mut self, header: &Header, vital: bool, page: u8) {
        let name = if self.target.behaviour.swaps { self.number as u8 } else { 1 };
        let mut answer = vec![0; 36];
        match (vital, page) {
            (false, _) => {}
            (true, 0) => answer = vec![0, 0, 0, 4, 0, 0x83, 0xB0, 0xB2],
            (true, 0x83) => answer = vec![0, 0x83, 0, 5, 2, 1, 0, 1, name],
            (true, 0xB0) => {
                answer.resize(64, 0);
                (answer[1], answer[3], answer[22], answer[27]) = (0xB0, 60, 1, 1);
            }
            (true, 0xB2) => answer = vec![0, 0xB2, 0, 4, 0, 0xC0, 0, 0],
            _ => return self.sense(header, 5, 0x24),
        }
        self.send(header, &answer);
    }

    /// Takes data of a write, and asks for what is missing.
    fn take(&mut self, task: u32, data: &[u8]) {
        let burst = self.target.behaviour.burst;
        let Some(write) = self.writes.get_mut(&task) else { return };
        let end = write.have.saturating_add(data.len());
        if let Some(place) = write.data.get_mut(write.have..end) {
            place.copy_from_slice(data);
            write.have = end;
        }
        if write.have < write.data.len() {
            // The end of a sequence is asked for where it is expected.
            let len = burst.min(write.data.len() - write.have) as u32;
            let ask = Header::new(opcode::READY_TO_TRANSFER, FINAL)
                .set(field::TASK, task)
                .set(field::TRANSFER, 9)
                .set(field::OFFSET, write.have as u32)
                .set(field::COUNT, len);
            return self.say(ask, false, &[]);
        }
        let Some(Pending { header, data, .. }) = self.writes.remove(&task) else { return };
        if self.change(&header, &data) { self.status(&header, 0, &[]) } else { self.sense(&header, 5, 0x21) }
    }

    fn change(&mut self, header: &Header, data: &[u8]) -> bool {
        let number =
            |bytes: Option<&[u8]>| bytes.unwrap_or_default().iter().fold(0, |v, b| v << 8 | usize::from(*b));
        let command = header.0.get(field::WINDOW..).unwrap_or_default();
        let (start, count) = match command.first() {
            Some(0x42) => (number(data.get(8..16)), number(data.get(16..20))),
            _ => (number(command.get(2..10)), number(command.get(10..14))),
        };
        let (start, len) = (start.saturating_mul(BLOCK), count.saturating_mul(BLOCK));
        let mut memory = self.target.memory.lock();
        let Some(place) = memory.cached.get_mut(start..start.saturating_add(len)) else { return false };
        match command.first() {
            Some(0x8A) if data.len() == len => place.copy_from_slice(data),
            Some(0x8A) => return false,
            _ => place.fill(0),
        }
        true
    }

    fn data(&mut self, header: &Header, data: &[u8]) {
        // A piece that is not the last of what was asked for brings no new question.
        let task = header.get(field::TASK);
        if header.flags() & FINAL != 0 {
            return self.take(task, data);
        }
        if let Some(write) = self.writes.get_mut(&task)
            && let Some(place) = write.data.get_mut(write.have..write.have + data.len())
        {
            place.copy_from_slice(data);
            write.have += data.len();
        }
    }
}

/// Where the target in memory seems to be.
pub(crate) fn location(patience: Duration) -> Location {
    let portal = Portal { host: "memory".to_owned(), port: 1 };
    Location {
        portal,
        target: "iqn.2026-01.org.example:memory".to_owned(),
        lun: 1,
        chap: None,
        target_chap: None,
        initiator: Some("iqn.2026-01.org.example:initiator".to_owned()),
        header_digest: false,
        data_digest: false,
        patience,
    }
}

/// Opens a target's disk.
pub(crate) fn open(
    target: &Target,
    patience: Duration,
) -> std::result::Result<Arc<dyn BlockBackend>, crate::IscsiError> {
    open_with(&location(patience), false, Box::new(target.clone()))
}

/// Talks with a target that says something else than it should at the places that `input` says: three bytes each, how
/// many bytes further on, and what is added to the byte there; nothing added ends the connection. Answers how many
/// requests were done.
///
/// Whatever it says, every request must come to its end.
///
/// # Panics
/// When a request does not come to its end in time.
pub fn talk(input: &[u8]) -> u32 {
    const LONGEST: Duration = Duration::from_secs(60);
    let begin = Instant::now();
    let target = Target::new(Behaviour { connections: 3, ..Behaviour::default() });
    let (changes, _) = input.as_chunks::<3>();
    let changes = changes.iter().map(|[a, b, change]| (usize::from(u16::from_be_bytes([*a, *b])), *change));
    *target.noise.lock() = changes.collect();
    // What a change makes the target swallow is waited for; without one, a busy host may take its time.
    let patience = Duration::from_millis(if input.is_empty() { 20_000 } else { 40 });
    let Ok(disk) = open(&target, patience) else { return 0 };
    let mut done = 0;
    let mut count = |result: Result<()>| done += u32::from(result.is_ok());
    let data = vec![0x5A; 30_000];
    let mut back = vec![0; 20_480];
    count(disk.write_at(1024, &[IoSlice::new(&data)]));
    count(disk.read_at(512, &mut [IoSliceMut::new(&mut back)]));
    count(disk.flush());
    count(disk.write_zeroes(0, 65_536, true));
    count(disk.discard(65_536, 65_536));
    count(disk.block_status(0, 1 << 20).map(drop));
    count(disk.read_at(100, &mut [IoSliceMut::new(&mut back)]));
    count(disk.resize(0).or_else(|error: Error| match error.kind() {
        ErrorKind::Unsupported => Ok(()),
        _ => Err(error),
    }));
    drop(disk);
    assert!(begin.elapsed() < LONGEST, "a request took {:?}", begin.elapsed());
    done
}
