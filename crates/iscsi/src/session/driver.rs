//! The driver: makes the connection, receives, and makes it again.

use super::{Phase, Session};
use crate::error::IscsiError;
use crate::login::{Login, SEGMENT, login};
use crate::scsi::{self, Command, Failure};
use crate::wire::{Receiver, Wire};
use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Times a target may send us elsewhere.
const MOVES: usize = 4;
/// The shortest and the longest pause between attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long a connection or a login may take, at most.
const SETUP: Duration = Duration::from_secs(15);

impl Session {
    fn step(&self) -> Duration {
        self.location.patience.min(SETUP)
    }

    /// Connects and logs in. Commands of others are not sent before [`Session::up`].
    pub(super) fn establish(&self) -> Result<Receiver, IscsiError> {
        let mut portal = self.location.portal.clone();
        for _ in 0..MOVES {
            let wire = self.dialer.dial(&portal, self.step());
            let wire = wire.map_err(|source| self.connect(&portal, "connecting", source))?;
            {
                // From here on, the courier ends it when it takes too long.
                let mut state = self.state.lock();
                if let Phase::Closed(why) = &state.phase {
                    return Err(self.target(&portal, why.clone()));
                }
                state.wire = Some(wire.clone());
                state.setup_until = Some(Instant::now() + self.step());
            }
            let mut receiver = Receiver::new(wire.clone(), SEGMENT);
            match login(&wire, &mut receiver, &self.location, self.isid) {
                Ok(Login::Done(agreement)) => {
                    receiver.digests = agreement.digests;
                    self.begin(wire, *agreement);
                    return Ok(receiver);
                }
                Ok(Login::Moved(elsewhere)) => portal = elsewhere,
                Err(source) => {
                    let in_time = self.state.lock().setup_until.take().is_some();
                    let late = || Error::new(ErrorKind::TimedOut, format!("no answer for {:?}", self.step()));
                    let source = if in_time { source } else { late() };
                    return Err(self.connect(&portal, "the login", source));
                }
            }
            wire.close();
        }
        Err(self.target(&portal, format!("it sends us elsewhere more than {MOVES} times")))
    }

    fn begin(&self, wire: Arc<dyn Wire>, agreement: crate::login::Agreement) {
        let mut out = self.out.lock();
        let mut state = self.state.lock();
        state.generation += 1;
        (out.wire, out.generation) = (Some(wire), state.generation);
        if !matches!(state.phase, Phase::Closed(_)) {
            state.phase = Phase::Setup;
        }
        (state.next_command, state.last_command) = agreement.window;
        state.expected = agreement.expected;
        state.agreement = Some(agreement);
        state.heard = Instant::now();
        state.work.clear();
    }

    /// Lets everybody's commands go.
    pub(super) fn up(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Setup {
            state.phase = Phase::Up;
            (state.down_since, state.setup_until) = (None, None);
        }
        drop(state);
        self.changed.notify_all();
        self.pump();
    }

    /// Receives until the end, on one connection after the other.
    pub(super) fn drive(&self, mut receiver: Receiver) {
        loop {
            let generation = self.state.lock().generation;
            let error = loop {
                if let Err(error) = self.receive(&mut receiver) {
                    break error;
                }
            };
            self.lose(generation, &error.to_string());
            match self.again() {
                Some(new) => receiver = new,
                None => return,
            }
        }
    }

    /// Makes the connection again; `None` at the end.
    fn again(&self) -> Option<Receiver> {
        let mut pause = PAUSES.0;
        loop {
            if matches!(self.state.lock().phase, Phase::Closed(_)) {
                return None;
            }
            match self.establish() {
                Ok(mut receiver) => match self.restore(&mut receiver) {
                    Ok(()) => {
                        tracing::info!("iSCSI target {}: connected again", self.location.target);
                        self.up();
                        return Some(receiver);
                    }
                    Err(why) => self.down(&why),
                },
                Err(error) => self.down(&block::with_causes(&error)),
            }
            let mut state = self.state.lock();
            if !matches!(state.phase, Phase::Closed(_)) {
                // Woken early, it tries early.
                self.changed.wait_for(&mut state, pause);
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn down(&self, why: &str) {
        let mut state = self.state.lock();
        if let Some(wire) = state.wire.take() {
            wire.close();
        }
        state.setup_until = None;
        if !matches!(state.phase, Phase::Closed(_)) {
            state.phase = Phase::Down(why.to_owned());
        }
    }

    /// Makes sure that the logical unit is the one it was, and repeats what it may have forgotten.
    fn restore(&self, receiver: &mut Receiver) -> Result<(), String> {
        let Some(known) = self.state.lock().facts.clone() else { return Ok(()) };
        let found = scsi::ask(&mut |command| self.call_alone(receiver, command))?;
        if (found.block, found.blocks, &found.name) != (known.block, known.blocks, &known.name) {
            let why = format!(
                "logical unit {} of {} is another one since the connection broke: its size or its name differs",
                self.location.lun, self.location.target
            );
            self.end(&mut self.state.lock(), &why);
            return Err(why);
        }
        let (kept, number) = {
            let state = self.state.lock();
            let kept: Vec<Command> = state.kept.iter().map(|(_, command)| command.clone()).collect();
            (kept, state.kept_number)
        };
        if kept.is_empty() {
            return Ok(());
        }
        let lost = |failure| format!("a write that was not flushed yet cannot be repeated: {failure}");
        for command in kept {
            self.call_alone(receiver, command).map_err(lost)?;
        }
        // Once is enough, if it can be made sure of.
        match self.call_alone(receiver, Command::flush(true)) {
            Ok(_) => self.state.lock().covered(number),
            Err(failure) if failure.is_unknown() => {}
            Err(failure) => return Err(lost(failure)),
        }
        Ok(())
    }

    /// Sends a command before all others, and receives until it is done.
    fn call_alone(&self, receiver: &mut Receiver, command: Command) -> Result<Vec<u8>, Failure> {
        let (task, generation) = {
            let mut state = self.state.lock();
            state.setup_until = Some(Instant::now() + self.step());
            (state.add(command, true), state.generation)
        };
        self.pump();
        loop {
            {
                let mut state = self.state.lock();
                if let Some(outcome) = state.slots.get_mut(&task).and_then(|slot| slot.outcome.take()) {
                    state.slots.remove(&task);
                    return outcome;
                }
            }
            if let Err(error) = self.receive(receiver) {
                self.lose(generation, &error.to_string());
                self.state.lock().slots.remove(&task);
                return Err(Failure::Gone(error.to_string()));
            }
        }
    }
}
