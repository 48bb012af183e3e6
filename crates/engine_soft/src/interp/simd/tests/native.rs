//! Runs guest bytes as they are, on the host's whole register state.

#![expect(unsafe_code, reason = "executes test code natively")]

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// The state around the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Block {
    pub(crate) ymm: [[u8; 32]; 16],
    pub(crate) mm: [[u8; 8]; 8],
    /// RAX, RCX, RDX, RBX.
    pub(crate) gprs: [u64; 4],
    /// What RDI holds.
    pub(crate) memory: u64,
    pub(crate) rflags: u64,
    pub(crate) mxcsr: u32,
    pub(crate) host_mxcsr: u32,
}

const MM: i32 = 512;
const GPRS: i32 = MM + 64;
const MEMORY: i32 = GPRS + 32;
const RFLAGS: i32 = MEMORY + 8;
const MXCSR: i32 = RFLAGS + 8;

/// Code memory of a test.
pub(crate) struct Code {
    at: *mut u8,
}

const LEN: usize = 8192;

impl Code {
    pub(crate) fn new() -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), LEN, protection, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Code { at: at.cast() }
    }

    /// Runs machine code that is a System V function of one pointer.
    pub(crate) fn call(&mut self, code: &[u8], argument: *mut u8) {
        assert!(code.len() <= LEN);
        // SAFETY: the mapping is ours, large enough, and holds a function of this signature.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.at, code.len());
            let function: extern "sysv64" fn(*mut u8) = std::mem::transmute(self.at);
            function(argument);
        }
    }

    /// Runs `bytes`, which may use the vector and MMX registers, RAX–RBX, and memory at RDI.
    pub(crate) fn run(&mut self, bytes: &[u8], block: &mut Block) {
        block.host_mxcsr = 0x1f80;
        let code = assemble(bytes).expect("the frame assembles");
        self.call(&code, (&raw mut *block).cast());
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: our mapping, no longer running.
        unsafe { libc::munmap(self.at.cast(), LEN) };
    }
}

fn assemble(bytes: &[u8]) -> Result<Vec<u8>, IcedError> {
    let ymms = [
        ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15,
    ];
    let mms = [mm0, mm1, mm2, mm3, mm4, mm5, mm6, mm7];
    let gprs = [rax, rcx, rdx, rbx];
    let mut a = CodeAssembler::new(64)?;
    a.push(rbx)?;
    a.push(r15)?;
    a.mov(r15, rdi)?;
    for (at, register) in ymms.into_iter().enumerate() {
        a.vmovdqu(register, ymmword_ptr(r15 + 32 * at))?;
    }
    for (at, register) in mms.into_iter().enumerate() {
        a.movq(register, qword_ptr(r15 + MM + 8 * at as i32))?;
    }
    for (at, register) in gprs.into_iter().enumerate() {
        a.mov(register, qword_ptr(r15 + GPRS + 8 * at as i32))?;
    }
    a.push(qword_ptr(r15 + RFLAGS))?;
    a.popfq()?;
    a.mov(rdi, qword_ptr(r15 + MEMORY))?;
    a.ldmxcsr(dword_ptr(r15 + MXCSR))?;
    a.db(bytes)?;
    a.stmxcsr(dword_ptr(r15 + MXCSR))?;
    a.ldmxcsr(dword_ptr(r15 + MXCSR + 4))?;
    a.pushfq()?;
    a.pop(qword_ptr(r15 + RFLAGS))?;
    for (at, register) in gprs.into_iter().enumerate() {
        a.mov(qword_ptr(r15 + GPRS + 8 * at as i32), register)?;
    }
    for (at, register) in mms.into_iter().enumerate() {
        a.movq(qword_ptr(r15 + MM + 8 * at as i32), register)?;
    }
    for (at, register) in ymms.into_iter().enumerate() {
        a.vmovdqu(ymmword_ptr(r15 + 32 * at), register)?;
    }
    a.emms()?;
    a.vzeroupper()?;
    a.pop(r15)?;
    a.pop(rbx)?;
    a.ret()?;
    a.assemble(0)
}
