//! Execution on the host's processor.
//!
//! A batch of cases lies in memory shared with a forked child. For each case the child copies code and data
//! to their fixed addresses, loads vector state, segments, flags and registers, and jumps by IRETQ, which reaches
//! every mode that user code has. Every way out is a signal; its handler copies the interrupted state from the
//! signal frame and goes on behind the jump without returning through the kernel.
//! A child, because the code may write to any address that its registers happen to hold. If the code kills it, that
//! case has no outcome; if it loops, the outcome is where a timer found it ([`ENDLESS`]). Another child carries on
//! behind it.
#![expect(unsafe_code, reason = "executes arbitrary machine code in a child process")]

use crate::case::{Case, ENDLESS, Outcome, fill_initial};
use crate::executor::Executor;
use crate::slot::Slot;
use crate::{CODE_ADDRESS, CODE_SIZE, DATA_ADDRESS, DATA_SIZE, XSAVE_SIZE, layout};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::arch::{asm, global_asm};
use std::mem::offset_of;
use std::ptr::{addr_of_mut, null_mut};

/// What the handler needs; used by the child's only thread.
#[repr(C)]
struct Child {
    slot: *mut Slot,
    host_rsp: u64,
    resume: u64,
    host_fs: u64,
    /// ES, DS, FS, GS at the signal.
    selectors: [u64; 4],
    fs_base: u64,
    gs_base: u64,
}

static mut CHILD: Child =
    Child { slot: null_mut(), host_rsp: 0, resume: 0, host_fs: 0, selectors: [0; 4], fs_base: 0, gs_base: 0 };

/// CPU time after which a child's case counts as endless, in microseconds. That of the kernel counts too: a loop
/// around a split lock spends its time in the kernel's handler (x86 `split_lock_detect`).
const PATIENCE: libc::suseconds_t = 800_000;
/// The same in seconds by the wall, for a kernel that lets split locks sleep (sysctl `kernel.split_lock_mitigate`).
const LONG_PATIENCE: u32 = 20;

/// Top of the stack that the frame of IRETQ is on: bits 16–31 are zero.
pub(crate) const FRAME_STACK: u64 = 0x2d6b_0000_0800;

/// Executes cases natively.
pub struct Native {
    slots: *mut Slot,
    capacity: usize,
}

// SAFETY: the mapping belongs to this value alone; the child's static is used in the child only.
unsafe impl Send for Native {}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length.
        unsafe { libc::munmap(self.slots.cast(), self.capacity * size_of::<Slot>()) };
    }
}

impl Native {
    /// Room for batches of `capacity` cases.
    pub fn new(capacity: usize) -> Result<Self> {
        // SAFETY: reads the auxiliary vector.
        let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0;
        ensure!(fsgsbase, "This host's kernel does not let user code load FS and GS bases (FSGSBASE)");
        let slots =
            map(0, capacity * size_of::<Slot>(), libc::MAP_SHARED, libc::PROT_READ | libc::PROT_WRITE)?;
        Ok(Native { slots: slots.cast(), capacity })
    }

    /// Runs slots `start..count` until they are done or the child dies. Returns whether they are done.
    fn run_child(&mut self, start: usize, count: usize) -> Result<bool> {
        // SAFETY: the child only runs async-signal-safe code before it leaves by `_exit`.
        match unsafe { libc::fork() } {
            -1 => bail!("fork failed: {}", std::io::Error::last_os_error()),
            0 => self.child(start, count),
            child => wait_for(child),
        }
    }

    fn child(&self, start: usize, count: usize) -> ! {
        let status = match prepare_child() {
            Ok(()) => {
                let all_end = (start..count).all(|i| {
                    // SAFETY: slots are mapped and initialised; handlers and fixed pages are in place.
                    unsafe {
                        run_slot(self.slots.add(i));
                        // The timer has fired, and the next case needs one: in another child.
                        !(*self.slots.add(i)).is_endless()
                    }
                });
                if all_end { 0 } else { ENDLESS_CASE }
            }
            Err(_) => NOT_PREPARED,
        };
        // SAFETY: ends the process without running the parent's destructors.
        unsafe { libc::_exit(status) }
    }
}

