//! Execution on the host's processor.
//!
//! A batch of cases lies in memory shared with a forked child. For each case the child copies code and data
//! to their fixed addresses, loads vector state, flags and registers, and jumps. Every way out is a signal;
//! its handler copies the interrupted state from the signal frame and resumes behind the jump.
//! A child, because the code may write to any address that its registers happen to hold.
#![expect(unsafe_code, reason = "executes arbitrary machine code in a child process")]

use crate::case::{Case, Outcome, Slot};
use crate::{CODE_ADDRESS, CODE_MAX, DATA_ADDRESS, DATA_SIZE, XSAVE_SIZE};
use anyhow::{Context, Result, bail, ensure};
use std::arch::asm;
use std::ptr::{addr_of, addr_of_mut};

/// What the handler needs; used by the child's only thread.
#[repr(C)]
struct Child {
    slot: *mut Slot,
    host_rsp: u64,
    resume: u64,
    code: u64,
}

static mut CHILD: Child = Child { slot: std::ptr::null_mut(), host_rsp: 0, resume: 0, code: CODE_ADDRESS };

/// Executes cases natively.
pub struct Native {
    slots: *mut Slot,
    capacity: usize,
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length.
        unsafe { libc::munmap(self.slots.cast(), self.capacity * size_of::<Slot>()) };
    }
}

impl Native {
    /// Room for batches of `capacity` cases.
    pub fn new(capacity: usize) -> Result<Self> {
        let slots =
            map(0, capacity * size_of::<Slot>(), libc::MAP_SHARED, libc::PROT_READ | libc::PROT_WRITE)?;
        Ok(Native { slots: slots.cast(), capacity })
    }

    /// Runs a batch; the outcomes are in the order of the cases.
    pub fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>> {
        ensure!(cases.len() <= self.capacity, "a batch holds at most {} cases", self.capacity);
        for (i, case) in cases.iter().enumerate() {
            // SAFETY: inside the mapping; the child of the former batch has ended.
            unsafe { (*self.slots.add(i)).load(case) };
        }
        // SAFETY: the child only runs async-signal-safe code before it leaves by `_exit`.
        match unsafe { libc::fork() } {
            -1 => bail!("fork failed: {}", std::io::Error::last_os_error()),
            0 => self.child(cases.len()),
            child => wait_for(child)?,
        }
        // SAFETY: as above; the child has ended.
        Ok((0..cases.len()).map(|i| unsafe { (*self.slots.add(i)).outcome() }).collect())
    }

    fn child(&self, count: usize) -> ! {
        let status = match prepare_child() {
            Ok(()) => {
                for i in 0..count {
                    // SAFETY: slots are mapped and initialised; handlers and fixed pages are in place.
                    unsafe { run_slot(self.slots.add(i)) };
                }
                0
            }
            Err(_) => 1,
        };
        // SAFETY: ends the process without running the parent's destructors.
        unsafe { libc::_exit(status) }
    }
}

