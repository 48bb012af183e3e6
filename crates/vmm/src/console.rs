//! The other end of the serial port.
//!
//! A vCPU must not wait for whoever reads the console, so the guest's bytes go through a bounded queue to a
//! writer thread; what exceeds the bound is lost. A reader thread pushes input as the UART takes it.
#![expect(unsafe_code, reason = "pseudo-terminals are opened by raw system calls")]

use crate::VmmError;
use crate::driver::Request;
use crate::terminal::RawTerminal;
use machine::{Serial, SerialBackend};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use vm_config::SerialConfig;

/// Bytes that wait for a slow reader at most.
const QUEUE_LEN: usize = 1 << 20;
/// How long the last bytes may take to leave.
const FLUSH_TIME: Duration = Duration::from_secs(1);
/// `Ctrl-]`, which leaves.
const ESCAPE: u8 = 0x1d;

#[derive(Default)]
struct Pending {
    bytes: VecDeque<u8>,
    writing: bool,
}

/// Bytes on their way out.
#[derive(Default)]
pub struct OutputQueue {
    pending: Mutex<Pending>,
    changed: Condvar,
}

impl SerialBackend for OutputQueue {
    fn write(&self, bytes: &[u8]) {
        let mut pending = self.pending.lock();
        let room = QUEUE_LEN.saturating_sub(pending.bytes.len());
        pending.bytes.extend(bytes.iter().take(room));
        self.changed.notify_all();
    }
}

impl OutputQueue {
    fn spawn_writer(self: &Arc<Self>, mut write: impl FnMut(&[u8]) + Send + 'static) -> std::io::Result<()> {
        let queue = Arc::clone(self);
        let serve = move || {
            loop {
                let chunk: Vec<u8> = {
                    let mut pending = queue.pending.lock();
                    pending.writing = false;
                    queue.changed.notify_all();
                    while pending.bytes.is_empty() {
                        queue.changed.wait(&mut pending);
                    }
                    pending.writing = true;
                    pending.bytes.drain(..).collect()
                };
                write(&chunk);
            }
        };
        std::thread::Builder::new().name("console-out".to_owned()).spawn(serve).map(drop)
    }

    fn flush(&self) {
        let end = Instant::now() + FLUSH_TIME;
        let mut pending = self.pending.lock();
        while pending.writing || !pending.bytes.is_empty() {
            if self.changed.wait_until(&mut pending, end).timed_out() {
                return;
            }
        }
    }
}

enum Kind {
    Stdio,
    Pty(File),
    Unix(UnixListener),
    OutputOnly,
}

/// An open console. Dropped, it flushes, restores the terminal and removes its socket.
pub struct Console {
    queue: Arc<OutputQueue>,
    kind: Option<Kind>,
    client: Arc<Mutex<Option<UnixStream>>>,
    socket: Option<PathBuf>,
    terminal: Option<RawTerminal>,
}

impl Console {
    /// Opens what is configured. Nothing that exists is changed, except that a `file:` is emptied.
    pub fn open(config: &SerialConfig) -> Result<Self, VmmError> {
        let fail = |source| VmmError::Console { what: config.to_string(), source };
        let mut console = Console {
            queue: Arc::default(),
            kind: None,
            client: Arc::default(),
            socket: None,
            terminal: None,
        };
        let queue = console.queue.clone();
        let (kind, spawned) = match config {
            SerialConfig::Stdio => (Kind::Stdio, queue.spawn_writer(write_stdout)),
            SerialConfig::None => (Kind::OutputOnly, queue.spawn_writer(|_| ())),
            SerialConfig::File(path) => {
                let mut file = File::create(path).map_err(fail)?;
                let write = move |bytes: &[u8]| drop(file.write_all(bytes));
                (Kind::OutputOnly, queue.spawn_writer(write))
            }
            SerialConfig::Pty => {
                let (pty, name) = open_pty().map_err(fail)?;
                eprintln!("vireo: serial port is {name}");
                let mut out = pty.try_clone().map_err(fail)?;
                (Kind::Pty(pty), queue.spawn_writer(move |bytes| drop(out.write_all(bytes))))
            }
            SerialConfig::Unix(path) => {
                let listener = listen(path, fail)?;
                console.socket = Some(path.clone());
                let client = console.client.clone();
                let write = move |bytes: &[u8]| {
                    let stream = client.lock().as_ref().and_then(|stream| stream.try_clone().ok());
                    drop(stream.map(|mut stream| stream.write_all(bytes)));
                };
                (Kind::Unix(listener), queue.spawn_writer(write))
            }
        };
        spawned.map_err(fail)?;
        console.kind = Some(kind);
        Ok(console)
    }