impl Executor for Native {
    fn name(&self) -> &'static str {
        "silicon"
    }

    fn run(&mut self, cases: &[Case]) -> Result<Vec<Result<Outcome>>> {
        ensure!(cases.len() <= self.capacity, "a batch holds at most {} cases", self.capacity);
        for (i, case) in cases.iter().enumerate() {
            // SAFETY: inside the mapping; the child of the former batch has ended.
            unsafe { (*self.slots.add(i)).load(case) };
        }
        let mut outcomes = Vec::with_capacity(cases.len());
        while outcomes.len() < cases.len() {
            let done = self.run_child(outcomes.len(), cases.len())?;
            while outcomes.len() < cases.len() {
                // SAFETY: as above; the child has ended.
                let Some(outcome) = (unsafe { (*self.slots.add(outcomes.len())).outcome() }) else {
                    ensure!(!done, "the native child has skipped a case");
                    outcomes.push(Err(anyhow!("the code has killed its process")));
                    break;
                };
                let endless = outcome.vector == ENDLESS;
                outcomes.push(Ok(outcome));
                if endless {
                    break;
                }
            }
        }
        Ok(outcomes)
    }
}

/// Exit status of a child that could not set itself up.
const NOT_PREPARED: i32 = 77;
/// Exit status of a child one of whose cases did not end.
const ENDLESS_CASE: i32 = 78;

/// Whether the child has run all its cases.
fn wait_for(child: libc::pid_t) -> Result<bool> {
    let mut status = 0;
    // SAFETY: waits for our own child.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(waited == child, "waitpid failed");
    let prepared = !(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == NOT_PREPARED);
    ensure!(prepared, "the native child could not map its pages or set its descriptors");
    Ok(status == 0)
}

fn map(address: u64, len: usize, flags: i32, protection: i32) -> Result<*mut libc::c_void> {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = flags | libc::MAP_ANONYMOUS | fixed;
    // SAFETY: an anonymous mapping that replaces nothing.
    let mapped = unsafe { libc::mmap(address as *mut _, len, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("mmap failed");
    }
    Ok(mapped)
}

/// The kernel's `struct user_desc`.
#[repr(C)]
struct UserDescriptor {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

fn prepare_child() -> Result<()> {
    /// `modify_ldt`: write an entry, new format.
    const WRITE: libc::c_long = 0x11;
    let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    map(CODE_ADDRESS, CODE_SIZE, libc::MAP_PRIVATE, rwx)?;
    map(FRAME_STACK & !0xffff, 0x1000, libc::MAP_PRIVATE, libc::PROT_READ | libc::PROT_WRITE)?;
    map(DATA_ADDRESS, DATA_SIZE, libc::MAP_PRIVATE, libc::PROT_READ | libc::PROT_WRITE)?;
    for (entry, held) in (0..).zip(layout::LDT) {
        let mut wanted = UserDescriptor { entry, base: held.base, limit: held.limit, flags: held.flags() };
        let len = size_of::<UserDescriptor>();
        // SAFETY: the kernel reads `len` bytes of `wanted`.
        let failed = unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, &raw mut wanted, len) };
        ensure!(failed == 0, "modify_ldt failed");
    }
    let stack_len = 0x4_0000;
    let stack = map(0, stack_len, libc::MAP_PRIVATE, libc::PROT_READ | libc::PROT_WRITE)?;
    // SAFETY: the alternate stack is mapped; the handler has the three-argument form that SA_SIGINFO asks for.
    unsafe {
        let patience = libc::timeval { tv_sec: 0, tv_usec: PATIENCE };
        let timer =
            libc::itimerval { it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 }, it_value: patience };
        libc::setitimer(libc::ITIMER_PROF, &raw const timer, null_mut());
        libc::alarm(LONG_PATIENCE);
        let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: stack_len };
        libc::sigaltstack(&raw const alternate, null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = vireo_oracle_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        let timers = [libc::SIGPROF, libc::SIGALRM];
        let faults = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];
        for signal in faults.into_iter().chain(timers) {
            libc::sigaction(signal, &raw const action, null_mut());
        }
    }
    Ok(())
}

