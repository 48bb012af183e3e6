//! The other end of the serial port or of the virtio console.
//!
//! Output goes through an [`OutputQueue`] to a writer thread, so that no vCPU waits for a reader. A reader thread
//! pushes input as the device takes it; whoever types faster waits, nothing typed is lost. A Unix socket has one client
//! at a time, the next waits until that one has gone; what the guest says meanwhile waits for it too.

mod pty;
mod queue;

use crate::VmmError;
use crate::driver::Request;
use crate::socket::Listener;
use crate::terminal::{self, RawTerminal};
use machine::Serial;
use parking_lot::Mutex;
use pty::Pty;
pub use queue::{OutputQueue, QUEUE_LEN};
use rustix::event::{PollFd, PollFlags, poll};
use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, TrySendError, sync_channel};
use std::time::Duration;
use vm_config::SerialConfig;

/// `Ctrl-]`, which leaves.
const ESCAPE: u8 = 0x1d;
/// Reads of the terminal that wait for a guest that takes no input; what exceeds them is not heard.
const TYPED_AHEAD: usize = 64;
/// How long each chunk of the last bytes may take, to somebody who should be reading.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for a pseudo-terminal, which may have no reader.
const PTY_PATIENCE: Duration = Duration::from_millis(200);

/// A device that takes what is typed.
pub trait Input: Send + Sync {
    /// What it is, in messages.
    fn name(&self) -> &'static str;
    /// Offers bytes; answers how many were taken.
    fn push_input(&self, bytes: &[u8]) -> usize;
    /// Waits until it would take some, at most `timeout`.
    fn wait_for_room(&self, timeout: Duration) -> bool;
    /// The terminal has so many columns and rows.
    fn resize(&self, columns: u16, rows: u16);
}

impl Input for Serial {
    fn name(&self) -> &'static str {
        "serial port"
    }
    fn push_input(&self, bytes: &[u8]) -> usize {
        Serial::push_input(self, bytes)
    }
    fn wait_for_room(&self, timeout: Duration) -> bool {
        Serial::wait_for_room(self, timeout)
    }
    /// A serial line does not know how large its terminal is.
    fn resize(&self, _columns: u16, _rows: u16) {}
}

impl Input for machine::Console {
    fn name(&self) -> &'static str {
        "console"
    }
    fn push_input(&self, bytes: &[u8]) -> usize {
        machine::Console::push_input(self, bytes)
    }
    fn wait_for_room(&self, timeout: Duration) -> bool {
        machine::Console::wait_for_room(self, timeout)
    }
    fn resize(&self, columns: u16, rows: u16) {
        machine::Console::resize(self, columns, rows);
    }
}

/// An open console. Dropped, it flushes, restores the terminal and removes its socket.
pub struct Console {
    name: &'static str,
    queue: Arc<OutputQueue>,
    patience: Duration,
    listener: Option<Arc<Listener>>,
    terminal: Option<RawTerminal>,
    /// The device, and what it knows of the terminal's size.
    to: Arc<dyn Input>,
    size: Cell<Option<(u16, u16)>>,
}

impl Console {
    /// Opens what is configured and passes on bytes both ways; a terminal is in raw mode from here on.
    ///
    /// # Errors
    /// When something is in the way or the system refuses. Everything is as it was then.
    pub fn open(
        config: &SerialConfig,
        queue: Arc<OutputQueue>,
        to: Arc<dyn Input>,
        requests: Sender<Request>,
    ) -> Result<Self, VmmError> {
        let mut console = Console {
            name: to.name(),
            queue,
            patience: PATIENCE,
            listener: None,
            terminal: None,
            to: to.clone(),
            size: Cell::new(None),
        };
        let fail = |source| VmmError::Console { what: config.to_string(), source };
        match config {
            SerialConfig::Stdio => console.open_stdio(to, requests).map_err(fail)?,
            SerialConfig::None => console.queue.spawn_writer(|_| ()).map_err(fail)?,
            SerialConfig::File(path) => console.open_file(path).map_err(fail)?,
            SerialConfig::Pty => console.open_pty(to).map_err(fail)?,
            SerialConfig::Unix(path) => {
                let listener = Arc::new(Listener::bind(path)?);
                console.listener = Some(listener.clone());
                console.serve_socket(listener, to).map_err(fail)?;
            }
        }
        Ok(console)
    }

    fn open_stdio(&mut self, to: Arc<dyn Input>, requests: Sender<Request>) -> std::io::Result<()> {
        self.terminal = RawTerminal::enter();
        let escapes = self.terminal.is_some();
        self.resized();
        self.queue.spawn_writer(write_stdout)?;
        crate::thread::spawn("console-in", move || read_stdin(&to, &requests, escapes))
    }

    fn open_file(&mut self, path: &Path) -> std::io::Result<()> {
        let usable = |found: std::fs::Metadata| found.is_file() || found.file_type().is_char_device();
        if std::fs::metadata(path).is_ok_and(|found| !usable(found)) {
            return Err(std::io::Error::other("it is neither a regular file nor a character device"));
        }
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        let shown = path.display().to_string();
        let (name, mut complained) = (self.name, false);
        self.queue.spawn_writer(move |bytes| match file.write_all(bytes) {
            Err(error) if !complained => {
                complained = true;
                eprintln!("vireo: the {name}'s file {shown} takes no more: {error}");
            }
            _ => {}
        })
    }

