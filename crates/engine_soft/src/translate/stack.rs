//! PUSH, POP and LEAVE.
//!
//! Pushes, or pops, that follow each other share one check if all of their bytes are in one page. Otherwise, and if
//! somebody watches stores to the page, the interpreter runs them one by one; so code that pushes over itself is
//! exact, too.

use super::asm::{Address, GUEST_RSP, S1, cc};
use super::block::{After, Builder, Unknown};
use super::cold::Cold;
use super::kind::CodeKind;
use super::memory::{GuestAddress, HostOperand, Want};
use super::operand::{self, Place};
use super::shared::{SPARE, home};
use crate::cpu::gpr;
use iced_x86::{Code, Instruction, OpKind};

/// Number of RSP.
const RSP: u8 = gpr::RSP / 8;
/// Most instructions that share a check.
const LONGEST_RUN: usize = 8;

/// Bytes that a PUSH or POP of a register, an immediate or (PUSH) memory moves; `None` for anything else.
pub(super) fn slot_size(code: Code) -> Option<u8> {
    match code {
        Code::Push_r64 | Code::Pop_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Push_rm64 => Some(8),
        Code::Push_r32 | Code::Pop_r32 | Code::Pushd_imm8 | Code::Pushd_imm32 | Code::Push_rm32 => Some(4),
        Code::Push_r16 | Code::Pop_r16 | Code::Pushw_imm8 | Code::Push_imm16 | Code::Push_rm16 => Some(2),
        _ => None,
    }
}

/// How many of the first instructions are pushes, or pops, that can share a check.
pub(super) fn run_length(kind: CodeKind, instructions: &[Instruction]) -> usize {
    let Some(code) = instructions.first().map(Instruction::code) else { return 0 };
    let shares = match code {
        Code::Push_r64 | Code::Pop_r64 => true,
        Code::Push_r32 | Code::Pop_r32 => kind.is_flat(),
        _ => false,
    };
    if !shares {
        return 0;
    }
    let same = |i: &&Instruction| i.code() == code && operand::number(i.op0_register()) != RSP;
    instructions.iter().take(LONGEST_RUN).take_while(same).count()
}