    /// Where the guest's bytes go.
    pub fn backend(&self) -> Arc<dyn SerialBackend> {
        self.queue.clone()
    }

    /// Sets the terminal to raw mode and begins to pass on input.
    pub fn start(&mut self, serial: Arc<Serial>, requests: Sender<Request>) -> Result<(), VmmError> {
        let Some(kind) = self.kind.take() else { return Ok(()) };
        let client = self.client.clone();
        let serve: Box<dyn FnOnce() + Send> = match kind {
            Kind::OutputOnly => return Ok(()),
            Kind::Stdio => {
                self.terminal = RawTerminal::enter();
                let escapes = self.terminal.is_some();
                Box::new(move || read_stdin(&serial, &requests, escapes))
            }
            Kind::Pty(mut pty) => Box::new(move || read_pty(&mut pty, &serial)),
            Kind::Unix(listener) => Box::new(move || serve_clients(&listener, &client, &serial)),
        };
        let spawned = std::thread::Builder::new().name("console-in".to_owned()).spawn(serve);
        spawned.map(drop).map_err(|source| VmmError::Host { what: "a thread", source })
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.queue.flush();
        self.terminal = None;
        if let Some(path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn write_stdout(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// Pushes everything, waiting for the UART's room.
fn push_all(serial: &Serial, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let taken = serial.push_input(bytes);
        bytes = bytes.get(taken..).unwrap_or_default();
        if taken == 0 {
            serial.wait_for_room(Duration::from_millis(100));
        }
    }
}

fn read_stdin(serial: &Serial, requests: &Sender<Request>, escapes: bool) {
    let mut buffer = [0; 512];
    let mut input = std::io::stdin().lock();
    loop {
        let len = match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let bytes = &buffer[..len];
        if escapes && bytes.contains(&ESCAPE) {
            let _ = requests.send(Request::Quit);
            return;
        }
        push_all(serial, bytes);
    }
}

fn read_pty(pty: &mut File, serial: &Serial) {
    let mut buffer = [0; 512];
    loop {
        match pty.read(&mut buffer) {
            Ok(len) if len > 0 => push_all(serial, &buffer[..len]),
            // Nobody has the other side open: EIO until somebody comes.
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn listen(path: &Path, fail: impl Fn(Error) -> VmmError) -> Result<UnixListener, VmmError> {
    UnixListener::bind(path).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => VmmError::SocketTaken { path: path.to_owned() },
        _ => fail(error),
    })
}

/// One client after the other.
fn serve_clients(listener: &UnixListener, client: &Mutex<Option<UnixStream>>, serial: &Serial) {
    let mut buffer = [0; 512];
    for stream in listener.incoming().flatten() {
        let Ok(mut reader) = stream.try_clone() else { continue };
        *client.lock() = Some(stream);
        while let Ok(len) = reader.read(&mut buffer) {
            if len == 0 {
                break;
            }
            push_all(serial, &buffer[..len]);
        }
        *client.lock() = None;
    }
}

/// A new pseudo-terminal's master, and the path of its other side.
fn open_pty() -> std::io::Result<(File, String)> {
    let mut name = [0 as libc::c_char; 128];
    // SAFETY: plain system calls; the descriptor is fresh and the buffer's length is told.
    unsafe {
        let fd = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        let pty = File::from_raw_fd(fd);
        if libc::grantpt(fd) != 0 || libc::unlockpt(fd) != 0 {
            return Err(Error::last_os_error());
        }
        if libc::ptsname_r(fd, name.as_mut_ptr(), name.len()) != 0 {
            return Err(Error::last_os_error());
        }
        let name = std::ffi::CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
        Ok((pty, name))
    }
}
