//! Clients of a control socket.
//!
//! A client costs at most its two threads, one line and [`OUTGOING`] waiting lines. One that sends a line beyond the
//! bound, or does not read what it asked for, is cut off; the driver never waits for any of them.

use super::protocol::{
    Command, Event, MAX_LINE, Refusal, RefusalKind, event_line, parse_request, reply_line,
};
use crate::driver::Request;
use crate::socket::Listener;
use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

/// Clients at a time.
pub const MAX_CLIENTS: usize = 16;
/// Lines that wait for a client to read them.
const OUTGOING: usize = 64;
/// How long a client may take to read a line.
const WRITE_TIME: Duration = Duration::from_secs(5);
/// How long the last lines may take, to all clients.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

enum Outgoing {
    Line(String),
    Close,
}

/// Where a client is with its requests. A machine that ends lets the last answer out first.
#[derive(Default)]
struct Progress {
    /// A request is with the driver, or its answer not yet queued.
    busy: bool,
    /// The machine ends.
    ending: bool,
}

struct Client {
    progress: Mutex<Progress>,
    outgoing: SyncSender<Outgoing>,
    stream: UnixStream,
    wants_events: AtomicBool,
}

impl Client {
    /// Says farewell, now or after the answer that is due.
    fn end(&self) {
        let mut progress = self.progress.lock();
        progress.ending = true;
        if !progress.busy {
            self.say(Outgoing::Close);
        }
    }

    /// The answer is queued; whether the machine goes on.
    fn answered(&self) -> bool {
        let mut progress = self.progress.lock();
        progress.busy = false;
        !progress.ending
    }

    /// Queues a line; a client that lets them pile up is cut off.
    fn say(&self, outgoing: Outgoing) {
        if self.outgoing.try_send(outgoing).is_err() {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

#[derive(Default)]
struct Clients {
    list: Mutex<Vec<Arc<Client>>>,
    left: Condvar,
}

/// The listening side. Dropped, it says farewell, and the path is gone.
pub struct Server {
    clients: Arc<Clients>,
    listener: Arc<Listener>,
}

impl Server {
    /// Serves clients, on threads of its own.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn start(listener: Listener, requests: Sender<Request>) -> Result<Self> {
        let server = Server { clients: Arc::default(), listener: Arc::new(listener) };
        let (clients, listener) = (server.clients.clone(), server.listener.clone());
        crate::thread::spawn("control", move || {
            loop {
                match listener.socket.accept() {
                    Ok((stream, _)) => drop(clients.clone().serve(stream, requests.clone())),
                    // Out of descriptors, perhaps: others may close some.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        })?;
        Ok(server)
    }

    /// Tells everybody who asked for events.
    pub fn announce(&self, event: &Event) {
        let line = event_line(event);
        let list = self.clients.list.lock();
        for client in list.iter().filter(|client| client.wants_events.load(Ordering::Acquire)) {
            client.say(Outgoing::Line(line.clone()));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listener.remove();
        let end = Instant::now() + FAREWELL_TIME;
        let mut list = self.clients.list.lock();
        list.iter().for_each(|client| client.end());
        while !list.is_empty() && !self.clients.left.wait_until(&mut list, end).timed_out() {}
    }
}

impl Clients {
    fn serve(self: Arc<Self>, mut stream: UnixStream, requests: Sender<Request>) -> Result<()> {
        stream.set_write_timeout(Some(WRITE_TIME))?;
        let (outgoing, lines) = sync_channel(OUTGOING);
        let client = Arc::new(Client {
            outgoing,
            stream: stream.try_clone()?,
            wants_events: AtomicBool::new(false),
            progress: Mutex::default(),
        });
        {
            let mut list = self.list.lock();
            if list.len() >= MAX_CLIENTS {
                let message = format!("{MAX_CLIENTS} clients are connected; disconnect one");
                let refusal = Refusal::new(RefusalKind::Busy, message);
                // Fits into the empty socket's buffer: nobody waits.
                return stream.write_all(reply_line(&Value::Null, &Err(refusal)).as_bytes());
            }
            list.push(client.clone());
        }
        let writer = client.clone();
        let clients = self.clone();
        let write = move || {
            write_lines(stream, &lines);
            let mut list = clients.list.lock();
            list.retain(|other| !Arc::ptr_eq(other, &writer));
            clients.left.notify_all();
        };
        let read = client.clone();
        let started = crate::thread::spawn("control-out", write)
            .and_then(|()| crate::thread::spawn("control-in", move || drop(read_requests(&read, &requests))));
        if started.is_err() {
            self.list.lock().retain(|other| !Arc::ptr_eq(other, &client));
            client.say(Outgoing::Close);
            let _ = client.stream.shutdown(Shutdown::Both);
        }
        started
    }
}

fn write_lines(mut stream: UnixStream, lines: &Receiver<Outgoing>) {
    while let Ok(Outgoing::Line(line)) = lines.recv() {
        if stream.write_all(line.as_bytes()).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Serves requests until the client says no more.
fn read_requests(client: &Client, requests: &Sender<Request>) -> Result<()> {
    let mut reader = BufReader::new(client.stream.try_clone()?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let longest = MAX_LINE as u64 + 1;
        let end = reader.by_ref().take(longest).read_until(b'\n', &mut line).is_err() || line.is_empty();
        if end {
            break;
        }
        if line.len() > MAX_LINE && line.last() != Some(&b'\n') {
            let refusal =
                Refusal::new(RefusalKind::Malformed, format!("A line is longer than {MAX_LINE} bytes"));
            client.say(Outgoing::Line(reply_line(&Value::Null, &Err(refusal))));
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let (id, reply) = match parse_request(&line) {
            Err((id, refusal)) => (id, Err(refusal)),
            Ok((id, Command::Events {})) => {
                client.wants_events.store(true, Ordering::Release);
                (id, Ok(serde_json::json!({})))
            }
            Ok((id, command)) => {
                client.progress.lock().busy = true;
                let (sender, answer) = channel();
                let ending = || Refusal::new(RefusalKind::Ending, "The machine ends");
                let sent = requests.send(Request::Control { command, reply: sender });
                (
                    id,
                    sent.map_err(|_| ending()).and_then(|()| answer.recv().unwrap_or_else(|_| Err(ending()))),
                )
            }
        };
        client.say(Outgoing::Line(reply_line(&id, &reply)));
        if !client.answered() {
            break;
        }
    }
    // What was asked before is still answered.
    client.say(Outgoing::Close);
    Ok(())
}
