//! Unmasked SIMD floating-point exceptions, taken from the host.
//!
//! A guest may unmask exceptions in MXCSR. Which flags are then set (SDM 1 11.5.2: a denormal operand found
//! before the computation hides what the computation would have raised; an unmasked tiny result traps even
//! if exact) is the processor's business, so the [stub](super::stub) runs with the guest's masks and the host
//! raises SIGFPE. The handler notes the flags in the stub's [`Environment`], masks everything in the
//! interrupted context and returns: the instruction completes, the stub restores the host's MXCSR, and the
//! caller, who gave the stub copies of the operands, drops the result and raises #XM.
//!
//! A SIGFPE from anywhere else goes to the handler that was installed before.

#![expect(unsafe_code, reason = "installs a signal handler")]

use super::arena;
use std::io;
use std::sync::OnceLock;

/// The host's MXCSR: all exceptions masked, round to nearest, no flags (the System V ABI's default).
pub(super) const HOST_MXCSR: u32 = 0x1f80;
/// MXCSR's exception flags.
pub const MXCSR_FLAGS: u32 = 0x3f;
/// MXCSR's exception masks.
pub const MXCSR_MASKS: u32 = 0x1f80;

/// What a stub needs besides its operands. The layout is known to generated code.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Environment {
    /// The guest's MXCSR, in and out.
    pub mxcsr: u32,
    /// What MXCSR becomes when the stub ends.
    host_mxcsr: u32,
    /// [`Environment::TRAPPED`] and MXCSR as the trap left it, or zero.
    trapped: u32,
    reserved: u32,
    /// RFLAGS after the instruction, for those that write flags.
    pub rflags: u64,
}

impl Environment {
    /// Offset of `host_mxcsr`.
    pub(super) const HOST_MXCSR_OFFSET: i32 = 4;
    /// Offset of `rflags`.
    pub(super) const RFLAGS_OFFSET: i32 = 16;
    /// Bit 31 of MXCSR is reserved, so it can tell a trap from none.
    const TRAPPED: u32 = 1 << 31;

    /// An environment to run under `mxcsr`.
    pub fn new(mxcsr: u32) -> Self {
        Environment { mxcsr, host_mxcsr: HOST_MXCSR, trapped: 0, reserved: 0, rflags: 0 }
    }

    /// MXCSR at the unmasked exception, when there was one.
    pub fn trapped(&self) -> Option<u32> {
        // SAFETY: a plain read; volatile because a signal handler on this thread may have written it.
        let trapped = unsafe { std::ptr::read_volatile(&raw const self.trapped) };
        (trapped & Self::TRAPPED != 0).then_some(trapped & !Self::TRAPPED)
    }
}

/// The action that was there before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the SIGFPE handler, once per process. Threads that run vCPUs must not block SIGFPE.
pub(super) fn install() -> io::Result<()> {
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    // SAFETY: all-zero is a valid sigaction; both pointers are valid; the handler has the SA_SIGINFO signature.
    unsafe {
        let mut previous: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGFPE, std::ptr::null(), &raw mut previous) != 0 {
            return Err(io::Error::last_os_error());
        }
        if PREVIOUS.set(previous).is_err() {
            return Ok(());
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigfpe as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGFPE, &raw const action, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Notes and masks the exception of a stub; hands every other SIGFPE on.
extern "C" fn on_sigfpe(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext that nobody else uses meanwhile.
    let machine = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    let register = |index: libc::c_int| machine.gregs[index as usize] as u64;
    if !arena::contains(register(libc::REG_RIP)) || machine.fpregs.is_null() {
        chain(signal, info, context);
        return;
    }
    let environment = register(libc::REG_R8) as *mut Environment;
    // SAFETY: stubs keep their environment in R8 throughout, and the kernel's FP state is valid until we return.
    unsafe {
        let mxcsr = (*machine.fpregs).mxcsr;
        std::ptr::write_volatile(&raw mut (*environment).trapped, Environment::TRAPPED | mxcsr);
        (*machine.fpregs).mxcsr = mxcsr | MXCSR_MASKS;
    }
}

/// Calls the previous handler, or restores the default action so that the signal kills the process when the
/// instruction faults again.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let action = PREVIOUS.get().map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    if action == libc::SIG_DFL || action == libc::SIG_IGN {
        // SAFETY: resetting the disposition of a signal is async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let with_info = PREVIOUS.get().is_some_and(|previous| previous.sa_flags & libc::SA_SIGINFO != 0);
    // SAFETY: the address was registered as a handler of the kind that its flags tell.
    unsafe {
        if with_info {
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(action);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(libc::c_int) = std::mem::transmute(action);
            handler(signal);
        }
    }
}
