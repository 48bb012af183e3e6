//! The terminal in raw mode, and its way back whatever happens.
//!
//! Returning, unwinding and `exit` restore it through [`libc::atexit`] and [`RawTerminal`]'s drop; signals that can
//! be caught become requests, so they end the process in order.
#![expect(unsafe_code, reason = "terminal attributes are raw system calls")]

use parking_lot::Mutex;
use std::mem::MaybeUninit;

static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Standard input's terminal in raw mode; dropped, it is as before.
pub struct RawTerminal(());

impl RawTerminal {
    /// Sets standard input to raw mode, if it is a terminal of which this process is in the foreground.
    pub fn enter() -> Option<Self> {
        // SAFETY: plain system calls on descriptor 0.
        let foreground = unsafe { libc::isatty(0) == 1 && libc::tcgetpgrp(0) == libc::getpgrp() };
        if !foreground {
            return None;
        }
        let mut attributes = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr fills the structure when it answers zero.
        let old = unsafe {
            if libc::tcgetattr(0, attributes.as_mut_ptr()) != 0 {
                return None;
            }
            attributes.assume_init()
        };
        *SAVED.lock() = Some(old);
        let mut raw = old;
        // SAFETY: both are given a valid structure; the handler takes nothing and lives as long as the program.
        unsafe {
            libc::atexit(restore_at_exit);
            libc::cfmakeraw(&raw mut raw);
            // Messages of this process still end their lines.
            raw.c_oflag |= libc::OPOST;
            libc::tcsetattr(0, libc::TCSANOW, &raw const raw);
        }
        Some(RawTerminal(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

extern "C" fn restore_at_exit() {
    restore();
}

/// Restores the terminal, if it was changed.
fn restore() {
    if let Some(old) = SAVED.lock().take() {
        // SAFETY: the attributes are those that the terminal had.
        unsafe { libc::tcsetattr(0, libc::TCSANOW, &raw const old) };
    }
}
