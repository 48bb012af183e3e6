//! Flags that nobody will see.
//!
//! Flags must be exact wherever the interpreter may be called: at every memory operand, every store. Two things can be
//! told from the instructions that follow in the block, up to one that replaces all flags:
//! * Nothing is called on the way: then nobody sees what the flags are in between, and an instruction that changes
//!   some of them does not need the others.
//! * Something may be called, but the operands of the instruction that made the flags are still there on the way:
//!   then flags need not be saved before a check destroys them. The side way makes them again, see [`Remake`].

use super::asm::{S1, S2};
use super::block::Builder;
use super::flags::{FlagHome, FlagUse, flag_use, keeps_carry};
use super::memory::GuestAddress;
use super::operand::{self, Place};
use super::transfer::{Target, in_page};
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpAccess, OpKind, Register};

/// How far to look ahead, in instructions.
const HORIZON: usize = 24;

/// How flags are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remake {
    /// By the same instruction: it wrote no register.
    Again(Instruction),
    /// By the inverse and then the same instruction.
    InverseFirst(Instruction),
    /// As [`Remake::InverseFirst`], with the saved CF, which the instruction keeps.
    Counted(Instruction),
    /// By a test of the result, in a host register, of a number of bytes.
    Test(u8, u8),
}

/// Whether an instruction reaches memory.
pub(super) fn has_access(i: &Instruction) -> bool {
    accesses(i) > 0
}

