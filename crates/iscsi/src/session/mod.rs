//! Sessions: commands under way on a connection that is made again when it breaks.
//!
//! Callers put a command into the [`State`] and wait. [`Session::pump`] gives commands their numbers and sends them, as
//! far as the target's window is open. Two threads belong to a session: the *driver* makes the connection and receives;
//! the *courier* sends what the driver may not (a sender can wait for a target that waits for us to receive), and ends
//! what takes too long.

mod courier;
mod driver;
mod receive;

use crate::error::IscsiError;
use crate::login::Agreement;
use crate::pdu::{FINAL, Header, NO_TAG, before, field, lun_field, opcode};
use crate::scsi::{Command, Data, Facts, Failure};
use crate::uri::{Location, Portal};
use crate::wire::{Dialer, Wire, send};
use courier::Work;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::io::Error;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Times a command is sent before it fails.
const ATTEMPTS: u32 = 8;
/// Bytes of writes that are kept until a flush covers them.
const KEPT: u64 = 32 << 20;

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// No connection, for this reason.
    Down(String),
    /// A connection that only the driver's own commands use yet.
    Setup,
    /// A connection.
    Up,
    /// The end, for this reason.
    Closed(String),
}

/// A command on its way.
struct Slot {
    command: Command,
    /// The driver's own, on a new connection.
    setup: bool,
    /// What came.
    data: Vec<u8>,
    received: usize,
    /// First byte that the target has not asked for.
    asked: usize,
    attempts: u32,
    /// When it was sent on this connection.
    sent: Option<Instant>,
    /// When it may be sent again.
    rest: Option<Instant>,
    created: Instant,
    outcome: Option<Result<Vec<u8>, Failure>>,
    done: Arc<Condvar>,
}

/// What all threads share.
struct State {
    phase: Phase,
    /// Number of the connection, so that the end of an old one does not end a new one.
    generation: u64,
    /// The connection's end can be brought about by anyone.
    wire: Option<Arc<dyn Wire>>,
    agreement: Option<Agreement>,
    slots: BTreeMap<u32, Slot>,
    /// Commands that are to be sent, the driver's own before the others.
    own: VecDeque<u32>,
    waiting: VecDeque<u32>,
    next_task: u32,
    /// `CmdSN` of the next command, and the last one that the target takes.
    next_command: u32,
    last_command: u32,
    expected: u32,
    work: VecDeque<Work>,
    /// When the connection was lost, until it is there again.
    down_since: Option<Instant>,
    /// When the driver's current step must be done.
    setup_until: Option<Instant>,
    heard: Instant,
    pinged: Option<Instant>,
    /// Writes that no flush has covered, in the order in which they were done.
    kept: VecDeque<(u64, Command)>,
    kept_bytes: u64,
    kept_number: u64,
    /// What the logical unit said of itself; a new connection must find the same.
    facts: Option<Facts>,
    logged_out: bool,
}

/// The sending half of a connection.
#[derive(Default)]
struct Out {
    wire: Option<Arc<dyn Wire>>,
    generation: u64,
}

