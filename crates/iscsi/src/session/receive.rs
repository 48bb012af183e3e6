//! What the target says.

use super::courier::Work;
use super::{ATTEMPTS, FAREWELL, PING, Phase, Session, Slot, State};
use crate::pdu::{FINAL, HEADER, Header, IMMEDIATE, NO_TAG, before, field, opcode};
use crate::scsi::{Data, Failure, Sense, key, status};
use crate::wire::{Receiver, wrong};
use std::io::Result;
use std::time::{Duration, Instant};

/// Answers to pings that wait to be sent.
const PONGS: usize = 64;
/// How long a busy target is left alone.
const REST: Duration = Duration::from_millis(50);

/// Flags of an answer: fewer, or more bytes than expected (RFC 7143, 11.4.1).
const UNDERFLOW: u8 = 0x02;
/// Flag of data: they bring the status (RFC 7143, 11.7.3).
const WITH_STATUS: u8 = 0x01;

impl Session {
    /// Receives one header with its data, and does what it wants.
    pub(super) fn receive(&self, receiver: &mut Receiver) -> Result<()> {
        let header = receiver.header()?;
        if header.opcode() == opcode::DATA_IN {
            return self.data_in(receiver, &header);
        }
        let data = receiver.data(&header)?;
        let mut state = self.state.lock();
        self.note(&mut state, &header);
        match header.opcode() {
            opcode::RESPONSE => self.response(&mut state, &header, &data),
            opcode::READY_TO_TRANSFER => self.ready(&mut state, &header),
            opcode::NOP_IN => self.ping(&mut state, &header, data),
            opcode::REJECT => self.reject(&mut state, &header, &data),
            opcode::ASYNCHRONOUS => asynchronous(&header, &self.location.target),
            opcode::LOGOUT_RESPONSE if header.get(field::TASK) == FAREWELL => {
                state.logged_out = true;
                self.changed.notify_all();
                Ok(())
            }
            kind => Err(wrong(&format!("the target says what it may not (opcode {kind:#04x})"))),
        }
    }

    /// Numbers that all headers have (RFC 7143, 4.2.2).
    fn note(&self, state: &mut State, header: &Header) {
        let (number, expected, last) =
            (header.get(field::NUMBER), header.get(field::EXPECTED), header.get(field::WINDOW));
        state.heard = Instant::now();
        let ping = header.opcode() == opcode::NOP_IN && header.get(field::TASK) == NO_TAG;
        let counts = match header.opcode() {
            opcode::DATA_IN => header.flags() & WITH_STATUS != 0,
            opcode::READY_TO_TRANSFER => false,
            _ => !ping,
        };
        if counts && !before(number, state.expected) {
            state.expected = number.wrapping_add(1);
        }
        if !before(last, expected.wrapping_sub(1)) && before(state.last_command, last) {
            state.last_command = last;
            if !state.waiting.is_empty() || !state.own.is_empty() {
                state.work.push_back(Work::Pump);
                self.courier.notify_all();
            }
        }
    }

    fn data_in(&self, receiver: &mut Receiver, header: &Header) -> Result<()> {
        let (task, len) = (header.get(field::TASK), header.data_len());
        let mut data = {
            let mut state = self.state.lock();
            let slot = under_way(&mut state, task)?;
            let Data::In(_) = slot.command.data else {
                return Err(wrong("the target sends data that nobody asked for"));
            };
            if header.get(field::OFFSET) as usize != slot.received || slot.data.len() - slot.received < len {
                return Err(wrong("the target sends data that are out of order or too long"));
            }
            slot.received += len;
            std::mem::take(&mut slot.data)
        };
        // Nobody waits for the state while they are received.
        let start = header.get(field::OFFSET) as usize;
        let place =
            data.get_mut(start..start + len).ok_or_else(|| wrong("the target's data are too long"))?;
        receiver.data_into(place)?;
        let mut state = self.state.lock();
        self.note(&mut state, header);
        // One that was given up meanwhile needs no data.
        if let Ok(slot) = under_way(&mut state, task) {
            slot.data = data;
            if header.flags() & WITH_STATUS != 0 {
                if header.byte(3) != status::GOOD {
                    return Err(wrong("the target's data bring a status that they may not"));
                }
                self.good(&mut state, task, header);
            }
        }
        Ok(())
    }

    fn good(&self, state: &mut State, task: u32, header: &Header) {
        let Ok(slot) = under_way(state, task) else { return };
        let mut data = std::mem::take(&mut slot.data);
        let expected = match slot.command.data {
            Data::In(len) if header.flags() & UNDERFLOW != 0 => {
                len.saturating_sub(header.get(field::COUNT)) as usize
            }
            Data::In(len) => len as usize,
            _ => 0,
        };
        let outcome = if slot.received < expected {
            Err(Failure::Short)
        } else {
            data.truncate(slot.received);
            Ok(data)
        };
        state.finish(task, outcome);
    }

    fn response(&self, state: &mut State, header: &Header, data: &[u8]) -> Result<()> {
        let task = header.get(field::TASK);
        let slot = under_way(state, task)?;
        if header.byte(2) != 0 {
            // RFC 7143, 11.4.3: the target could not carry the command to its end.
            self.retry(state, task, Failure::Status(header.byte(3)), None);
            return Ok(());
        }
        // Lists of ranges are taken as short as some targets' count of them is; data are not.
        let short = header.flags() & UNDERFLOW != 0 && header.get(field::COUNT) > 0;
        if short && header.byte(3) == status::GOOD && slot.command.is_write() {
            state.finish(task, Err(Failure::Short));
            return Ok(());
        }
        match header.byte(3) {
            status::GOOD => self.good(state, task, header),
            status::CHECK_CONDITION => {
                let len = data.first_chunk().map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
                let sense = Sense::parse(data.get(2..).map_or(&[], |rest| &rest[..len.min(rest.len())]));
                self.sensed(state, task, sense);
            }
            busy @ (status::BUSY | status::TASK_SET_FULL) => {
                self.retry(state, task, Failure::Status(busy), Some(REST));
            }
            other => state.finish(task, Err(Failure::Status(other))),
        }
        Ok(())
    }

