//! Interrupting `KVM_RUN` from another thread without losing the wish.
//!
//! The wish is two things: a flag that says what was meant, and KVM's `immediate_exit` byte in the shared
//! `kvm_run` page, which makes the next `KVM_RUN` return at once. A signal makes a `KVM_RUN` that is under way
//! return. Whether the kick comes before, inside or after the call, one of the two is seen:
//! the vCPU thread clears the byte, then reads the flag, then enters; the kicker sets the flag, then
//! the byte, then signals. At worst the byte outlives its flag, which costs one idle turn of the loop.
#![expect(unsafe_code, reason = "writes a byte of the shared kvm_run page and sends signals")]

use engine::Kick;
use parking_lot::Mutex;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

struct Target {
    /// `kvm_run.immediate_exit`; gone when the vCPU is dropped.
    immediate_exit: Option<NonNull<AtomicU8>>,
    /// The thread inside `run`.
    thread: Option<libc::pid_t>,
}

// SAFETY: the pointer is to shared memory that is accessed atomically, and is taken away under the lock
// before the memory is unmapped.
unsafe impl Send for Target {}

/// Kicks one vCPU.
pub(crate) struct Kicker {
    kicked: AtomicBool,
    target: Mutex<Target>,
}

impl Kicker {
    /// A kicker for the vCPU whose `immediate_exit` byte this is.
    ///
    /// # Safety
    /// The byte stays mapped until [`Kicker::detach`] was called.
    pub(crate) unsafe fn new(immediate_exit: *mut u8) -> Self {
        install_handler();
        let immediate_exit = NonNull::new(immediate_exit.cast());
        Kicker { kicked: AtomicBool::new(false), target: Mutex::new(Target { immediate_exit, thread: None }) }
    }

    /// Makes the vCPU look at its surroundings again, without ending its `run`.
    pub(crate) fn wake(&self) {
        let target = self.target.lock();
        let Some(byte) = target.immediate_exit else { return };
        // SAFETY: the byte is mapped while it stands in `target`.
        unsafe { byte.as_ref() }.store(1, Ordering::SeqCst);
        if let Some(thread) = target.thread {
            // SAFETY: the thread is inside `run`: it clears `thread` under this lock before it can end.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGRTMIN()) };
        }
    }

    /// Clears the byte, then says whether somebody kicked since the last time.
    pub(crate) fn take(&self) -> bool {
        if let Some(byte) = self.target.lock().immediate_exit {
            // SAFETY: as in `wake`.
            unsafe { byte.as_ref() }.store(0, Ordering::SeqCst);
        }
        self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Names the calling thread as the one to signal, until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered<'_> {
        unblock_signal();
        // SAFETY: a plain system call.
        let thread = unsafe { libc::gettid() };
        self.target.lock().thread = Some(thread);
        Entered(self)
    }

    /// Forgets the byte, which is about to be unmapped.
    pub(crate) fn detach(&self) {
        self.target.lock().immediate_exit = None;
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.wake();
    }
}

/// The calling thread is inside `run`.
pub(crate) struct Entered<'a>(&'a Kicker);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.target.lock().thread = None;
    }
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// A handler that does nothing: it is enough that the system call ends with EINTR, hence no SA_RESTART.
fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the structure is valid and the handler is async-signal-safe.
        unsafe { libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut()) };
    });
}

/// The signal may have been blocked by whoever created the thread.
fn unblock_signal() {
    // SAFETY: the set is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGRTMIN());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}