unsafe extern "C" {
    fn vireo_oracle_signal();
}

// The way in: AC and TF may be set, and the segments are the case's. Notes these, puts the thread's back, calls
// `copy_state`, and leaves to where `run_slot` waits.
global_asm!(
    ".hidden vireo_oracle_signal",
    ".globl vireo_oracle_signal",
    "vireo_oracle_signal:",
    "pushfq",
    "and dword ptr [rsp], {flags}",
    "popfq",
    "lea rcx, [rip + {child}]",
    "mov eax, es",
    "mov [rcx + {selectors}], rax",
    "mov eax, ds",
    "mov [rcx + {selectors} + 8], rax",
    "mov eax, fs",
    "mov [rcx + {selectors} + 16], rax",
    "mov eax, gs",
    "mov [rcx + {selectors} + 24], rax",
    "rdfsbase rax",
    "mov [rcx + {fs_base}], rax",
    "rdgsbase rax",
    "mov [rcx + {gs_base}], rax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov rax, [rcx + {host_fs}]",
    "wrfsbase rax",
    "and rsp, -16",
    "call {copy}",
    "lea rcx, [rip + {child}]",
    "mov rsp, [rcx + {host_rsp}]",
    "jmp qword ptr [rcx + {resume}]",
    flags = const !0x4_4500_i32,
    child = sym CHILD,
    copy = sym copy_state,
    selectors = const offset_of!(Child, selectors),
    fs_base = const offset_of!(Child, fs_base),
    gs_base = const offset_of!(Child, gs_base),
    host_fs = const offset_of!(Child, host_fs),
    host_rsp = const offset_of!(Child, host_rsp),
    resume = const offset_of!(Child, resume),
);

/// Offsets inside the signal frame's floating-point state: the kernel's own marker and features.
const SW_RESERVED: usize = 464;

