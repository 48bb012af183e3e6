//! What a disk and whoever runs the machine have to tell each other: errors of the host, and a changed size.

use crate::device_type::Transport;
use parking_lot::Mutex;
use std::io::{Error, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// What becomes of a request that fails on the host. Requests that are wrong in themselves are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// The guest sees an I/O error.
    Report,
    /// The guest sees success.
    Ignore,
    /// The machine pauses, and the request is done again when it resumes.
    Stop,
    /// As `Stop` if the host is out of space, else as `Report`.
    Enospc,
}

impl ErrorAction {
    /// For this error: `Report`, `Ignore` or `Stop`.
    fn on(self, error: &Error) -> Self {
        let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        match self {
            ErrorAction::Enospc if full => ErrorAction::Stop,
            ErrorAction::Enospc => ErrorAction::Report,
            other => other,
        }
    }
}

/// A request failed on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFailure {
    /// It changes the disk, or makes changes durable.
    pub write: bool,
    /// The error in words.
    pub error: String,
    /// The host is out of space.
    pub no_space: bool,
}

/// Takes failures that stop the machine, on a worker's thread.
pub type OnStop = Box<dyn Fn(HostFailure) + Send + Sync>;

/// The link between a [`super::Block`] and whoever runs the machine.
pub struct DiskLink {
    on_read_error: ErrorAction,
    on_write_error: ErrorAction,
    on_stop: OnStop,
    /// A request was put back for a machine that is about to pause: nothing is served before it resumes.
    held: AtomicBool,
    read_errors: AtomicU64,
    write_errors: AtomicU64,
    /// Bytes of the disk as its configuration tells.
    size: AtomicU64,
    transport: Mutex<Option<Weak<dyn Transport>>>,
}

impl DiskLink {
    /// A link with these policies; `on_stop` is called for each failure that stops the machine, and has to see to
    /// that.
    pub fn new(on_read_error: ErrorAction, on_write_error: ErrorAction, on_stop: OnStop) -> Arc<Self> {
        Arc::new(DiskLink {
            on_read_error,
            on_write_error,
            on_stop,
            held: AtomicBool::new(false),
            read_errors: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
            size: AtomicU64::new(0),
            transport: Mutex::new(None),
        })
    }

    /// Errors are reported to the guest, and nobody else is told.
    pub fn reporting() -> Arc<Self> {
        Self::new(ErrorAction::Report, ErrorAction::Report, Box::new(|_| {}))
    }

    /// Reads and changes that failed on the host so far.
    pub fn errors(&self) -> (u64, u64) {
        (self.read_errors.load(Ordering::Relaxed), self.write_errors.load(Ordering::Relaxed))
    }

    /// The disk has another size from now on: the guest is told (virtio 5.2.4, 2.5).
    pub fn resized(&self, size: u64) {
        let transport = self.transport.lock().as_ref().and_then(Weak::upgrade);
        match transport {
            Some(transport) => {
                transport.change_config(&mut || self.size.store(size, Ordering::SeqCst));
            }
            None => self.size.store(size, Ordering::SeqCst),
        }
    }

    pub(super) fn connect(&self, size: u64) {
        self.size.store(size, Ordering::SeqCst);
    }

    pub(super) fn attach(&self, transport: Weak<dyn Transport>) {
        *self.transport.lock() = Some(transport);
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Serving may go on, with the request that was put back.
    pub(super) fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    /// A request failed on the host: answers what becomes of it, never `Enospc`.
    pub(super) fn failed(&self, write: bool, error: &Error) -> ErrorAction {
        let (counter, policy) = match write {
            true => (&self.write_errors, self.on_write_error),
            false => (&self.read_errors, self.on_read_error),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let action = policy.on(error);
        if action == ErrorAction::Stop {
            self.held.store(true, Ordering::SeqCst);
            let no_space = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            (self.on_stop)(HostFailure { write, error: error.to_string(), no_space });
        }
        action
    }
}