/// A session with a target, for one of its logical units.
pub(crate) struct Session {
    location: Location,
    lun: [u8; 8],
    isid: [u8; 6],
    dialer: Box<dyn Dialer>,
    /// Locked before `state`.
    out: Mutex<Out>,
    state: Mutex<State>,
    /// Work for the courier.
    courier: Condvar,
    /// The phase has changed.
    changed: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl State {
    fn new() -> Self {
        State {
            phase: Phase::Setup,
            generation: 0,
            wire: None,
            agreement: None,
            slots: BTreeMap::new(),
            own: VecDeque::new(),
            waiting: VecDeque::new(),
            next_task: 1,
            next_command: 1,
            last_command: 1,
            expected: 0,
            work: VecDeque::new(),
            down_since: None,
            setup_until: None,
            heard: Instant::now(),
            pinged: None,
            kept: VecDeque::new(),
            kept_bytes: 0,
            kept_number: 0,
            facts: None,
            logged_out: false,
        }
    }

    /// Adds a command to those that are to be sent.
    fn add(&mut self, command: Command, setup: bool) -> u32 {
        let task = self.next_task;
        // The upper half is for what is no command.
        self.next_task = if task >= i32::MAX as u32 { 1 } else { task + 1 };
        let slot = Slot {
            command,
            setup,
            data: Vec::new(),
            received: 0,
            asked: 0,
            attempts: 0,
            sent: None,
            rest: None,
            created: Instant::now(),
            outcome: None,
            done: Arc::new(Condvar::new()),
        };
        self.slots.insert(task, slot);
        if setup {
            self.own.push_back(task)
        } else {
            self.waiting.push_back(task)
        }
        task
    }

    /// Ends a command.
    fn finish(&mut self, task: u32, outcome: Result<Vec<u8>, Failure>) {
        let Some(slot) = self.slots.get_mut(&task).filter(|slot| slot.outcome.is_none()) else { return };
        let keep = slot.command.changes && !slot.setup && outcome.is_ok();
        let command = keep.then(|| slot.command.clone());
        slot.outcome = Some(outcome);
        slot.done.notify_all();
        if let (Some(command), true) = (command, self.facts.as_ref().is_some_and(|facts| facts.cache)) {
            self.kept_number += 1;
            self.kept_bytes += u64::from(command.data.len());
            self.kept.push_back((self.kept_number, command));
        }
    }

    /// A flush that began after the write of this number is done.
    fn covered(&mut self, number: u64) {
        while let Some((_, command)) = self.kept.pop_front_if(|(kept, _)| *kept <= number) {
            self.kept_bytes = self.kept_bytes.saturating_sub(command.data.len().into());
        }
    }

    /// The next command that can be sent, with its header and its immediate data's length.
    fn next(&mut self, lun: [u8; 8]) -> Option<(Header, Command, usize)> {
        let open = !before(self.last_command, self.next_command);
        if !open || !matches!(self.phase, Phase::Setup | Phase::Up) {
            return None;
        }
        let agreement = self.agreement?;
        let task = match self.own.pop_front() {
            Some(task) => task,
            None if self.phase == Phase::Up => self.waiting.pop_front()?,
            None => return None,
        };
        let (number, expected) = (self.next_command, self.expected);
        let Some(slot) = self.slots.get_mut(&task).filter(|slot| slot.outcome.is_none()) else {
            return self.next(lun);
        };
        self.next_command = self.next_command.wrapping_add(1);
        slot.attempts += 1;
        slot.sent = Some(Instant::now());
        let len = slot.command.data.len();
        let (flags, immediate) = match slot.command.data {
            Data::None => (0, 0),
            Data::In(_) => {
                slot.data.clear();
                slot.data.resize(len as usize, 0);
                (0x40, 0)
            }
            Data::Out(_) => (0x20, agreement.immediate.min(len as usize)),
        };
        (slot.received, slot.asked) = (0, immediate);
        // The attribute is "simple"; no unsolicited data follow.
        let header = Header::new(opcode::COMMAND, FINAL | flags | 1)
            .put(field::LUN, &lun)
            .set(field::TASK, task)
            .set(field::TRANSFER, len)
            .set(field::NUMBER, number)
            .set(field::EXPECTED, expected)
            .put(field::WINDOW, &slot.command.bytes)
            .length(immediate);
        Some((header, slot.command.clone(), immediate))
    }

    /// Ends all commands; with `own`, also those of the driver.
    fn fail_all(&mut self, why: &str, own: bool) {
        let tasks = self.slots.iter().filter(|(_, slot)| own || !slot.setup).map(|(task, _)| *task);
        for task in tasks.collect::<Vec<u32>>() {
            self.finish(task, Err(Failure::Gone(why.to_owned())));
        }
        self.waiting.clear();
        if own {
            self.own.clear();
        }
    }
}

impl Session {
    /// Logs in.
    pub fn open(location: &Location, dialer: Box<dyn Dialer>) -> Result<Arc<Self>, IscsiError> {
        let host = |what| move |source| IscsiError::Host { what, source };
        let session = Arc::new(Session {
            location: location.clone(),
            lun: lun_field(location.lun),
            isid: crate::identity::session().map_err(host("random bytes"))?,
            dialer,
            out: Mutex::default(),
            state: Mutex::new(State::new()),
            courier: Condvar::new(),
            changed: Condvar::new(),
            threads: Mutex::default(),
        });
        let thread = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(host("a thread"))
        };
        let of_courier = session.clone();
        let courier = thread("iscsi-courier", Box::new(move || of_courier.carry()))?;
        session.threads.lock().push(courier);
        // From here on, `close` ends what was begun.
        let receiver = match session.establish() {
            Ok(receiver) => receiver,
            Err(error) => {
                session.close();
                return Err(error);
            }
        };
        session.up();
        let of_driver = session.clone();
        match thread("iscsi-driver", Box::new(move || of_driver.drive(receiver))) {
            Ok(driver) => session.threads.lock().push(driver),
            Err(error) => {
                session.close();
                return Err(error);
            }
        }
        Ok(session)
    }

    /// Remembers what the logical unit is, so that another one in its place is noticed.
    pub fn is(&self, facts: Facts) {
        self.state.lock().facts = Some(facts);
    }

    /// Sends a command; [`Session::wait`] must follow.
    pub fn submit(&self, command: Command) -> u32 {
        let task = self.state.lock().add(command, false);
        self.pump();
        task
    }

    /// Waits for what comes of a command.
    pub fn wait(&self, task: u32) -> Result<Vec<u8>, Failure> {
        let mut state = self.state.lock();
        loop {
            let gone = || Err(Failure::Gone("the command was waited for already".to_owned()));
            let Some(slot) = state.slots.get_mut(&task) else { return gone() };
            if let Some(outcome) = slot.outcome.take() {
                state.slots.remove(&task);
                return outcome;
            }
            let done = slot.done.clone();
            self.refuse_the_hopeless(&mut state, task);
            if state.slots.get(&task).is_some_and(|slot| slot.outcome.is_none()) {
                done.wait(&mut state);
            }
        }
    }

