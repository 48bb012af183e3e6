//! The terminal in raw mode, and its way back whatever happens.
//!
//! The terminal is the process's standard input. Its attributes are kept from before the first change, and they come
//! back when [`RawTerminal`] is dropped, through [`libc::atexit`], and from the handlers of [`crate::fatal`]. So
//! [`restore`] takes no lock and may be called from a signal handler. Only SIGKILL leaves no moment for it.
#![expect(unsafe_code, reason = "terminal attributes are raw system calls")]

use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The attributes from before.
static SAVED: OnceLock<libc::termios> = OnceLock::new();
/// They have been changed.
static RAW: AtomicBool = AtomicBool::new(false);

/// Standard input's terminal in raw mode; dropped, it is as before.
pub struct RawTerminal(());

impl RawTerminal {
    /// Sets standard input to raw mode if it is a terminal; in the background, that waits for [`enter_again`].
    pub fn enter() -> Option<Self> {
        // SAFETY: a plain system call.
        if unsafe { libc::isatty(0) } != 1 {
            return None;
        }
        enter_again();
        Some(RawTerminal(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether this process is in the foreground of standard input's terminal.
pub fn is_foreground() -> bool {
    // SAFETY: plain system calls.
    unsafe { libc::tcgetpgrp(0) == libc::getpgrp() }
}

/// Columns and rows of standard input's terminal, if it is one that knows.
pub fn size() -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the structure is valid, zeros are a value of it, and the call fills it when it answers zero.
    let size = unsafe {
        if libc::ioctl(0, libc::TIOCGWINSZ, size.as_mut_ptr()) != 0 {
            return None;
        }
        size.assume_init()
    };
    Some((size.ws_col, size.ws_row)).filter(|&(columns, rows)| columns > 0 && rows > 0)
}

/// Raw mode (again), unless the terminal belongs to another job now.
pub fn enter_again() {
    if !is_foreground() || (SAVED.get().is_none() && !save()) {
        return;
    }
    let Some(old) = SAVED.get() else { return };
    let mut raw = *old;
    RAW.store(true, Ordering::SeqCst);
    // SAFETY: both calls are given a valid structure.
    unsafe {
        libc::cfmakeraw(&raw mut raw);
        // Messages of this process still end their lines.
        raw.c_oflag |= libc::OPOST | old.c_oflag;
        libc::tcsetattr(0, libc::TCSANOW, &raw const raw);
    }
}

fn save() -> bool {
    let mut attributes = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr fills the structure when it answers zero; the handler lives as long as the program.
    unsafe {
        if libc::tcgetattr(0, attributes.as_mut_ptr()) != 0 {
            return false;
        }
        if SAVED.set(attributes.assume_init()).is_ok() {
            libc::atexit(restore_at_exit);
        }
    }
    true
}

extern "C" fn restore_at_exit() {
    restore();
}

/// Restores the terminal, if it was changed. Async-signal-safe.
pub fn restore() {
    if !RAW.swap(false, Ordering::SeqCst) {
        return;
    }
    // A job in the background has lost the terminal: the shell has set it for the next job.
    // SAFETY: plain system calls, all async-signal-safe; the attributes are those that the terminal had.
    unsafe {
        let owner = libc::tcgetpgrp(0);
        if owner != -1 && owner != libc::getpgrp() {
            return;
        }
        if let Some(old) = SAVED.get() {
            libc::tcsetattr(0, libc::TCSANOW, old);
        }
    }
}
