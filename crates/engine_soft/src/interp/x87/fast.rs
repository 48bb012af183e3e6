//! Common x87 instructions on one or two registers, without loading the whole image.
//!
//! FXRSTOR64 and FXSAVE64 of a used FPU take a few hundred cycles. While all exceptions are masked, no
//! register involved is empty and none overflows, an instruction depends only on its operands and the control
//! word, so the stubs here load just those (FLD m80 raises nothing), execute, and store the result and the
//! status. The stack is then moved in the image. Everything else is left to [`stubs`](super::stubs).
//!
//! Between two of these stubs the host's FPU is empty, with its own control word. Exception flags stay in the
//! host's status word as long as the guest has them too: raising one anew is slow, so is clearing it, and a
//! program that computes raises the same few all the time.

#![expect(unsafe_code, reason = "executes x87 instructions on copies of registers")]

use super::image::{EXCEPTIONS, FpuState};
use super::stubs::Form;
use std::arch::{asm, global_asm};

/// Bytes between stubs.
const STRIDE: usize = 32;
/// FSW: C1, and all of C0–C3.
const C1: u16 = 1 << 9;
const CONDITIONS: u16 = 0x4700;

/// Operands of a stub; the offsets are known to the assembly below.
#[derive(Default)]
#[repr(C, align(64))]
struct Frame {
    a: [u8; 16],
    b: [u8; 16],
    out: [u8; 16],
    memory: [u8; 16],
    fcw: u16,
    fsw: u16,
    host_fcw: u16,
    reserved: u16,
    flags: u64,
}

// FLDCW [RDI+64], …, FNSTSW [RDI+66], …, FLDCW [RDI+68], RET. Register: ST0 = a, ST1 = b, result to `out`.
// Memory: ST0 = a, operand at [RDI+48], result to `out`. Load: result to `out`. Store: a to [RDI+48].
global_asm!(
    ".pushsection .text.vireo_x87_fast,\"ax\",@progbits",
    ".balign 32",
    ".hidden vireo_x87_fast",
    ".globl vireo_x87_fast",
    "vireo_x87_fast:",
    // 0–7: D8 /reg with ST1.
    ".irp modrm, 0xc1,0xc9,0xd1,0xd9,0xe1,0xe9,0xf1,0xf9",
    ".balign 32, 0xcc",
    ".byte 0xd9,0x6f,0x40, 0xdb,0x6f,0x10, 0xdb,0x2f, 0xd8,\\modrm, 0xdd,0x7f,0x42",
    // FCOMP has popped one.
    ".if \\modrm != 0xd9",
    ".byte 0xdb,0x7f,0x20",
    ".endif",
    ".byte 0xdd,0xd8, 0xd9,0x6f,0x44, 0xc3",
    ".endr",
    // 8–39: D8, DA, DC, DE /reg with memory.
    ".irp opcode, 0xd8,0xda,0xdc,0xde",
    ".irp modrm, 0x47,0x4f,0x57,0x5f,0x67,0x6f,0x77,0x7f",
    ".balign 32, 0xcc",
    ".byte 0xd9,0x6f,0x40, 0xdb,0x2f, \\opcode,\\modrm,0x30, 0xdd,0x7f,0x42",
    ".if \\modrm != 0x5f",
    ".byte 0xdb,0x7f,0x20",
    ".endif",
    ".byte 0xd9,0x6f,0x44, 0xc3",
    ".endr",
    ".endr",
    // 40–44: FLD m32, FILD m32, FLD m64, FILD m16, FILD m64.
    ".irp form, 0x47d9,0x47db,0x47dd,0x47df,0x6fdf",
    ".balign 32, 0xcc",
    ".byte 0xd9,0x6f,0x40, \\form & 0xff,\\form >> 8,0x30, 0xdd,0x7f,0x42, 0xdb,0x7f,0x20, 0xd9,0x6f,0x44, 0xc3",
    ".endr",
    // 45–51: FLD1 to FLDZ.
    ".irp modrm, 0xe8,0xe9,0xea,0xeb,0xec,0xed,0xee",
    ".balign 32, 0xcc",
    ".byte 0xd9,0x6f,0x40, 0xd9,\\modrm, 0xdd,0x7f,0x42, 0xdb,0x7f,0x20, 0xd9,0x6f,0x44, 0xc3",
    ".endr",
    // 52–59, popping: FSTP m32, FISTTP m32, FISTP m32, FISTTP m64, FSTP m64, FISTTP m16, FISTP m16, FISTP m64.
    ".irp form, 0x5fd9,0x4fdb,0x5fdb,0x4fdd,0x5fdd,0x4fdf,0x5fdf,0x7fdf",
    ".balign 32, 0xcc",
    ".byte 0xd9,0x6f,0x40, 0xdb,0x2f, \\form & 0xff,\\form >> 8,0x30, 0xdd,0x7f,0x42, 0xd9,0x6f,0x44, 0xc3",
    ".endr",
    // 60–61: FSQRT, FRNDINT.
    ".irp modrm, 0xfa,0xfc",
    ".balign 32, 0xcc",
    ".byte 0xd9,0x6f,0x40, 0xdb,0x2f, 0xd9,\\modrm, 0xdd,0x7f,0x42, 0xdb,0x7f,0x20, 0xd9,0x6f,0x44, 0xc3",
    ".endr",
    // 62: FUCOM ST1.
    ".balign 32, 0xcc",
    ".byte 0xdb,0x6f,0x10, 0xdb,0x2f, 0xdd,0xe1, 0xdd,0x7f,0x42, 0xdd,0xd8, 0xdd,0xd8, 0xc3",
    // 63–64: FUCOMI ST1, FCOMI ST1; PUSHFQ, POP [RDI+72].
    ".irp modrm, 0xe9,0xf1",
    ".balign 32, 0xcc",
    ".byte 0xdb,0x6f,0x10, 0xdb,0x2f, 0xdb,\\modrm, 0x9c, 0x8f,0x47,0x48, 0xdd,0x7f,0x42",
    ".byte 0xdd,0xd8, 0xdd,0xd8, 0xc3",
    ".endr",
    ".balign 32, 0xcc",
    ".popsection",
);