extern "C" fn copy_state(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const REGISTERS: [i32; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    // SAFETY: the kernel passes a valid context; CHILD was set by `run_slot` on this thread.
    unsafe {
        let context = &*context.cast::<libc::ucontext_t>();
        let registers = &context.uc_mcontext.gregs;
        let register = |index: i32| registers[index as usize] as u64;
        let slot = &mut *CHILD.slot;
        for (to, from) in slot.gprs.iter_mut().zip(REGISTERS) {
            *to = register(from);
        }
        let segments = register(libc::REG_CSGSFS);
        slot.frame = [register(libc::REG_RIP), segments & 0xffff, register(libc::REG_EFL), 0, segments >> 48];
        slot.selectors = CHILD.selectors;
        (slot.fs_base, slot.gs_base) = (CHILD.fs_base, CHILD.gs_base);
        let timed_out = signal == libc::SIGPROF || signal == libc::SIGALRM;
        slot.vector = if timed_out { ENDLESS.into() } else { register(libc::REG_TRAPNO) };
        slot.error_code = register(libc::REG_ERR);
        slot.cr2 = register(libc::REG_CR2);
        save_vectors(context.uc_mcontext.fpregs.cast(), &mut slot.xsave);
        let memory = slot.memory.as_mut_ptr();
        std::ptr::copy_nonoverlapping(DATA_ADDRESS as *const u8, memory, DATA_SIZE);
        std::ptr::copy_nonoverlapping(CODE_ADDRESS as *const u8, memory.add(DATA_SIZE), CODE_SIZE);
    }
}

/// Copies the frame's XSAVE area, filling in what is in its initial state.
///
/// # Safety
/// `frame` is the floating-point state of a signal frame.
unsafe fn save_vectors(frame: *const u8, to: &mut [u8; XSAVE_SIZE]) {
    // SAFETY: the frame's size covers YMM whenever the host has AVX, without which XRSTOR would have failed.
    let bytes = unsafe { std::slice::from_raw_parts(frame, XSAVE_SIZE) };
    to.copy_from_slice(bytes);
    to[SW_RESERVED..512].fill(0);
    fill_initial(to);
}

/// Runs one case; comes back through the signal handler.
///
/// # Safety
/// `slot` is valid, `prepare_child` has succeeded, and nothing else of this process matters.
unsafe fn run_slot(slot: *mut Slot) {
    // SAFETY: fixed pages are mapped; this is the only thread.
    unsafe {
        CHILD.slot = slot;
        let memory = (*slot).memory.as_ptr();
        std::ptr::copy_nonoverlapping(memory, DATA_ADDRESS as *mut u8, DATA_SIZE);
        std::ptr::copy_nonoverlapping(memory.add(DATA_SIZE), CODE_ADDRESS as *mut u8, CODE_SIZE);
        let child = addr_of_mut!(CHILD);
        asm!(
            "push rbx",
            "push rbp",
            "rdfsbase rax",
            "mov [rsi + {host_fs}], rax",
            "mov [rsi + {host_rsp}], rsp",
            "lea rax, [rip + 2f]",
            "mov [rsi + {resume}], rax",
            "mov eax, 7",
            "xor edx, edx",
            "xrstor64 [rdi]",
            "mov eax, [rdi + {selectors}]",
            "mov es, eax",
            "mov eax, [rdi + {selectors} + 8]",
            "mov ds, eax",
            "mov eax, [rdi + {selectors} + 16]",
            "mov fs, eax",
            "mov eax, [rdi + {selectors} + 24]",
            "mov gs, eax",
            "cmp qword ptr [rdi + {load_bases}], 0",
            "je 3f",
            "mov rax, [rdi + {fs_base}]",
            "wrfsbase rax",
            "mov rax, [rdi + {gs_base}]",
            "wrgsbase rax",
            "3:",
            // A stack segment of 16 bits keeps the upper half of ESP: here that is zero.
            "mov rax, {frame_stack}",
            "mov rsp, rax",
            "push qword ptr [rdi + {frame} + 32]",
            "push qword ptr [rdi + {frame} + 24]",
            "push qword ptr [rdi + {frame} + 16]",
            "push qword ptr [rdi + {frame} + 8]",
            "push qword ptr [rdi + {frame}]",
            "lea rdi, [rdi + {gprs}]",
            "mov rax, [rdi]",
            "mov rcx, [rdi + 8]",
            "mov rdx, [rdi + 16]",
            "mov rbx, [rdi + 24]",
            "mov rbp, [rdi + 40]",
            "mov rsi, [rdi + 48]",
            "mov r8, [rdi + 64]",
            "mov r9, [rdi + 72]",
            "mov r10, [rdi + 80]",
            "mov r11, [rdi + 88]",
            "mov r12, [rdi + 96]",
            "mov r13, [rdi + 104]",
            "mov r14, [rdi + 112]",
            "mov r15, [rdi + 120]",
            "mov rdi, [rdi + 56]",
            "iretq",
            "2:",
            "pop rbp",
            "pop rbx",
            "cld",
            "fninit",
            host_fs = const offset_of!(Child, host_fs),
            host_rsp = const offset_of!(Child, host_rsp),
            resume = const offset_of!(Child, resume),
            selectors = const offset_of!(Slot, selectors),
            load_bases = const offset_of!(Slot, load_bases),
            fs_base = const offset_of!(Slot, fs_base),
            gs_base = const offset_of!(Slot, gs_base),
            frame = const offset_of!(Slot, frame),
            gprs = const offset_of!(Slot, gprs),
            frame_stack = const FRAME_STACK,
            inout("rdi") slot => _,
            inout("rsi") child => _,
            out("rcx") _, out("rax") _, out("rdx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
        let default_mxcsr = 0x1f80_u32;
        asm!("ldmxcsr [{}]", in(reg) &raw const default_mxcsr);
    }
}
