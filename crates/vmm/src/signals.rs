//! Signals become requests.
#![expect(unsafe_code, reason = "signal masks and signalfd are raw system calls")]

use crate::VmmError;
use crate::driver::Request;
use std::fs::File;
use std::io::{Error, Read};
use std::mem::MaybeUninit;
use std::os::fd::FromRawFd;
use std::sync::mpsc::Sender;

const SIGNALS: [(libc::c_int, Request); 8] = [
    (libc::SIGTERM, Request::Terminate),
    (libc::SIGINT, Request::Quit),
    (libc::SIGQUIT, Request::Quit),
    (libc::SIGHUP, Request::Quit),
    (libc::SIGUSR1, Request::Stats),
    (libc::SIGTSTP, Request::Suspend),
    (libc::SIGCONT, Request::Continued),
    (libc::SIGWINCH, Request::Resized),
];

/// Blocked and never looked at: system calls of a job in the background, and writes beyond the largest file size,
/// fail then instead of stopping or ending the process.
const SILENT: [libc::c_int; 3] = [libc::SIGTTIN, libc::SIGTTOU, libc::SIGXFSZ];

/// The signals this process handles, blocked in the calling thread and all it starts.
pub struct Signals(File);

impl Signals {
    /// Blocks the signals. Called before there are other threads.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn block() -> Result<Self, VmmError> {
        let fail = || VmmError::Host { what: "to handle signals", source: Error::last_os_error() };
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set before anything reads it; the descriptor is fresh.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for (signal, _) in SIGNALS {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(fail());
            }
            let file = File::from_raw_fd(fd);
            for signal in SILENT {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) {
                0 => Ok(Signals(file)),
                _ => Err(fail()),
            }
        }
    }

    /// Turns signals into requests, on a thread of its own.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn forward(mut self, requests: Sender<Request>) -> std::io::Result<()> {
        let serve = move || {
            let mut record = [0; size_of::<libc::signalfd_siginfo>()];
            while self.0.read_exact(&mut record).is_ok() {
                // The signal's number is the record's first field.
                let number = i32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
                let request = SIGNALS.iter().find(|(signal, _)| *signal == number).map(|(_, r)| r.clone());
                if request.is_some_and(|request| requests.send(request).is_err()) {
                    return;
                }
            }
        };
        crate::thread::spawn("signals", serve)
    }
}

/// Stops this process as SIGTSTP would have, until somebody continues it.
pub fn stop_process() {
    // SAFETY: a plain system call.
    unsafe { libc::raise(libc::SIGSTOP) };
}
