//! PUSH, POP and LEAVE.
//!
//! Pushes, or pops, that follow each other share one check if all of their bytes are in one page. Otherwise, and if
//! somebody watches stores to the page, the interpreter runs them one by one; so code that pushes over itself is
//! exact, too.

use super::asm::{GUEST_RSP, S1, cc};
use super::block::{After, Builder, Cold, Unknown};
use super::memory::{GuestAddress, HostOperand, Want};
use super::operand::{self, Place};
use super::shared::home;
use crate::cpu::gpr;
use iced_x86::{Code, Instruction, Register};

/// Number of RSP.
const RSP: u8 = gpr::RSP / 8;
/// Most instructions that share a check.
const LONGEST_RUN: usize = 8;

/// How many of the first instructions are pushes, or pops, that can share a check.
pub(super) fn run_length(instructions: &[Instruction]) -> usize {
    let Some(code) = instructions.first().map(Instruction::code) else { return 0 };
    if !matches!(code, Code::Push_r64 | Code::Pop_r64) {
        return 0;
    }
    let same = |i: &&Instruction| i.code() == code && i.op0_register() != Register::RSP;
    instructions.iter().take(LONGEST_RUN).take_while(same).count()
}

impl Builder<'_> {
    /// How many instructions from the current one on can share a check.
    pub fn stack_run(&self) -> usize {
        run_length(&self.instructions[self.index..])
    }

    /// Translates a run, and makes its last instruction the current one.
    pub fn translate_stack_run(&mut self, count: usize) {
        let run = self.instructions[self.index..self.index + count].to_vec();
        let bytes = 8 * count as i32;
        let pushes = run[0].code() == Code::Push_r64;
        (self.slow, self.site, self.call, self.slow_remake) = (None, None, None, None);
        (self.offset, self.next) = (run[0].ip() as u16, run[0].next_ip() as i64);
        let x87 = self.x87_last;
        let (disp, want) = if pushes { (-bytes, Want::STORE) } else { (0, Want::LOAD) };
        let operand = self.check(&GuestAddress::based(RSP, disp), bytes as u32, want);
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
        if run[0].code() == Code::Push_r64 {
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
        let top = operand.disp + 8 * run.len() as i32;
        for (at, i) in (1..).zip(run) {
            let at = HostOperand { disp: top - 8 * at, ..*operand };
            self.store_register(operand::number(i.op0_register()), &at);
        }
        self.asm.lea(GUEST_RSP, GUEST_RSP, -8 * run.len() as i32);
        self.stored(operand);
    }

    fn pop_all(&mut self, run: &[Instruction], operand: &HostOperand) {
        for (at, i) in (0..).zip(run) {
            let guest = operand::number(i.op0_register());
            let to = match operand::place(i.op0_register()) {
                Place::Host(host) => host,
                Place::Home => S1,
            };
            self.asm.operand(0x8b, to, operand.base, operand.index, operand.disp + 8 * at);
            if to == S1 {
                self.asm.store_gs(home(guest), S1);
            }
        }
        self.asm.lea(GUEST_RSP, GUEST_RSP, 8 * run.len() as i32);
    }

    /// Stores a guest register of 64 bits through a checked operand.
    fn store_register(&mut self, guest: u8, operand: &HostOperand) {
        match operand::place(operand::wide(guest)) {
            Place::Host(host) => {
                self.asm.operand(0x89, host, operand.base, operand.index, operand.disp);
            }
            Place::Home if operand.free().is_some() => {
                let free = operand.free().unwrap_or(S1);
                self.asm.load_gs(free, home(guest));
                self.asm.operand(0x89, free, operand.base, operand.index, operand.disp);
            }
            Place::Home => {
                // Through the host's stack: both scratch registers are in use.
                self.asm.push_gs(home(guest));
                self.asm.operand(0x8f, 0, operand.base, operand.index, operand.disp);
            }
        }
    }

    /// Translates PUSH, POP and LEAVE.
    pub fn stack(&mut self, i: &Instruction) -> Result<After, Unknown> {
        match i.code() {
            Code::Push_r64 => self.push_register(operand::number(i.op0_register())),
            Code::Pushq_imm8 | Code::Pushq_imm32 => {
                let value = i.immediate(0) as u32;
                let operand = self.check(&GuestAddress::based(RSP, -8), 8, Want::STORE);
                // mov qword [..], imm32
                self.asm.operand(0xc7, 0, operand.base, operand.index, operand.disp);
                self.asm.raw(&value.to_le_bytes());
                self.pushed(&operand);
            }
            Code::Pop_r64 => self.pop_register(operand::number(i.op0_register())),
            Code::Leaveq => {
                const RBP: u8 = gpr::RBP / 8;
                let operand = self.check(&GuestAddress::based(RBP, 0), 8, Want::LOAD);
                self.asm.operand(0x8b, S1, operand.base, operand.index, operand.disp);
                self.asm.lea(GUEST_RSP, RBP, 8);
                self.asm.mov(RBP, S1);
            }
            _ => return Err(Unknown),
        }
        Ok(After::Next)
    }

    fn push_register(&mut self, guest: u8) {
        let operand = self.check(&GuestAddress::based(RSP, -8), 8, Want::STORE);
        self.store_register(guest, &operand);
        self.pushed(&operand);
    }

    fn pushed(&mut self, operand: &HostOperand) {
        self.asm.lea(GUEST_RSP, GUEST_RSP, -8);
        self.stored(operand);
    }

    fn pop_register(&mut self, guest: u8) {
        let operand = self.check(&GuestAddress::based(RSP, 0), 8, Want::LOAD);
        let to = match operand::place(operand::wide(guest)) {
            Place::Host(host) => host,
            Place::Home => S1,
        };
        self.asm.operand(0x8b, to, operand.base, operand.index, operand.disp);
        if guest != RSP {
            self.asm.lea(GUEST_RSP, GUEST_RSP, 8);
        }
        if to == S1 {
            self.asm.store_gs(home(guest), S1);
        }
    }
}