/// Accesses to memory that an instruction makes once: by an operand, and implicitly to the stack.
pub(super) fn accesses(i: &Instruction) -> i32 {
    let memory = (0..i.op_count()).any(|at| i.op_kind(at) == OpKind::Memory);
    let by_operand = memory && !matches!(i.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
    i32::from(by_operand) + i32::from(i.is_stack_instruction())
}

/// How the flags that `i` has made can be made again, and from which registers.
fn remake_of(i: &Instruction) -> Option<(Remake, [Register; 2])> {
    use Mnemonic as M;
    let repeated = i.has_rep_prefix() || i.has_repne_prefix() || i.segment_prefix() != Register::None;
    if i.op_count() == 0 || i.op0_kind() != OpKind::Register || repeated {
        return None;
    }
    let to = i.op0_register();
    let register = |register: Register| register.is_gpr() && !operand::is_high_byte(register);
    if !register(to) {
        return None;
    }
    if matches!(i.mnemonic(), M::Cmp | M::Test) && operand::cold_form(i).is_some() {
        let from = if i.op1_kind() == OpKind::Register { i.op1_register() } else { Register::None };
        return Some((Remake::Again(*i), [to.full_register(), from.full_register()]));
    }
    let Place::Host(host) = operand::place(to) else { return None };
    if matches!(i.mnemonic(), M::And | M::Or | M::Xor) {
        return Some((Remake::Test(host, to.size() as u8), [to.full_register(), Register::None]));
    }
    let from = match (i.op_count(), i.op_kind(1)) {
        (1, _) => Register::None,
        (2, OpKind::Register) if register(i.op1_register()) => i.op1_register(),
        (2, OpKind::Memory | OpKind::Register) => return None,
        _ => Register::None,
    };
    if from != Register::None && operand::place(from) == Place::Home {
        return None;
    }
    let inputs = [to.full_register(), from.full_register()];
    let same = from.full_register() == to.full_register();
    let remake = match i.mnemonic() {
        M::Cmp | M::Test => Remake::Again(*i),
        M::Add | M::Sub if !same && i.op_count() == 2 => Remake::InverseFirst(*i),
        M::Neg if i.op_count() == 1 => Remake::InverseFirst(*i),
        M::Inc | M::Dec => Remake::Counted(*i),
        _ => return None,
    };
    Some((remake, inputs))
}

impl Builder<'_> {
    /// Whether an instruction may call the interpreter or report a store.
    pub fn may_call(&self, at: usize) -> bool {
        self.instructions.get(at).is_some_and(has_access) && !self.shares.is_covered(at, self.index)
    }

    /// Whether an instruction is certainly copied, and nothing is called before it.
    fn is_surely_copied(&mut self, i: &Instruction) -> bool {
        if i.is_stack_instruction() {
            return matches!(i.code(), Code::Push_r64 | Code::Pop_r64 | Code::Push_r32 | Code::Pop_r32);
        }
        let system = self.context.system;
        let vector = super::vector::is_known(system, i)
            && !super::vector::is_control(i)
            && super::vector::level(i) <= self.vector;
        let form = (vector || super::copy::is_known(system, i))
            && !matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
            && (i.mnemonic() != Mnemonic::Lea || i.op0_register().size() >= 4);
        let memory = (0..i.op_count()).any(|at| i.op_kind(at) == OpKind::Memory);
        if !form || memory && GuestAddress::of(self.context.kind, i).is_err() {
            return false;
        }
        let access = self.accesses(i);
        let access = |at: u32| access.get(at as usize).copied().unwrap_or(OpAccess::None);
        operand::homed(i, access).is_some_and(|homed| homed.len() <= 1)
    }

    /// Whether all flags are replaced behind the current instruction before anybody can see them.
    pub fn flags_are_dead(&mut self) -> bool {
        self.flags_are_dead_behind(self.index)
    }

    /// As [`Builder::flags_are_dead`], for any instruction.
    pub fn flags_are_dead_behind(&mut self, index: usize) -> bool {
        if self.may_call(index) || self.instructions.get(index).is_none_or(|i| i.rflags_read() != 0) {
            return false;
        }
        for at in index + 1..self.instructions.len().min(index + HORIZON) {
            let i = self.instructions[at];
            if self.may_call(at) || i.rflags_read() != 0 || !self.is_surely_copied(&i) {
                return false;
            }
            if flag_use(&i) == FlagUse::Replaces {
                return true;
            }
        }
        false
    }

    /// Where an instruction jumps back in the page, if nothing else happens there: not to the start of the block.
    fn jumps_back_to(&self, i: &Instruction) -> Option<u16> {
        let plain = i.is_jmp_short_or_near() && self.swaps.is_empty() && self.context.kind.is_flat();
        let target = Target::of(i).filter(|_| plain).and_then(|target| in_page(target.at))?;
        let start = self.instructions.first()?.ip();
        (u64::from(target) <= i.ip() && u64::from(target) != start).then_some(target)
    }

    /// How a jump back in the page can make the flags again if it has to be left there; `None` also if the flags
    /// matter at its target.
    pub fn remake_for_jump(&mut self, target: u16) -> Option<Remake> {
        if self.remake.is_some() {
            // They were found to be dead at the target when they were not saved.
            return self.remake;
        }
        let here = self.swaps.is_empty() && self.context.kind.is_flat();
        if self.flags != FlagHome::Live || !here || !self.are_dead_at(target) {
            return None;
        }
        let made = self.made?;
        let (remake, inputs) = remake_of(self.instructions.get(made)?)?;
        (made + 1..self.index).all(|at| !self.writes_any(at, inputs)).then_some(remake)
    }

    /// Whether the code at an address in the page replaces all flags before anybody can see them. Zeros, where the
    /// page was not read, are a store.
    fn are_dead_at(&mut self, target: u16) -> bool {
        let page = self.context.page;
        let bytes = page.get(usize::from(target)..).unwrap_or_default();
        let kind = self.context.kind;
        let mut decoder =
            Decoder::with_ip(kind.code_size().into(), bytes, u64::from(target), DecoderOptions::NONE);
        for mut i in decoder.iter().take(HORIZON / 4) {
            super::kind::normalise(kind, &mut i);
            self.depend_on(&i);
            if has_access(&i) || i.rflags_read() != 0 || !self.is_surely_copied(&i) {
                return false;
            }
            if flag_use(&i) == FlagUse::Replaces {
                return true;
            }
        }
        false
    }

    /// How the flags in RFLAGS can be made again as long as somebody could see them, if they can.
    pub fn find_remake(&mut self) -> Option<Remake> {
        let made = self.made?;
        let (remake, inputs) = remake_of(self.instructions.get(made)?)?;
        let changed = (made + 1..self.index).any(|at| self.writes_any(at, inputs));
        self.are_only_seen_aside(inputs, changed).then_some(remake)
    }

    /// How the flags of instruction `made` of a loop's body can be made again at its end, and in the next iteration as
    /// long as somebody could see them. The current instruction is the body's first.
    pub fn remake_for_loop(&mut self, made: Option<usize>) -> Option<Remake> {
        let made = made?;
        let (remake, inputs) = remake_of(self.instructions.get(made)?)?;
        let changed = (made + 1..self.instructions.len()).any(|at| self.writes_any(at, inputs));
        (!changed && self.are_only_seen_aside(inputs, false)).then_some(remake)
    }

    /// Whether flags that an INC or DEC makes, which comes first in the block to touch them, are only seen where they can be
    /// made again.
    pub fn count_is_only_seen_aside(&mut self, at: usize) -> bool {
        let Some(i) = self.instructions.get(at).copied().filter(keeps_carry) else { return false };
        let index = std::mem::replace(&mut self.index, at + 1);
        let seen_aside = remake_of(&i).is_some_and(|(_, inputs)| self.are_only_seen_aside(inputs, false));
        self.index = index;
        seen_aside
    }

    /// Whether only side ways see flags from the current instruction on, as long as the registers that they were made from
    /// are not `changed`, until all of them are replaced.
    fn are_only_seen_aside(&mut self, inputs: [Register; 2], mut changed: bool) -> bool {
        for at in self.index..self.instructions.len().min(self.index + HORIZON) {
            let i = self.instructions[at];
            if let Some(target) = self.jumps_back_to(&i) {
                return !changed && self.are_dead_at(target);
            }
            if i.rflags_read() != 0 || !self.is_surely_copied(&i) || self.may_call(at) && changed {
                return false;
            }
            match flag_use(&i) {
                FlagUse::Replaces => return true,
                FlagUse::None => {}
                // Side ways behind it would see flags of both.
                FlagUse::Changes if keeps_carry(&i) => changed = true,
                FlagUse::Reads | FlagUse::Changes => return false,
            }
            changed |= self.writes_any(at, inputs);
            if self.may_call(at) && changed {
                return false;
            }
        }
        false
    }

    /// Whether an instruction of the block writes one of two registers.
    pub fn writes_any(&mut self, at: usize, registers: [Register; 2]) -> bool {
        let info = self.info.info(&self.instructions[at]);
        info.used_registers().iter().any(|used| {
            operand::writes(used.access()) && registers.contains(&used.register().full_register())
        })
    }

    /// Makes the flags again, and saves them. Uses [`S2`].
    pub fn emit_remake(&mut self, remake: &Remake) {
        match remake {
            Remake::Again(i) => self.emit_renamed(i, false),
            Remake::InverseFirst(i) => {
                self.emit_renamed(i, i.mnemonic() != Mnemonic::Neg);
                self.emit_renamed(i, false);
            }
            Remake::Counted(i) => {
                self.emit_restore_carry();
                self.emit_renamed(i, true);
                self.emit_renamed(i, false);
            }
            Remake::Test(host, size) => {
                let rex = 0x40 | u8::from(*size == 8) << 3 | (host >> 3) << 2 | host >> 3;
                if *size == 2 {
                    self.asm.raw(&[0x66]);
                }
                let opcode = if *size == 1 { 0x84 } else { 0x85 };
                self.asm.raw(&[rex, opcode, 0xc0 | (host & 7) << 3 | host & 7]);
            }
        }
        self.emit_save();
    }

    /// Encodes an instruction on registers with those of the host, or, for ADD and SUB, INC and DEC, its inverse.
    fn emit_renamed(&mut self, i: &Instruction, inverse: bool) {
        let renamed = operand::cold_form(i).unwrap_or_else(|| {
            let mut renamed = *i;
            operand::rename(&mut renamed, &[], &[S1, S2]);
            renamed
        });
        let mut encoder = Encoder::new(64);
        let Ok(len) = encoder.encode(&renamed, 0) else {
            self.failed = true;
            return;
        };
        let mut bytes = encoder.take_buffer();
        if inverse {
            // The opcode is behind the prefixes; groups have the operation in ModRM. ADD is 0, SUB is 5; INC is 0, DEC is 1.
            let opcode = bytes.iter().position(|byte| !matches!(byte, 0x66 | 0x40..=0x4f)).unwrap_or(0);
            let (at, difference) = match bytes[opcode] {
                0xfe | 0xff => (opcode + 1, 1 << 3),
                0x80..=0x83 => (opcode + 1, 5 << 3),
                _ => (opcode, 5 << 3),
            };
            bytes[at] ^= difference;
        }
        debug_assert_eq!(len, bytes.len(), "one instruction was encoded");
        self.asm.raw(&bytes);
    }
}
