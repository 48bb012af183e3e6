//! Stubs: one host instruction, executed on copies of a guest instruction's operands.
//!
//! A stub is the guest's own instruction, encoded again with fixed registers, between loads of its operands
//! and stores of its results. So every lane, rounding, NaN payload, flag and reserved immediate bit is what
//! the processor does, and a stub exists for everything the decoder knows. There is one per (opcode,
//! immediate, register or memory form), made when it is first decoded and kept.
//!
//! ```text
//! operand k        pointer   register        load / store
//! vector           rdi rsi   xmm(k+1)        legacy SSE: 16 bytes, so bits 128.. survive;
//!                  rdx rcx   ymm(k+1)        VEX: 32 bytes, the instruction itself zeroes what it must
//! MMX              (by k)    mm(k+1)         8 bytes
//! general                    rax             8 bytes
//! memory                     [pointer]       none: 64 scratch bytes, 64-byte aligned
//! implicit XMM0    rcx       xmm0
//! implicit EAX..   r9        rax, rdx, rcx   PCMPxSTRx only
//! environment      r8        MXCSR, RFLAGS   only when the instruction depends on them
//! ```

#![expect(unsafe_code, reason = "turns generated code into a callable function")]

use super::arena::Arena;
use super::classify::{self, Traits};
use super::trap::{self, Environment};
use iced_x86::code_asm::{AsmRegister64, AsmRegisterMm, AsmRegisterXmm, AsmRegisterYmm};
use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, mm0, mm1, mm2, mm3, mm4, qword_ptr, r8, r9, rax, rcx, rdi, rdx, rsi, xmm0,
    xmm1, xmm2, xmm3, xmm4, xmmword_ptr, ymm0, ymm1, ymm2, ymm3, ymm4, ymmword_ptr,
};
use iced_x86::{Code, IcedError, Instruction, OpKind, Register};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::OnceLock;

/// Most operands that are not immediates.
pub const MAX_OPERANDS: usize = 4;

/// A stub: pointers to the operands, the environment, and the general registers in encoding order.
pub type Stub = unsafe extern "sysv64" fn(*mut u8, *mut u8, *mut u8, *mut u8, *mut Environment, *mut u64);

const POINTERS: [AsmRegister64; MAX_OPERANDS] = [rdi, rsi, rdx, rcx];
const POINTER_NUMBERS: [Register; MAX_OPERANDS] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX];
/// Index 0 is the implicit XMM0, operand k is k + 1.
const XMM: [AsmRegisterXmm; 5] = [xmm0, xmm1, xmm2, xmm3, xmm4];
const YMM: [AsmRegisterYmm; 5] = [ymm0, ymm1, ymm2, ymm3, ymm4];
const MM: [AsmRegisterMm; 5] = [mm0, mm1, mm2, mm3, mm4];

/// The kind of an operand of a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Absent, or an immediate.
    None,
    /// XMM or YMM register.
    Vector(u8),
    /// MMX register.
    Mmx(u8),
    /// General register.
    General(u8),
    /// Memory.
    Memory,
}

/// An error that makes stubs impossible, on a host where they cannot be made at all.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// No executable memory.
    #[error("Cannot reserve memory for vector instructions")]
    Reserve(#[source] io::Error),
    /// No signal handler.
    #[error("Cannot install the handler of unmasked vector exceptions")]
    Handler(#[source] io::Error),
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    code: Code,
    immediate: u8,
    memory: bool,
}

struct Table {
    arena: Arena,
    stubs: HashMap<Key, Stub>,
}

static TABLE: OnceLock<Result<Mutex<Table>, StubError>> = OnceLock::new();

fn table() -> Result<&'static Mutex<Table>, &'static StubError> {
    TABLE
        .get_or_init(|| {
            trap::install().map_err(StubError::Handler)?;
            let arena = Arena::new().map_err(StubError::Reserve)?;
            Ok(Mutex::new(Table { arena, stubs: HashMap::new() }))
        })
        .as_ref()
}

/// Makes sure that stubs can be made; call it when an engine starts, to report an error in time.
pub fn prepare() -> Result<(), &'static StubError> {
    table().map(|_| ())
}

/// The stub of an instruction whose operands are `slots`. `None` when it cannot be made.
pub(super) fn stub(instruction: &Instruction, slots: &[Slot; MAX_OPERANDS], traits: Traits) -> Option<Stub> {
    let memory = slots.contains(&Slot::Memory);
    let immediate = immediate(instruction);
    let key = Key { code: instruction.code(), immediate, memory };
    let mut table = table().ok()?.lock();
    if let Some(&stub) = table.stubs.get(&key) {
        return Some(stub);
    }
    let code = generate(instruction, slots, traits).ok()?;
    let address = table.arena.add(&code)?;
    // SAFETY: the arena holds a whole function of this signature at this address, for ever.
    let stub = unsafe { std::mem::transmute::<*const u8, Stub>(address) };
    table.stubs.insert(key, stub);
    Some(stub)
}