    fn sensed(&self, state: &mut State, task: u32, sense: Sense) {
        const BECOMING_READY: u16 = 0x0401;
        let failure = Failure::Sense(sense);
        match sense.key {
            key::UNIT_ATTENTION => {
                tracing::debug!("iSCSI target {}: unit attention {:04x}", self.location.target, sense.code);
                self.retry(state, task, failure, None);
            }
            key::ABORTED_COMMAND => self.retry(state, task, failure, None),
            key::NOT_READY if sense.code == BECOMING_READY => self.retry(state, task, failure, Some(REST)),
            _ => state.finish(task, Err(failure)),
        }
    }

    /// Sends a command again, at once or after a rest, unless it was sent often enough.
    fn retry(&self, state: &mut State, task: u32, failure: Failure, rest: Option<Duration>) {
        let patience = self.location.patience;
        let Ok(slot) = under_way(state, task) else { return };
        slot.sent = None;
        let (setup, enough) = match rest {
            Some(_) => (slot.setup, slot.created.elapsed() > patience),
            None => (slot.setup, slot.attempts >= ATTEMPTS),
        };
        if enough {
            return state.finish(task, Err(failure));
        }
        if let Some(rest) = rest {
            // Being busy is no fault of the command.
            slot.attempts -= 1;
            slot.rest = Some(Instant::now() + rest);
            self.courier.notify_all();
            return;
        }
        if setup {
            state.own.push_front(task)
        } else {
            state.waiting.push_front(task)
        }
        state.work.push_back(Work::Pump);
        self.courier.notify_all();
    }

    fn ready(&self, state: &mut State, header: &Header) -> Result<()> {
        let burst = state.agreement.map_or(0, |agreement| agreement.burst);
        let (task, transfer) = (header.get(field::TASK), header.get(field::TRANSFER));
        let (offset, len) = (header.get(field::OFFSET) as usize, header.get(field::COUNT) as usize);
        let slot = under_way(state, task)?;
        let Data::Out(data) = &slot.command.data else {
            return Err(wrong("the target asks for data where there are none"));
        };
        if offset != slot.asked || len == 0 || len > burst || data.len() - slot.asked < len {
            return Err(wrong("the target asks for data out of order, or for too many"));
        }
        slot.asked += len;
        state.work.push_back(Work::Data { task, transfer, offset, len });
        self.courier.notify_all();
        Ok(())
    }

    fn ping(&self, state: &mut State, header: &Header, data: Vec<u8>) -> Result<()> {
        if header.get(field::TASK) == PING {
            state.pinged = None;
        }
        let transfer = header.get(field::TRANSFER);
        if transfer == NO_TAG {
            return Ok(());
        }
        let pongs = state.work.iter().filter(|work| matches!(work, Work::Pong { .. })).count();
        if pongs >= PONGS {
            return Err(wrong("the target pings faster than it listens"));
        }
        let segment = state.agreement.map_or(0, |agreement| agreement.segment);
        let answer = Header::new(opcode::NOP_OUT | IMMEDIATE, FINAL)
            .put(field::LUN, header.0.get(field::LUN..field::TASK).unwrap_or_default())
            .set(field::TASK, NO_TAG)
            .set(field::TRANSFER, transfer);
        let data = data.get(..segment.min(data.len())).map(<[u8]>::to_vec).unwrap_or_default();
        state.work.push_back(Work::Pong { header: answer, data });
        self.courier.notify_all();
        Ok(())
    }

    fn reject(&self, state: &mut State, header: &Header, data: &[u8]) -> Result<()> {
        let reason = header.byte(2);
        let rejected = data.first_chunk::<HEADER>().map(|bytes| Header(*bytes));
        let task = rejected.map(|rejected| rejected.get(field::TASK));
        match task {
            Some(task) if under_way(state, task).is_ok() => {
                state.finish(task, Err(Failure::Rejected(reason)));
                Ok(())
            }
            _ => Err(wrong(&format!("the target rejects what we say (reason {reason:#04x})"))),
        }
    }
}

/// RFC 7143, 11.9.1.
fn asynchronous(header: &Header, target: &str) -> Result<()> {
    match header.byte(field::SEQUENCE) {
        0 => Ok(()),
        1 => Err(wrong("the target asks us to leave")),
        2 | 3 => Err(wrong("the target drops the connection")),
        4 => Err(wrong("the target wants to agree anew")),
        event => {
            tracing::debug!("iSCSI target {target}: asynchronous event {event}");
            Ok(())
        }
    }
}

/// A command that was sent on this connection and is not done.
fn under_way(state: &mut State, task: u32) -> Result<&mut Slot> {
    let closed = matches!(state.phase, Phase::Closed(_));
    let slot = state.slots.get_mut(&task).filter(|slot| slot.outcome.is_none() && slot.sent.is_some());
    match slot {
        Some(slot) => Ok(slot),
        None if closed => Err(wrong("the session is closed")),
        None => Err(wrong("the target answers what nobody asked")),
    }
}