    fn open_pty(&mut self, to: Arc<dyn Input>) -> std::io::Result<()> {
        self.patience = PTY_PATIENCE;
        let pty = Pty::open()?;
        let mut out = pty.master.try_clone()?;
        self.queue.spawn_writer(move |bytes| drop(out.write_all(bytes)))?;
        eprintln!("vireo: {} is {}", self.name, pty.path);
        crate::thread::spawn("console-in", move || read_pty(pty, to.as_ref()))
    }

    fn serve_socket(&mut self, listener: Arc<Listener>, to: Arc<dyn Input>) -> std::io::Result<()> {
        self.queue.hold(true);
        let client = Arc::new(Mutex::new(None::<UnixStream>));
        let taker = client.clone();
        self.queue.spawn_writer(move |bytes| {
            let stream = taker.lock().as_ref().and_then(|stream| stream.try_clone().ok());
            let _ = stream.map(|mut stream| stream.write_all(bytes));
        })?;
        let queue = self.queue.clone();
        crate::thread::spawn("console-in", move || serve_clients(&listener, &client, &queue, to.as_ref()))
    }

    /// The process was continued: its terminal may be somebody else's, or have changed.
    pub fn continued(&self) {
        if self.terminal.is_some() {
            terminal::enter_again();
            self.resized();
        }
    }

    /// The terminal may have another size: the guest is told.
    pub fn resized(&self) {
        let size = self.terminal.as_ref().and_then(|_| terminal::size());
        if let Some((columns, rows)) = size.filter(|_| size != self.size.replace(size)) {
            self.to.resize(columns, rows);
        }
    }

    /// How many bytes of the guest nobody took in time.
    pub fn lost(&self) -> u64 {
        self.queue.lost()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.queue.flush(self.patience);
        self.terminal = None;
        if let Some(listener) = &self.listener {
            listener.remove();
        }
        let lost = self.queue.lost();
        if lost > 0 {
            eprintln!("vireo: {lost} bytes of the {} were lost: nobody read them in time", self.name);
        }
    }
}

fn write_stdout(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// Pushes everything, waiting for the device's room.
fn push_all(to: &dyn Input, mut bytes: &[u8]) {
    push_while(to, &mut bytes, || true);
}

/// Pushes everything, as long as somebody `cares`.
fn push_while(to: &dyn Input, bytes: &mut &[u8], cares: impl Fn() -> bool) {
    while !bytes.is_empty() && cares() {
        let taken = to.push_input(bytes);
        *bytes = bytes.get(taken..).unwrap_or_default();
        if taken == 0 {
            to.wait_for_room(Duration::from_millis(100));
        }
    }
}

fn read_stdin(to: &Arc<dyn Input>, requests: &Sender<Request>, escapes: bool) {
    // Ctrl-] must be seen while the guest takes no input.
    let (sender, typed) = sync_channel::<Vec<u8>>(TYPED_AHEAD);
    let pusher = to.clone();
    let push = move || typed.iter().for_each(|bytes| push_all(pusher.as_ref(), &bytes));
    if crate::thread::spawn("console-push", push).is_err() {
        return;
    }
    let mut buffer = [0; 512];
    let mut input = std::io::stdin().lock();
    loop {
        let len = match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A job in the background may not read the terminal; it may be in the foreground again later.
            Err(error)
                if error.raw_os_error() == Some(libc::EIO) && escapes && !terminal::is_foreground() =>
            {
                std::thread::sleep(Duration::from_millis(200));
                continue;
            }
            Err(_) => return,
        };
        let bytes = buffer.get(..len).unwrap_or_default();
        if escapes && bytes.contains(&ESCAPE) {
            let _ = requests.send(Request::Quit);
            return;
        }
        let message = bytes.to_vec();
        // A pipe waits for the guest; a person must not, or nobody would see Ctrl-].
        match if escapes { sender.try_send(message) } else { sender.send(message).map_err(Into::into) } {
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

fn read_pty(mut pty: Pty, to: &dyn Input) {
    let mut buffer = [0; 512];
    loop {
        match pty.master.read(&mut buffer) {
            Ok(len) if len > 0 => push_all(to, buffer.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Cannot be while this process holds the other side open; but a loop must not spin on it.
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// One client after the other.
fn serve_clients(
    listener: &Listener,
    client: &Mutex<Option<UnixStream>>,
    queue: &OutputQueue,
    to: &dyn Input,
) {
    loop {
        let Ok((mut stream, _)) = listener.socket.accept() else {
            // Out of descriptors, perhaps: others may close some.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let Ok(writer) = stream.try_clone() else { continue };
        *client.lock() = Some(writer);
        queue.hold(false);
        serve_client(&mut stream, to);
        queue.hold(true);
        // A writer that is in the middle of a write to it ends.
        let _ = stream.shutdown(std::net::Shutdown::Both);
        *client.lock() = None;
    }
}

/// Until the client has gone. One that only says nothing more still listens.
fn serve_client(stream: &mut UnixStream, to: &dyn Input) {
    let mut buffer = [0; 512];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            // The guest may take its time, but the next client need not wait for one that has gone.
            Ok(len) => {
                let mut bytes = buffer.get(..len).unwrap_or_default();
                push_while(to, &mut bytes, || !has_gone(stream, Some(Duration::ZERO)));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
    while !has_gone(stream, None) {}
}

/// Whether the peer has closed both directions; waits for that so long, or for ever.
fn has_gone(stream: &UnixStream, wait: Option<Duration>) -> bool {
    // Hang-up and error are always reported.
    let mut watched = [PollFd::new(stream, PollFlags::empty())];
    let wait = wait.and_then(|wait| wait.try_into().ok());
    poll(&mut watched, wait.as_ref()).is_ok_and(|count| count > 0)
}