/// Stubs by number.
const COUNT: usize = 65;
const MEMORY: usize = 8;
const LOADS: usize = 40;
const CONSTANTS: usize = 45;
const STORES: usize = 52;
const SQUARE_ROOT: usize = 60;
const ROUND: usize = 61;
const UNORDERED: usize = 62;
const UNORDERED_FLAGS: usize = 63;
const ORDERED_FLAGS: usize = 64;

unsafe extern "C" {
    #[link_name = "vireo_x87_fast"]
    static STUBS: [[u8; STRIDE]; COUNT];
}

/// What happens to the stack around a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// ST0 and ST(i) to ST0 or ST(i); pops.
    Binary { other: usize, reversed: bool, to_other: bool, pops: usize },
    /// ST0 with memory, to ST0.
    Memory,
    /// ST0 with ST(i) or memory to C0–C3.
    Compare { other: Option<usize>, pops: usize },
    /// ST0 with ST(i) to flags.
    CompareFlags { other: usize, pops: usize },
    /// Pushes.
    Load,
    /// ST0 to memory.
    Store { pops: usize },
    /// ST0 to ST0.
    Unary,
}

/// The stub of a form, if it has one.
fn plan(form: Form) -> Option<(usize, Action)> {
    let reg = usize::from(form.reg());
    let opcode = 0xd8 + form.opcode();
    if form.is_memory() {
        return plan_memory(opcode, reg);
    }
    let other = usize::from(form.modrm() & 7);
    let arithmetic = !matches!(reg, 2 | 3);
    Some(match (opcode, form.modrm()) {
        (0xd8, _) if arithmetic => (reg, Action::Binary { other, reversed: false, to_other: false, pops: 0 }),
        (0xdc | 0xde, _) if arithmetic => {
            let pops = usize::from(opcode == 0xde);
            // FSUB and FSUBR, FDIV and FDIVR change places when ST(i) is the destination: with ST(i) loaded as
            // ST0 they do so again.
            let stub = if reg >= 4 { reg ^ 1 } else { reg };
            (stub, Action::Binary { other, reversed: true, to_other: true, pops })
        }
        (0xd8, 0xd0..=0xdf) => (2, Action::Compare { other: Some(other), pops: reg - 2 }),
        (0xde, 0xd9) => (2, Action::Compare { other: Some(1), pops: 2 }),
        (0xdd, 0xe0..=0xef) => (UNORDERED, Action::Compare { other: Some(other), pops: reg - 4 }),
        (0xda, 0xe9) => (UNORDERED, Action::Compare { other: Some(1), pops: 2 }),
        (0xdb | 0xdf, 0xe8..=0xf7) => {
            let stub = if reg == 5 { UNORDERED_FLAGS } else { ORDERED_FLAGS };
            (stub, Action::CompareFlags { other, pops: usize::from(opcode == 0xdf) })
        }
        (0xd9, 0xe8..=0xee) => (CONSTANTS + other, Action::Load),
        (0xd9, 0xfa) => (SQUARE_ROOT, Action::Unary),
        (0xd9, 0xfc) => (ROUND, Action::Unary),
        _ => return None,
    })
}

