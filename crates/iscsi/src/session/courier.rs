//! The courier: sends what the target asks for, and ends what takes too long.

use super::{FAREWELL, PING, Phase, Session, State};
use crate::pdu::{FINAL, Header, IMMEDIATE, NO_TAG, field, opcode};
use crate::scsi::{Data, Failure};
use crate::wire::{Digests, send};
use std::io::Result;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is to be sent that is no command.
pub(super) enum Work {
    /// Data that the target asks for.
    Data { task: u32, transfer: u32, offset: usize, len: usize },
    /// The answer to a ping.
    Pong { header: Header, data: Vec<u8> },
    /// A ping of ours.
    Ping,
    /// The end of the session.
    Logout,
    /// Commands may be sent now that could not before.
    Pump,
}

/// A part of a command's data that a header goes with.
struct Part {
    header: Header,
    data: Arc<Vec<u8>>,
    range: std::ops::Range<usize>,
}

impl Session {
    /// Until the session's end.
    pub(super) fn carry(&self) {
        let tick = (self.location.patience / 8).clamp(Duration::from_millis(20), Duration::from_secs(1));
        loop {
            let (work, generation) = {
                let mut state = self.state.lock();
                if let Phase::Closed(_) = state.phase {
                    return;
                }
                if state.work.is_empty() {
                    let rested = state.slots.values().filter_map(|slot| slot.rest).min();
                    let until = Instant::now() + tick;
                    self.courier.wait_until(&mut state, rested.map_or(until, |rested| rested.min(until)));
                }
                (state.work.pop_front(), state.generation)
            };
            if let Some(work) = work
                && let Err(error) = self.carry_out(work, generation)
            {
                self.lose(generation, &format!("sending failed: {error}"));
            }
            self.mind_the_time();
        }
    }

    fn carry_out(&self, work: Work, generation: u64) -> Result<()> {
        match work {
            Work::Pump => self.pump(),
            Work::Data { task, transfer, offset, len } => {
                return self.data_out(generation, task, transfer, offset..offset + len);
            }
            Work::Pong { header, data } => self.say(generation, header, &data)?,
            Work::Ping => {
                let ping = Header::new(opcode::NOP_OUT | IMMEDIATE, FINAL)
                    .set(field::TASK, PING)
                    .set(field::TRANSFER, NO_TAG);
                self.say(generation, ping, &[])?;
            }
            Work::Logout => {
                let logout = Header::new(opcode::LOGOUT | IMMEDIATE, FINAL).set(field::TASK, FAREWELL);
                self.say(generation, logout, &[])?;
            }
        }
        Ok(())
    }

    /// Sends what has the next command's number without using it up.
    fn say(&self, generation: u64, header: Header, data: &[u8]) -> Result<()> {
        let out = self.out.lock();
        let (number, expected, digests) = {
            let state = self.state.lock();
            (state.next_command, state.expected, digests(&state))
        };
        match &out.wire {
            Some(wire) if out.generation == generation => {
                let header =
                    header.set(field::NUMBER, number).set(field::EXPECTED, expected).length(data.len());
                send(&**wire, digests, &header, data)
            }
            _ => Ok(()),
        }
    }

    fn data_out(
        &self,
        generation: u64,
        task: u32,
        transfer: u32,
        range: std::ops::Range<usize>,
    ) -> Result<()> {
        let mut number = 0;
        let mut at = range.start;
        while at < range.end {
            // Commands of others go between the parts.
            let out = self.out.lock();
            let (part, digests) = {
                let state = self.state.lock();
                let segment = state.agreement.map_or(0, |agreement| agreement.segment);
                let end = range.end.min(at + segment.max(512));
                let Some(data) = written(&state, task) else { return Ok(()) };
                let last = if end == range.end { FINAL } else { 0 };
                let header = Header::new(opcode::DATA_OUT, last)
                    .put(field::LUN, &self.lun)
                    .set(field::TASK, task)
                    .set(field::TRANSFER, transfer)
                    .set(field::EXPECTED, state.expected)
                    .set(field::SEQUENCE, number)
                    .set(field::OFFSET, at as u32)
                    .length(end - at);
                (Part { header, data, range: at..end }, digests(&state))
            };
            let Some(wire) = out.wire.as_ref().filter(|_| out.generation == generation) else {
                return Ok(());
            };
            let bytes = part.data.get(part.range.clone()).unwrap_or_default();
            send(&**wire, digests, &part.header, bytes)?;
            number += 1;
            at = part.range.end;
        }
        Ok(())
    }

    /// Ends what takes too long, and asks a silent target whether it is there.
    fn mind_the_time(&self) {
        let patience = self.location.patience;
        let now = Instant::now();
        let mut state = self.state.lock();
        let generation = state.generation;
        if state.setup_until.is_some_and(|until| now > until) {
            state.setup_until = None;
            if let Some(wire) = &state.wire {
                wire.close();
            }
        }
        if self.is_hopeless(&state) {
            let why = match &state.phase {
                Phase::Down(why) => why,
                _ => "it does not come back to work",
            };
            let why = self.gone(why);
            state.fail_all(&why, false);
        }
        self.wake_the_rested(&mut state, now);
        if state.phase != Phase::Up {
            return;
        }
        let age =
            |sent: Option<Instant>| sent.map_or(Duration::ZERO, |sent| now.saturating_duration_since(sent));
        let oldest =
            state.slots.values().filter(|slot| slot.outcome.is_none()).map(|slot| age(slot.sent)).max();
        let quiet = now.saturating_duration_since(state.heard);
        let why = if oldest.is_some_and(|oldest| oldest > patience) {
            format!("a command was not answered for {} s", patience.as_secs())
        } else if state.pinged.is_some_and(|pinged| age(Some(pinged)) > patience / 4) {
            "the target does not answer".to_owned()
        } else {
            if quiet > patience / 4 && state.pinged.is_none() {
                state.pinged = Some(now);
                state.work.push_back(Work::Ping);
            }
            return;
        };
        drop(state);
        self.lose(generation, &why);
    }

    /// Commands that the target was too busy for go again.
    fn wake_the_rested(&self, state: &mut State, now: Instant) {
        let patience = self.location.patience;
        let (mut ready, mut late) = (Vec::new(), Vec::new());
        for (task, slot) in state.slots.iter_mut() {
            if slot.rest.is_some_and(|rest| rest <= now) {
                slot.rest = None;
                let list = if now.saturating_duration_since(slot.created) > patience {
                    &mut late
                } else {
                    &mut ready
                };
                list.push((*task, slot.setup));
            }
        }
        for (task, _) in late {
            state.finish(task, Err(Failure::Status(crate::scsi::status::BUSY)));
        }
        if ready.is_empty() {
            return;
        }
        for (task, setup) in ready {
            if setup { state.own.push_back(task) } else { state.waiting.push_back(task) }
        }
        state.work.push_back(Work::Pump);
    }
}

fn digests(state: &State) -> Digests {
    state.agreement.map(|agreement| agreement.digests).unwrap_or_default()
}

/// The data of a write that is under way.
fn written(state: &State, task: u32) -> Option<Arc<Vec<u8>>> {
    let slot = state.slots.get(&task).filter(|slot| slot.outcome.is_none() && slot.sent.is_some())?;
    match &slot.command.data {
        Data::Out(data) => Some(data.clone()),
        _ => None,
    }
}