    /// A command that comes when there was no connection for too long does not wait for one.
    fn refuse_the_hopeless(&self, state: &mut State, task: u32) {
        let why = match &state.phase {
            Phase::Closed(why) => why.clone(),
            Phase::Down(why) if self.is_hopeless(state) => self.gone(why),
            Phase::Setup if self.is_hopeless(state) => self.gone("it does not come back to work"),
            _ => return,
        };
        state.finish(task, Err(Failure::Gone(why)));
    }

    fn is_hopeless(&self, state: &State) -> bool {
        state.down_since.is_some_and(|since| since.elapsed() >= self.location.patience)
    }

    fn gone(&self, why: &str) -> String {
        let seconds = self.location.patience.as_secs();
        format!("the target {} was gone for {seconds} s: {why}", self.location.target)
    }

    /// Sends a command and waits.
    pub fn call(&self, command: Command) -> Result<Vec<u8>, Failure> {
        let task = self.submit(command);
        self.wait(task)
    }

    /// Makes all completed writes survive a power loss, with what does so.
    pub fn flush(&self, flush: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let number = self.state.lock().kept_number;
        flush()?;
        self.state.lock().covered(number);
        Ok(())
    }

    /// Whether so much is kept for repetition that a flush is due.
    pub fn wants_flush(&self) -> bool {
        let state = self.state.lock();
        state.kept_bytes > KEPT || state.kept.len() > 1 << 16
    }

    /// Sends what can be sent.
    fn pump(&self) {
        let mut out = self.out.lock();
        loop {
            let (next, digests) = {
                let mut state = self.state.lock();
                if state.generation != out.generation {
                    return;
                }
                (state.next(self.lun), state.agreement.map(|agreement| agreement.digests))
            };
            let (Some((header, command, immediate)), Some(wire)) = (next, &out.wire) else { return };
            let data = match &command.data {
                Data::Out(data) => data.get(..immediate).unwrap_or_default(),
                _ => &[],
            };
            if let Err(error) = send(&**wire, digests.unwrap_or_default(), &header, data) {
                let generation = out.generation;
                out.wire = None;
                drop(out);
                return self.lose(generation, &format!("sending failed: {error}"));
            }
        }
    }

    /// The connection of this number is of no use any more.
    fn lose(&self, generation: u64, why: &str) {
        let mut state = self.state.lock();
        if state.generation != generation || !matches!(state.phase, Phase::Setup | Phase::Up) {
            return;
        }
        tracing::warn!("iSCSI target {}: the connection broke: {why}", self.location.target);
        state.phase = Phase::Down(why.to_owned());
        state.down_since.get_or_insert_with(Instant::now);
        (state.setup_until, state.pinged) = (None, None);
        state.work.clear();
        state.own.clear();
        if let Some(wire) = state.wire.take() {
            wire.close();
        }
        // What was under way goes again, in the order it came; a new connection's setup begins anew.
        let mut again = Vec::new();
        let mut given_up = Vec::new();
        for (task, slot) in state.slots.iter_mut().filter(|(_, slot)| slot.outcome.is_none()) {
            (slot.sent, slot.rest) = (None, None);
            match slot.setup || slot.attempts >= ATTEMPTS {
                true => given_up.push(*task),
                false => again.push(*task),
            }
        }
        for task in given_up {
            state.finish(task, Err(Failure::Gone(format!("the connection broke: {why}"))));
        }
        state.waiting = again.into();
        self.changed.notify_all();
        self.courier.notify_all();
    }

    /// The name of what failed at opening.
    fn target(&self, portal: &Portal, problem: String) -> IscsiError {
        IscsiError::Target { target: self.location.target.clone(), portal: portal.to_string(), problem }
    }

    fn connect(&self, portal: &Portal, action: &'static str, source: Error) -> IscsiError {
        IscsiError::Connect {
            target: self.location.target.clone(),
            portal: portal.to_string(),
            action,
            source,
        }
    }

    /// Says farewell and ends the threads.
    pub fn close(&self) {
        /// How long a target may take to hear it.
        const FAREWELL: Duration = Duration::from_secs(2);
        let mut state = self.state.lock();
        if state.phase == Phase::Up {
            state.work.push_back(Work::Logout);
            self.courier.notify_all();
            let until = Instant::now() + FAREWELL;
            while !state.logged_out && state.phase == Phase::Up {
                if self.changed.wait_until(&mut state, until).timed_out() {
                    break;
                }
            }
        }
        self.end(&mut state, "the disk is closed");
        drop(state);
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }

    /// No connection is made any more.
    fn end(&self, state: &mut State, why: &str) {
        if !matches!(state.phase, Phase::Closed(_)) {
            state.phase = Phase::Closed(why.to_owned());
        }
        if let Some(wire) = state.wire.take() {
            wire.close();
        }
        state.fail_all(why, true);
        self.changed.notify_all();
        self.courier.notify_all();
    }
}

/// A tag that is no command's, for pings.
const PING: u32 = NO_TAG - 1;
/// A tag that is no command's, for the farewell.
const FAREWELL: u32 = NO_TAG - 2;
