//! One stub per x87 opcode: load the image, execute, save the image, leave an empty FPU.
//!
//! FXSAVE64 reports pending unmasked exceptions instead of raising them, so the image after a stub tells all
//! that the instruction did: registers, tags, condition codes, C1, exception flags and ES. The pointers are
//! the stub's own and are replaced by the caller.

#![expect(unsafe_code, reason = "executes x87 instructions on an image")]

use super::image::FpuState;
use std::arch::{asm, global_asm};

/// Bytes between stubs; the longest takes 13.
const STRIDE: usize = 16;

/// Forms per opcode byte: 64 with registers (ModRM C0–FF), then 8 with memory (ModRM /0–/7 at [RSI]).
const FORMS: usize = 72;

global_asm!(
    ".pushsection .text.vireo_x87_stubs,\"ax\",@progbits",
    ".balign 16",
    ".hidden vireo_x87_stubs",
    ".globl vireo_x87_stubs",
    "vireo_x87_stubs:",
    // FXRSTOR64 [RDI]; the instruction; FXSAVE64 [RDI]; FNINIT; RET
    ".irp opcode, 0xd8,0xd9,0xda,0xdb,0xdc,0xdd,0xde,0xdf",
    ".set modrm, 0xc0",
    ".rept 64",
    ".byte 0x48,0x0f,0xae,0x0f, \\opcode, modrm, 0x48,0x0f,0xae,0x07, 0xdb,0xe3, 0xc3, 0xcc,0xcc,0xcc",
    ".set modrm, modrm + 1",
    ".endr",
    ".set modrm, 0x06",
    ".rept 8",
    ".byte 0x48,0x0f,0xae,0x0f, \\opcode, modrm, 0x48,0x0f,0xae,0x07, 0xdb,0xe3, 0xc3, 0xcc,0xcc,0xcc",
    ".set modrm, modrm + 8",
    ".endr",
    ".endr",
    ".popsection",
);

unsafe extern "C" {
    #[link_name = "vireo_x87_stubs"]
    static STUBS: [[[u8; STRIDE]; FORMS]; 8];
}

/// FNSTSW m16 (DD /7), which does not wait and changes nothing: it only cleans the image.
const FNSTSW: Form = Form::new(0xdd, 7 << 3);

/// Which stub: an opcode byte and a register form or the reg field of a memory form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Opcode minus 0xd8.
    opcode: u8,
    /// ModRM minus 0xc0, or 64 + reg.
    index: u8,
}

impl Form {
    /// The form of an opcode byte (0xd8–0xdf) with its ModRM byte.
    pub const fn new(opcode: u8, modrm: u8) -> Self {
        let index = if modrm >= 0xc0 { modrm - 0xc0 } else { 64 + (modrm >> 3 & 7) };
        Form { opcode: opcode & 7, index }
    }
    /// Whether it has a memory operand.
    pub const fn is_memory(self) -> bool {
        self.index >= 64
    }
    /// Opcode byte's low three bits.
    pub const fn opcode(self) -> u8 {
        self.opcode
    }
    /// The reg field of ModRM.
    pub const fn reg(self) -> u8 {
        if self.is_memory() { self.index - 64 } else { self.index >> 3 }
    }
    /// The ModRM byte of a register form; of a memory form only its reg field.
    pub const fn modrm(self) -> u8 {
        if self.is_memory() { self.reg() << 3 } else { 0xc0 + self.index }
    }
}

/// Executes a form that neither waits, nor changes the environment, nor touches more memory than `scratch`.
/// `flags` are RFLAGS before it; the result is RFLAGS after it (only the arithmetic flags matter).
pub(super) fn execute(form: Form, image: &mut FpuState, scratch: &mut [u8; 16], flags: u64) -> u64 {
    /// CF, PF, AF, ZF, SF, OF: nothing else may reach the host's flags.
    const ARITHMETIC: u64 = 0x8d5;
    let mut flags = flags & ARITHMETIC;
    // SAFETY: `form` can only be built in range. The stub reads and writes the aligned 512-byte image and at
    // most ten bytes of `scratch`, keeps MXCSR (the image holds the host's) and leaves the FPU as the ABI
    // wants it; all it clobbers is declared. It cannot trap: FXRSTOR64 finds a valid MXCSR, and a waiting form
    // is only executed without pending exceptions.
    unsafe {
        let stub = (&raw const STUBS[usize::from(form.opcode)][usize::from(form.index)]).cast::<u8>();
        asm!(
            "push {flags}",
            "popfq",
            "call {stub}",
            "pushfq",
            "pop {flags}",
            flags = inout(reg) flags,
            stub = in(reg) stub,
            in("rdi") image.as_mut_ptr(),
            in("rsi") scratch.as_mut_ptr(),
            out("rax") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    flags & ARITHMETIC
}

/// Gives reserved bits of the control and status word, ES and B the values that the processor gives them
/// when it loads the image. Pointers stay.
pub fn normalise(image: &mut FpuState) {
    let (fop, fip, fdp) = (image.fop(), image.fip(), image.fdp());
    execute(FNSTSW, image, &mut [0; 16], 0);
    image.update_error_summary();
    image.set_fop(fop);
    image.set_fip(fip);
    image.set_fdp(fdp);
}