fn wait_for(child: libc::pid_t) -> Result<()> {
    let mut status = 0;
    // SAFETY: waits for our own child.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(waited == child, "waitpid failed");
    ensure!(status == 0, "the native child ended with wait status {status:#x}");
    Ok(())
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

fn prepare_child() -> Result<()> {
    let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    map(CODE_ADDRESS, 0x1000, libc::MAP_PRIVATE, rwx)?;
    map(DATA_ADDRESS, DATA_SIZE, libc::MAP_PRIVATE, libc::PROT_READ | libc::PROT_WRITE)?;
    let stack_len = 0x4_0000;
    let stack = map(0, stack_len, libc::MAP_PRIVATE, libc::PROT_READ | libc::PROT_WRITE)?;
    // SAFETY: the alternate stack is mapped; the handler has the three-argument form that SA_SIGINFO asks for.
    unsafe {
        libc::alarm(20);
        let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: stack_len };
        libc::sigaltstack(&raw const alternate, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
    Ok(())
}

/// Offsets inside the signal frame's floating-point state: the kernel's own marker and features.
const SW_RESERVED: usize = 464;

extern "C" fn handler(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
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
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        let slot = &mut *CHILD.slot;
        for (to, from) in slot.gprs.iter_mut().zip(REGISTERS) {
            *to = registers[from as usize] as u64;
        }
        slot.rip = registers[libc::REG_RIP as usize] as u64;
        slot.rflags = registers[libc::REG_EFL as usize] as u64;
        slot.vector = registers[libc::REG_TRAPNO as usize] as u64;
        slot.error_code = registers[libc::REG_ERR as usize] as u64;
        slot.cr2 = registers[libc::REG_CR2 as usize] as u64;
        save_vectors(context.uc_mcontext.fpregs.cast(), &mut slot.xsave);
        std::ptr::copy_nonoverlapping(DATA_ADDRESS as *const u8, slot.data.as_mut_ptr(), DATA_SIZE);
        registers[libc::REG_RIP as usize] = CHILD.resume as i64;
        registers[libc::REG_RSP as usize] = CHILD.host_rsp as i64;
        registers[libc::REG_EFL as usize] = 0x202;
    }
}

/// Copies the frame's XSAVE area, filling in what is in its initial state.
///
/// # Safety
/// `frame` is the floating-point state of a signal frame.
unsafe fn save_vectors(frame: *const u8, to: &mut [u8; XSAVE_SIZE]) {
    // SAFETY: the frame's size covers YMM whenever the host has AVX, which `Guest` requires.
    let bytes = unsafe { std::slice::from_raw_parts(frame, XSAVE_SIZE) };
    to.copy_from_slice(bytes);
    to[SW_RESERVED..512].fill(0);
    let present = bytes[512];
    if present & 1 == 0 {
        to[0..24].fill(0);
        to[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        to[32..160].fill(0);
    }
    if present & 2 == 0 {
        to[160..416].fill(0);
    }
    if present & 4 == 0 {
        to[576..XSAVE_SIZE].fill(0);
    }
    to[512..576].fill(0);
}

/// Runs one case; comes back through the signal handler.
///
/// # Safety
/// `slot` is valid, `prepare_child` has succeeded, and nothing else of this process matters.
unsafe fn run_slot(slot: *mut Slot) {
    // SAFETY: fixed pages are mapped; this is the only thread.
    unsafe {
        CHILD.slot = slot;
        std::ptr::copy_nonoverlapping((*slot).code.as_ptr(), CODE_ADDRESS as *mut u8, CODE_MAX);
        std::ptr::copy_nonoverlapping((*slot).data.as_ptr(), DATA_ADDRESS as *mut u8, DATA_SIZE);
        let gprs = addr_of!((*slot).gprs);
        let child = addr_of_mut!(CHILD);
        let xsave = addr_of!((*slot).xsave);
        asm!(
            "push rbx",
            "push rbp",
            "sub rsp, 256", // the red zone of nobody, and room for the pushes below
            "mov [rsi + 8], rsp",
            "lea rax, [rip + 2f]",
            "mov [rsi + 16], rax",
            "mov eax, 7",
            "xor edx, edx",
            "xrstor64 [rcx]",
            "push qword ptr [rdi + 128]",
            "popfq",
            "mov rax, [rdi]",
            "mov rcx, [rdi + 8]",
            "mov rdx, [rdi + 16]",
            "mov rbx, [rdi + 24]",
            "mov rsp, [rdi + 32]",
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
            "jmp qword ptr [rip + {child} + 24]",
            "2:",
            "add rsp, 256",
            "pop rbp",
            "pop rbx",
            "cld",
            "fninit",
            child = sym CHILD,
            inout("rdi") gprs => _,
            inout("rsi") child => _,
            inout("rcx") xsave => _,
            out("rax") _, out("rdx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
        let default_mxcsr = 0x1f80_u32;
        asm!("ldmxcsr [{}]", in(reg) &raw const default_mxcsr);
    }
}