fn plan_memory(opcode: u8, reg: usize) -> Option<(usize, Action)> {
    let load = |number| (LOADS + number, Action::Load);
    let store = |number, pops| (STORES + number, Action::Store { pops });
    Some(match (opcode, reg) {
        (0xd8 | 0xda | 0xdc | 0xde, _) => {
            let group = MEMORY + 8 * usize::from((opcode - 0xd8) / 2);
            match reg {
                2 | 3 => (group + 2, Action::Compare { other: None, pops: reg - 2 }),
                _ => (group + reg, Action::Memory),
            }
        }
        (0xd9, 0) => load(0),
        (0xdb, 0) => load(1),
        (0xdd, 0) => load(2),
        (0xdf, 0) => load(3),
        (0xdf, 5) => load(4),
        (0xd9, 2 | 3) => store(0, reg - 2),
        (0xdb, 1) => store(1, 1),
        (0xdb, 2 | 3) => store(2, reg - 2),
        (0xdd, 1) => store(3, 1),
        (0xdd, 2 | 3) => store(4, reg - 2),
        (0xdf, 1) => store(5, 1),
        (0xdf, 2 | 3) => store(6, reg - 2),
        (0xdf, 7) => store(7, 1),
        _ => return None,
    })
}

/// Executes a form on its operands alone. `None`, with nothing changed, if that is not possible; otherwise
/// the arithmetic flags after it.
pub(super) fn execute(form: Form, image: &mut FpuState, scratch: &mut [u8; 16], flags: u64) -> Option<u64> {
    if image.fcw() & EXCEPTIONS != EXCEPTIONS {
        return None;
    }
    if moves(form, image, scratch).is_some() {
        image.set_fsw(image.fsw() & !C1);
        return Some(flags);
    }
    let (stub, action) = plan(form)?;
    let mut frame = Frame { fcw: image.fcw(), host_fcw: 0x37f, ..Frame::default() };
    match action {
        Action::Binary { other, reversed, .. } => {
            let (first, second) = if reversed { (other, 0) } else { (0, other) };
            operand(image, first, &mut frame.a)?;
            operand(image, second, &mut frame.b)?;
        }
        Action::Compare { other: Some(other), .. } | Action::CompareFlags { other, .. } => {
            operand(image, 0, &mut frame.a)?;
            operand(image, other, &mut frame.b)?;
        }
        Action::Load if image.is_valid(7) => return None,
        Action::Load => {}
        _ => operand(image, 0, &mut frame.a)?,
    }
    frame.memory = *scratch;
    call(stub, &mut frame, image.fsw());
    *scratch = frame.memory;
    let mut result = [0; 10];
    result.copy_from_slice(&frame.out[..10]);
    let (conditions, pops) = match action {
        Action::Binary { other, to_other, pops, .. } => {
            image.set_st(if to_other { other } else { 0 }, &result);
            (C1, pops)
        }
        Action::Memory | Action::Unary => {
            image.set_st(0, &result);
            (C1, 0)
        }
        Action::Load => {
            image.push(&result);
            (C1, 0)
        }
        Action::Store { pops } => (C1, pops),
        Action::Compare { pops, .. } => (CONDITIONS, pops),
        // These leave all of C0–C3, C1 included.
        Action::CompareFlags { pops, .. } => (0, pops),
    };
    let kept = image.fsw() & !conditions;
    image.set_fsw(kept | frame.fsw & (conditions | EXCEPTIONS));
    (0..pops).for_each(|_| image.pop());
    Some(if matches!(action, Action::CompareFlags { .. }) { frame.flags } else { flags })
}

