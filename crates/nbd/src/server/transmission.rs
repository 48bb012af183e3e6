//! The server's side of the transmission: requests of one connection, several at a time.
//!
//! The threads of a connection take turns in *leading*: the leader alone receives. A request that may take long (much
//! data, a flush, a disk that has been slow) makes the leader hand over: another thread leads, and this one works. A
//! short read or write on a disk that answers at once is done by the leader itself, and the replies to all requests
//! that came together leave together; a change of threads would cost more than the work.
//!
//! A connection begins with one thread; more come when nobody is free to lead, up to the limit. Payloads take memory
//! from the connection's budget, so that a client cannot make the server hold more than [`BUDGET`] for it.

use super::Shared;
use super::execute::{Executor, PIECE};
use super::handshake::Agreed;
use super::output::Output;
use crate::protocol::{PAYLOAD_MAX, REQUEST_LEN, Request, command, command_flag, errno};
use crate::wire::{Receiver, Wire};
use parking_lot::{Condvar, Mutex};
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Scope;
use std::time::Instant;

/// Most bytes of payloads that a connection holds in memory.
pub const BUDGET: u64 = 64 << 20;
/// Longest request the leader does itself.
const SHORT: u32 = 32 << 10;
/// Longest mean time of a request, in nanoseconds, with which the leader goes on to do requests itself.
const PROMPT: u64 = 50_000;

/// Memory that requests take and give back.
struct Budget {
    free: Mutex<u64>,
    returned: Condvar,
}

impl Budget {
    /// Waits until there is enough. Whoever waits leads, and nobody needs the leader to give back.
    fn take(&self, bytes: u64) {
        let mut free = self.free.lock();
        while *free < bytes {
            self.returned.wait(&mut free);
        }
        *free -= bytes;
    }

    fn give(&self, bytes: u64) {
        *self.free.lock() += bytes;
        self.returned.notify_one();
    }
}

struct Connection<'a> {
    shared: &'a Shared,
    executor: Executor<'a>,
    wire: Arc<dyn Wire>,
    lead: Mutex<Receiver>,
    /// Threads that wait to lead.
    free: AtomicUsize,
    threads: AtomicUsize,
    /// The client has said farewell, or the connection broke: nobody leads any more.
    ended: AtomicBool,
    /// Why the connection broke.
    broken: Mutex<Option<Error>>,
    /// Moving mean of what little requests took, in nanoseconds.
    mean: AtomicU64,
    budget: Budget,
}

/// A request with what it needs.
struct Work {
    request: Request,
    payload: Vec<u8>,
    /// Taken from the budget.
    cost: u64,
}

/// What the leader's turn ends with.
enum Turn {
    /// A request to do after another thread leads.
    Work(Work),
    End,
}