impl Builder<'_> {
    /// How many instructions from the current one on can share a check.
    pub fn stack_run(&self) -> usize {
        run_length(self.context.kind, &self.instructions[self.index..])
    }

    /// Translates a run, and makes its last instruction the current one.
    pub fn translate_stack_run(&mut self, count: usize) {
        let run = self.instructions[self.index..self.index + count].to_vec();
        let bytes = i32::from(slot_of(&run)) * count as i32;
        let pushes = is_push(&run);
        (self.slow, self.site, self.call, self.slow_remake) = (None, None, None, None);
        (self.offset, self.next) = (run[0].ip() as u16, run[0].next_ip() as i64);
        let x87 = self.x87_last;
        let (disp, want) = if pushes { (-bytes, Want::STORE) } else { (0, Want::LOAD) };
        let at = GuestAddress::on_stack(self.context.kind, RSP, disp);
        let operand = self.check(&at, bytes as u32, want);
        if self.slow.is_none() {
            self.covered_stack_run(&run, &operand);
            return;
        }
        let (from, site) = (self.slow_path(), self.site());
        let remake = self.slow_remake;
        let more = run[1..].iter().map(|i| self.next_site(i)).collect();
        if pushes {
            self.push_all(&run, &operand, from);
        } else {
            self.pop_all(&run, &operand);
        }
        let (back, flags) = (self.asm.mark(), self.flags);
        self.cold.push(Cold::Slow { from, site, more, back, flags, x87, remake });
    }

    /// The rest of a run whose access cannot fail.
    fn covered_stack_run(&mut self, run: &[Instruction], operand: &HostOperand) {
        if let Some(last) = run.last() {
            self.index += run.len() - 1;
            (self.offset, self.next) = (last.ip() as u16, last.next_ip() as i64);
        }
        if is_push(run) {
            self.store_run(run, operand);
        } else {
            self.pop_all(run, operand);
        }
    }

    /// Makes the next instruction of a run the current one.
    fn next_site(&mut self, i: &Instruction) -> usize {
        self.index += 1;
        self.site = None;
        (self.offset, self.next) = (i.ip() as u16, i.next_ip() as i64);
        self.site()
    }

    fn push_all(&mut self, run: &[Instruction], operand: &HostOperand, watched: super::asm::Label) {
        if let Some(tracker) = operand.tracker {
            self.asm.cmp_byte_zero(tracker);
            self.asm.jcc(cc::NE, watched);
            self.clobbered();
        }
        self.store_run(run, operand);
    }

    fn store_run(&mut self, run: &[Instruction], operand: &HostOperand) {
        let size = slot_of(run);
        let bytes = i32::from(size) * run.len() as i32;
        for (at, i) in (1..).zip(run) {
            let at = HostOperand { disp: operand.disp + bytes - i32::from(size) * at, ..*operand };
            self.store_register(operand::number(i.op0_register()), &at, size);
        }
        self.move_stack(-bytes);
        self.stored(operand);
    }

    fn pop_all(&mut self, run: &[Instruction], operand: &HostOperand) {
        let size = slot_of(run);
        for (at, i) in (0..).zip(run) {
            let guest = operand::number(i.op0_register());
            let to = match operand::place(i.op0_register()) {
                Place::Host(host) => host,
                Place::Home => S1,
            };
            let at = Address { disp: operand.disp + i32::from(size) * at, ..operand.address() };
            self.asm.operand_sized(0x8b, to, at, size);
            if to == S1 {
                self.asm.store_gs(home(guest), S1);
            }
        }
        self.move_stack(i32::from(size) * run.len() as i32);
    }

    /// Stores a guest register through a checked operand.
    fn store_register(&mut self, guest: u8, operand: &HostOperand, size: u8) {
        match operand::place(operand::wide(guest)) {
            Place::Host(host) => self.asm.operand_sized(0x89, host, operand.address(), size),
            Place::Home if operand.free().is_some() => {
                let free = operand.free().unwrap_or(S1);
                self.asm.load_gs(free, home(guest));
                self.asm.operand_sized(0x89, free, operand.address(), size);
            }
            Place::Home => {
                // Through the host's stack: both scratch registers are in use.
                self.asm.push_gs(home(guest));
                self.asm.operand(0x8f, 0, operand.base, operand.index, operand.disp);
            }
        }
    }

    /// Adds to the stack pointer; keeps flags.
    pub fn move_stack(&mut self, bytes: i32) {
        match self.context.kind.stack_size() {
            8 => self.asm.lea(GUEST_RSP, GUEST_RSP, bytes),
            size => self.asm.lea_narrow(GUEST_RSP, GUEST_RSP, bytes, size),
        }
    }

    /// Translates PUSH, POP and LEAVE.
    pub fn stack(&mut self, i: &Instruction) -> Result<After, Unknown> {
        match (i.code(), slot_size(i.code())) {
            (Code::Leaveq | Code::Leaved, _) => self.leave_frame(),
            (_, Some(2)) if self.context.kind.is_long() => return Err(Unknown),
            (_, Some(size)) if is_push(std::slice::from_ref(i)) => self.push_operand(i, size)?,
            (_, Some(size)) => self.pop_register(operand::number(i.op0_register()), size),
            _ => return Err(Unknown),
        }
        Ok(After::Next)
    }

    fn push_operand(&mut self, i: &Instruction, size: u8) -> Result<(), Unknown> {
        let from_memory = i.op0_kind() == OpKind::Memory;
        if from_memory {
            let at = GuestAddress::of(self.context.kind, i)?;
            let operand = self.check(&at, size.into(), Want::LOAD);
            self.asm.operand_sized(0x8b, S1, operand.address(), size);
            self.asm.store_gs(SPARE, S1);
        }
        let at = GuestAddress::on_stack(self.context.kind, RSP, -i32::from(size));
        let mut operand = self.check(&at, size.into(), Want::STORE);
        match i.op0_kind() {
            OpKind::Memory => {
                let free = self.free_scratch(&mut operand);
                self.asm.load_gs(free, SPARE);
                self.asm.operand_sized(0x89, free, operand.address(), size);
            }
            OpKind::Register => self.store_register(operand::number(i.op0_register()), &operand, size),
            _ => {
                // mov [..], imm32 or imm16
                let value = (i.immediate(0) as u32).to_le_bytes();
                self.asm.operand_sized(0xc7, 0, operand.address(), size);
                self.asm.raw(if size == 2 { &value[..2] } else { &value });
            }
        }
        self.move_stack(-i32::from(size));
        self.stored(&operand);
        Ok(())
    }

    fn pop_register(&mut self, guest: u8, size: u8) {
        let at = GuestAddress::on_stack(self.context.kind, RSP, 0);
        let operand = self.check(&at, size.into(), Want::LOAD);
        let host = match operand::place(operand::wide(guest)) {
            Place::Host(host) => Some(host),
            Place::Home => None,
        };
        match host.filter(|_| size > 2 && guest != RSP) {
            Some(host) => {
                self.asm.operand_sized(0x8b, host, operand.address(), size);
                self.move_stack(size.into());
            }
            None => {
                self.asm.operand_sized(0x8b, S1, operand.address(), size);
                // What is popped into the stack pointer replaces what was added.
                self.move_stack(size.into());
                match (host, size) {
                    (None, _) => self.asm.store_gs(home(guest), S1),
                    (Some(host), 2) => self.asm.mov16(host, S1),
                    (Some(host), 4) => self.asm.mov32(host, S1),
                    (Some(host), _) => self.asm.mov(host, S1),
                }
            }
        }
    }

    /// LEAVE with the operand size of the mode.
    fn leave_frame(&mut self) {
        const RBP: u8 = gpr::RBP / 8;
        let kind = self.context.kind;
        let (size, stack) = (if kind.is_long() { 8 } else { 4 }, kind.stack_size());
        let operand = self.check(&GuestAddress::on_stack(kind, RBP, 0), size.into(), Want::LOAD);
        self.asm.operand_sized(0x8b, S1, operand.address(), size);
        match stack {
            8 => self.asm.lea(GUEST_RSP, RBP, 8),
            stack => self.asm.lea_narrow(GUEST_RSP, RBP, size.into(), stack),
        }
        if size == 8 { self.asm.mov(RBP, S1) } else { self.asm.mov32(RBP, S1) }
    }
}

/// Bytes that each instruction of a run moves.
fn slot_of(run: &[Instruction]) -> u8 {
    run.first().and_then(|i| slot_size(i.code())).unwrap_or(8)
}

fn is_push(run: &[Instruction]) -> bool {
    !run.first().is_some_and(|i| matches!(i.code(), Code::Pop_r64 | Code::Pop_r32 | Code::Pop_r16))
}