/// Copies ST(i), unless it is empty.
fn operand(image: &FpuState, index: usize, value: &mut [u8; 16]) -> Option<()> {
    if !image.is_valid(index) {
        return None;
    }
    value[..10].copy_from_slice(&image.st(index));
    Some(())
}

/// Instructions that only copy: FLD m80 and ST(i), FST(P) ST(i), FSTP m80, FXCH, FCHS, FABS.
fn moves(form: Form, image: &mut FpuState, scratch: &mut [u8; 16]) -> Option<()> {
    /// The byte of a register that holds the sign, in its top bit.
    const SIGN: usize = 9;
    let other = usize::from(form.modrm() & 7);
    let st0 = image.is_valid(0).then(|| image.st(0));
    match (0xd8 + form.opcode(), form.reg(), form.is_memory()) {
        (0xdb, 5, true) if !image.is_valid(7) => {
            let mut value = [0; 10];
            value.copy_from_slice(&scratch[..10]);
            image.push(&value);
        }
        (0xdb, 7, true) => {
            scratch[..10].copy_from_slice(&st0?);
            image.pop();
        }
        (0xd9, 0, false) if image.is_valid(other) && !image.is_valid(7) => image.push(&image.st(other)),
        (0xd9, 1, false) if image.is_valid(other) => {
            let st0 = st0?;
            image.set_st(0, &image.st(other));
            image.set_st(other, &st0);
        }
        (0xd9, 4, false) if other < 2 => {
            let mut value = st0?;
            value[SIGN] = if other == 0 { value[SIGN] ^ 0x80 } else { value[SIGN] & 0x7f };
            image.set_st(0, &value);
        }
        (0xdd, 2 | 3, false) => {
            let value = st0?;
            image.set_st(other, &value);
            image.set_valid(other);
            if form.reg() == 3 {
                image.pop();
            }
        }
        _ => return None,
    }
    Some(())
}

/// Calls a stub. `guest` is the guest's status word: flags in it need not be raised again to be seen.
fn call(stub: usize, frame: &mut Frame, guest: u16) {
    // SAFETY: `plan` only names stubs that exist. A stub reads and writes its frame, whose control word masks
    // all exceptions, and leaves the FPU empty with the host's control word.
    unsafe {
        let host: u16;
        asm!("fnstsw ax", out("ax") host, options(nomem, nostack, preserves_flags));
        if host & EXCEPTIONS & !guest != 0 {
            asm!("fnclex", options(nomem, nostack, preserves_flags));
        }
        asm!(
            "call {stub}",
            stub = in(reg) (&raw const STUBS[stub]).cast::<u8>(),
            in("rdi") &raw mut *frame,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
}