/// Serves a client until it leaves.
pub fn serve(shared: &Shared, agreed: Agreed) -> Result<()> {
    let Agreed { export, structured, contexts, receiver } = agreed;
    let executor = Executor { export: &export, size: export.disk.size(), structured, contexts: &contexts };
    let connection = Connection {
        shared,
        executor,
        wire: receiver.wire().clone(),
        lead: Mutex::new(receiver),
        free: AtomicUsize::new(0),
        threads: AtomicUsize::new(1),
        ended: AtomicBool::new(false),
        broken: Mutex::new(None),
        mean: AtomicU64::new(0),
        budget: Budget { free: Mutex::new(BUDGET), returned: Condvar::new() },
    };
    std::thread::scope(|scope| connection.work(scope));
    match connection.broken.into_inner() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl<'a> Connection<'a> {
    /// A thread's life.
    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        if let Err(error) = self.turns(scope) {
            self.broken.lock().get_or_insert(error);
            self.end();
        }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.wire.close();
    }

    fn turns<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Result<()> {
        let mut output = Output::new(&*self.wire, self.executor.structured);
        loop {
            self.free.fetch_add(1, Ordering::AcqRel);
            let mut receiver = self.lead.lock();
            self.free.fetch_sub(1, Ordering::AcqRel);
            if self.ended.load(Ordering::Acquire) {
                return Ok(());
            }
            let turn = self.lead(&mut receiver, &mut output);
            if matches!(turn, Ok(Turn::End) | Err(_)) {
                self.ended.store(true, Ordering::Release);
            }
            let work = match turn? {
                Turn::End => return output.send(),
                Turn::Work(work) => work,
            };
            self.another_leader(scope);
            drop(receiver);
            // Replies of the leader's own turn need not wait for this request.
            output.send()?;
            let done = self.timed(&work, &mut output);
            self.budget.give(work.cost);
            done?;
            drop(work);
            output.send()?;
        }
    }

    /// Sees to it that somebody leads when this thread does not.
    fn another_leader<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let count = self.threads.load(Ordering::Acquire);
        if self.free.load(Ordering::Acquire) > 0 || count >= self.shared.options.in_flight {
            return;
        }
        // Only who leads comes here, so that the count cannot be overtaken.
        self.threads.store(count + 1, Ordering::Release);
        let thread = std::thread::Builder::new().name("nbd".to_owned());
        if thread.spawn_scoped(scope, move || self.work(scope)).is_err() {
            // Requests wait for each other then.
            self.threads.store(count, Ordering::Release);
        }
    }

    /// Receives, and does what is short, until something takes long or the client leaves.
    fn lead(&self, receiver: &mut Receiver, output: &mut Output<'_>) -> Result<Turn> {
        loop {
            if receiver.ready().len() < REQUEST_LEN {
                output.send()?;
            }
            let mut bytes = [0; REQUEST_LEN];
            if !receiver.exact_or_end(&mut bytes)? {
                return Ok(Turn::End);
            }
            let request = Request::parse(&bytes)
                .ok_or_else(|| Error::new(ErrorKind::InvalidData, "a request without its magic number"))?;
            if request.command == command::DISC {
                return Ok(Turn::End);
            }
            if self.shared.is_stopping() {
                self.skip_payload(&request, receiver)?;
                output.fail_with(request.cookie, errno::ESHUTDOWN, "the server ends")?;
                continue;
            }
            let refused = self.executor.refusal(&request).is_some();
            if refused {
                self.skip_payload(&request, receiver)?;
                self.executor.execute(&request, &[], output)?;
                continue;
            }
            let cost = self.cost(&request);
            if cost > 0 {
                // Replies that wait would keep the client from taking what frees the budget.
                output.send()?;
                self.budget.take(cost);
            }
            let work = Work { request, payload: payload(&request, receiver)?, cost };
            if !self.is_short(&request) {
                return Ok(Turn::Work(work));
            }
            self.timed(&work, output)?;
        }
    }

    /// Does a request. What little ones take says whether the leader goes on to do them.
    fn timed(&self, work: &Work, output: &mut Output<'_>) -> Result<()> {
        let began = Instant::now();
        self.executor.execute(&work.request, &work.payload, output)?;
        if is_little(&work.request) {
            let taken = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let mean = self.mean.load(Ordering::Relaxed);
            self.mean.store(mean - mean / 8 + taken / 8, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Bytes of memory a request takes that are worth counting.
    fn cost(&self, request: &Request) -> u64 {
        let pieces = self.executor.structured && request.flags & command_flag::DF == 0;
        let bytes = match request.command {
            command::WRITE => request.len,
            command::READ if pieces => request.len.min(PIECE),
            command::READ => request.len,
            command::CACHE => PIECE,
            _ => 0,
        };
        if bytes <= SHORT { 0 } else { bytes.into() }
    }

    fn is_short(&self, request: &Request) -> bool {
        is_little(request) && self.mean.load(Ordering::Relaxed) <= PROMPT
    }

    fn skip_payload(&self, request: &Request, receiver: &mut Receiver) -> Result<()> {
        if request.command == command::WRITE { receiver.skip(request.len.into()) } else { Ok(()) }
    }
}

fn is_little(request: &Request) -> bool {
    let moves_data = matches!(request.command, command::READ | command::WRITE);
    moves_data && request.flags & command_flag::FUA == 0 && request.len <= SHORT
}

/// What a write sends; its length is at most [`PAYLOAD_MAX`], or it had been refused.
fn payload(request: &Request, receiver: &mut Receiver) -> Result<Vec<u8>> {
    if request.command != command::WRITE {
        return Ok(Vec::new());
    }
    let mut payload = vec![0; request.len.min(PAYLOAD_MAX) as usize];
    receiver.exact(&mut payload)?;
    Ok(payload)
}
