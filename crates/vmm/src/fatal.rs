//! The ends that nobody asked for: fatal signals and panics. Both leave a terminal as it was.
//!
//! A fault of this program goes on to whoever handled it before (the runtime names stack overflows); all other
//! fatal signals then do what they do by default, so that the parent sees the signal. A panic on any thread ends the
//! process with [`crate::exit_code::HOST`]: a machine without one of its threads is none.
#![expect(unsafe_code, reason = "signal handlers are installed by raw system calls")]

use crate::{VmmError, exit_code, terminal};
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// Signals that end a process by default and that nobody handles as a request.
const FATAL: [libc::c_int; 15] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGUSR2,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];
/// How many of them, from the first, are faults of the instruction that returns from the handler.
const FAULTS: usize = 5;

static PREVIOUS: [OnceLock<libc::sigaction>; FATAL.len()] = [const { OnceLock::new() }; FATAL.len()];

/// Installs the handlers and the panic hook. Called before engines install theirs, which pass on what is not theirs.
///
/// # Errors
/// When the system refuses a handler.
pub fn install() -> Result<(), VmmError> {
    std::panic::set_hook(Box::new(|info| {
        terminal::restore();
        let thread = std::thread::current();
        eprintln!("vireo: error: Vireo itself failed, on thread {}: {info}", thread.name().unwrap_or("?"));
        // Neither destructors nor atexit handlers: this thread may hold what they need.
        // SAFETY: ends the process.
        unsafe { libc::_exit(exit_code::HOST.into()) }
    }));
    for (signal, previous) in FATAL.into_iter().zip(&PREVIOUS) {
        let mut old = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: all-zero is a valid sigaction; the handler has the SA_SIGINFO signature; `old` is filled on success.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fatal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            if libc::sigaction(signal, &raw const action, old.as_mut_ptr()) != 0 {
                let source = std::io::Error::last_os_error();
                return Err(VmmError::Host { what: "to handle signals", source });
            }
            // A second machine of the same process finds our own handler; the first one's memory counts.
            let _ = previous.set(old.assume_init());
        }
    }
    Ok(())
}

/// Restores the terminal, then lets the signal do what it would have done.
extern "C" fn on_fatal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    terminal::restore();
    let index = FATAL.iter().position(|&fatal| fatal == signal);
    // SAFETY: the kernel passes a valid siginfo. Codes above zero are the kernel's own: a fault, not somebody's kill.
    let faulted = index.is_some_and(|index| index < FAULTS) && unsafe { (*info).si_code } > 0;
    let previous = index.and_then(|index| PREVIOUS.get(index)).and_then(OnceLock::get);
    // SAFETY: sigaction, signal and raise are async-signal-safe, and the structure is one the kernel gave.
    unsafe {
        match previous {
            // The faulting instruction runs again and faults into that handler.
            Some(previous) if faulted => drop(libc::sigaction(signal, previous, std::ptr::null_mut())),
            _ => {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
    }
}