/// The byte immediate, or zero.
fn immediate(instruction: &Instruction) -> u8 {
    if instruction.op_kinds().any(|kind| kind == OpKind::Immediate8) { instruction.immediate8() } else { 0 }
}

/// The instruction with the registers of the table above.
fn renamed(instruction: &Instruction, slots: &[Slot; MAX_OPERANDS]) -> Instruction {
    let mut renamed = Instruction::new();
    renamed.set_code(instruction.code());
    for (index, kind) in instruction.op_kinds().enumerate() {
        let at = index as u32;
        renamed.set_op_kind(at, kind);
        if kind == OpKind::Immediate8 {
            renamed.set_immediate8(instruction.immediate8());
            continue;
        }
        let original = instruction.op_register(at);
        match slots.get(index).copied().unwrap_or(Slot::None) {
            Slot::Memory => {
                renamed.set_memory_base(POINTER_NUMBERS[index % MAX_OPERANDS]);
                renamed.set_memory_index(Register::None);
                renamed.set_memory_index_scale(1);
            }
            Slot::Vector(_) if original.is_ymm() => renamed.set_op_register(at, Register::YMM1 + at),
            Slot::Vector(_) => renamed.set_op_register(at, Register::XMM1 + at),
            Slot::Mmx(_) => renamed.set_op_register(at, Register::MM1 + at),
            Slot::General(_) if original.is_gpr64() => renamed.set_op_register(at, Register::RAX),
            Slot::General(_) => renamed.set_op_register(at, Register::EAX),
            Slot::None => {}
        }
    }
    renamed
}

/// The host register of operand `index`.
fn register_of(index: usize, traits: Traits) -> usize {
    if index + 1 == MAX_OPERANDS && traits.contains(Traits::IMPLICIT_XMM0) { 0 } else { index + 1 }
}

fn generate(
    instruction: &Instruction,
    slots: &[Slot; MAX_OPERANDS],
    traits: Traits,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for (index, &slot) in slots.iter().enumerate() {
        load(&mut a, index, slot, traits)?;
    }
    if traits.contains(Traits::IMPLICIT_LENGTHS) {
        a.mov(rax, qword_ptr(r9))?;
        a.mov(rdx, qword_ptr(r9 + 16))?;
    }
    if traits.contains(Traits::MXCSR) {
        a.ldmxcsr(dword_ptr(r8))?;
    }
    a.add_instruction(renamed(instruction, slots))?;
    if traits.contains(Traits::MXCSR) {
        a.stmxcsr(dword_ptr(r8))?;
        a.ldmxcsr(dword_ptr(r8 + Environment::HOST_MXCSR_OFFSET))?;
    }
    if traits.contains(Traits::FLAGS) {
        a.pushfq()?;
        a.pop(rax)?;
        a.mov(qword_ptr(r8 + Environment::RFLAGS_OFFSET), rax)?;
    }
    if traits.contains(Traits::IMPLICIT_INDEX) {
        a.mov(qword_ptr(r9 + 8), rcx)?;
    }
    for (index, &slot) in slots.iter().enumerate() {
        if classify::writes(instruction, index, traits) {
            store(&mut a, index, slot, traits)?;
        }
    }
    if slots.iter().any(|slot| matches!(slot, Slot::Mmx(_))) {
        a.emms()?;
    }
    if traits.contains(Traits::VEX) {
        a.vzeroupper()?;
    }
    a.ret()?;
    a.assemble(0)
}

fn load(a: &mut CodeAssembler, index: usize, slot: Slot, traits: Traits) -> Result<(), IcedError> {
    let pointer = POINTERS[index];
    let register = register_of(index, traits);
    match slot {
        Slot::Vector(_) if traits.contains(Traits::VEX) => a.vmovdqu(YMM[register], ymmword_ptr(pointer)),
        Slot::Vector(_) => a.movups(XMM[register], xmmword_ptr(pointer)),
        Slot::Mmx(_) => a.movq(MM[register], qword_ptr(pointer)),
        Slot::General(_) => a.mov(rax, qword_ptr(pointer)),
        Slot::Memory | Slot::None => Ok(()),
    }
}

fn store(a: &mut CodeAssembler, index: usize, slot: Slot, traits: Traits) -> Result<(), IcedError> {
    let pointer = POINTERS[index];
    let register = register_of(index, traits);
    match slot {
        Slot::Vector(_) if traits.contains(Traits::VEX) => a.vmovdqu(ymmword_ptr(pointer), YMM[register]),
        Slot::Vector(_) => a.movups(xmmword_ptr(pointer), XMM[register]),
        Slot::Mmx(_) => a.movq(qword_ptr(pointer), MM[register]),
        Slot::General(_) => a.mov(qword_ptr(pointer), rax),
        Slot::Memory | Slot::None => Ok(()),
    }
}
