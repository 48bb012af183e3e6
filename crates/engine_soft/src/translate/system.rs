//! System instructions that kernels execute so often that a call to the interpreter shows: CLI, STI, SWAPGS and RDTSC,
//! with which Linux enters and leaves system calls, PUSHFQ, with which it takes locks, and RDTSCP, by which programs
//! know the time.
//!
//! The block does not know its privilege: what needs CPL 0 compares it, and is the interpreter's elsewhere.

use super::asm::{Alu, RAX, RCX, S1, S2, cc};
use super::block::{After, Builder, Unknown};
use super::memory::{GuestAddress, Want};
use super::shared::{
    CPL, EVENT_MASK, EVENTS, FLAGS, KERNEL_GS_BASE, RDTSC_RESTRICTED, SEGMENT_GS_BASE, SPARE, SYSTEM_FLAGS,
    TSC_AUX, segment_base,
};
use crate::cpu::{gpr, seg};
use crate::system::MASKABLE;
use iced_x86::{Code, Instruction};
use x86::RFlags;

/// Numbers of RDX and RSP.
const RDX: u8 = gpr::RDX / 8;
const RSP: u8 = gpr::RSP / 8;

impl Builder<'_> {
    /// Translates the instructions that the module knows.
    pub fn system(&mut self, i: &Instruction) -> Result<After, Unknown> {
        match i.code() {
            Code::Cli => self.cli(),
            // Otherwise the interrupt shadow reaches into another block.
            Code::Sti if self.index + 1 < self.instructions.len() => self.sti(),
            Code::Swapgs => self.swapgs(),
            Code::Pushfq => self.push_flags(),
            Code::Rdtsc => self.time_stamp(false),
            Code::Rdtscp if super::block::is_offered(self.context.system, i) => self.time_stamp(true),
            _ => return Err(Unknown),
        }
        Ok(After::Next)
    }

    /// Before an instruction of this module. Flags are saved afterwards.
    fn begin_system(&mut self) {
        // Blocks are compared by general registers and memory: that is not all these instructions change or depend on.
        self.all_copied = false;
        self.save_flags();
    }

    /// Leaves the instruction to the interpreter unless CPL is 0. Flags are saved afterwards.
    fn require_supervisor(&mut self) {
        self.begin_system();
        let slow = self.slow_path();
        self.asm.cmp_gs8(CPL, 0);
        self.asm.jcc(cc::NE, slow);
        self.clobbered();
    }

    fn cli(&mut self) {
        self.require_supervisor();
        self.asm.alu_gs32_imm(Alu::And, SYSTEM_FLAGS, !(RFlags::IF.bits() as u32));
        // What `Cpu::update_event_mask` would find: nothing else has changed.
        self.asm.alu_gs32_imm(Alu::And, EVENT_MASK, !MASKABLE);
        self.clobbered();
    }

    /// STI. If something waits, the interpreter minds the interrupt shadow; otherwise nobody looks at events before the
    /// next instruction of the block is complete.
    fn sti(&mut self) {
        self.require_supervisor();
        let slow = self.slow_path();
        let a = &mut self.asm;
        a.alu_gs32(Alu::Mov, S2, EVENT_MASK);
        a.or_imm32(S2, MASKABLE as i32);
        a.load_gs(S1, EVENTS);
        a.load32(S1, S1, 0);
        a.alu_rr32(Alu::And, S1, S2);
        a.jcc(cc::NE, slow);
        a.alu_gs32_imm(Alu::Or, SYSTEM_FLAGS, RFlags::IF.bits() as u32);
        // Steps that hold interrupts are not made by translated code.
        a.store_gs32(EVENT_MASK, S2);
        self.clobbered();
    }

    /// PUSHFQ.
    fn push_flags(&mut self) {
        self.begin_system();
        let a = &mut self.asm;
        a.alu_gs32(Alu::Mov, S1, FLAGS);
        a.mov32(S2, S1);
        a.shift(5, S1, 8, false);
        a.and_imm32(S1, 0xd5);
        a.and_imm32(S2, 1);
        a.shift(4, S2, 11, false);
        a.alu_rr32(Alu::Or, S1, S2);
        a.alu_gs(Alu::Or, S1, SYSTEM_FLAGS);
        a.and_imm32(S1, !(RFlags::VM | RFlags::RF).bits() as i32);
        a.store_gs(SPARE, S1);
        self.clobbered();
        let at = GuestAddress::on_stack(self.context.kind, RSP, -8);
        let mut operand = self.check(&at, 8, Want::STORE);
        let free = self.free_scratch(&mut operand);
        self.asm.load_gs(free, SPARE);
        self.asm.operand_sized(0x89, free, operand.address(), 8);
        self.move_stack(-8);
        self.stored(&operand);
    }

    /// RDTSC or RDTSCP, unless the guest's system restricts them.
    fn time_stamp(&mut self, with_processor: bool) {
        self.begin_system();
        self.tell_x87();
        let slow = self.slow_path();
        self.asm.test_gs8(RDTSC_RESTRICTED.0, RDTSC_RESTRICTED.1);
        self.asm.jcc(cc::NE, slow);
        self.clobbered();
        self.asm.call_to(self.context.thunks.call_clock);
        let a = &mut self.asm;
        a.mov(RDX, RAX);
        a.shift(5, RDX, 32, true);
        a.mov32(RAX, RAX);
        if with_processor {
            a.alu_gs32(Alu::Mov, RCX, TSC_AUX);
        }
        self.clobbered();
    }

    fn swapgs(&mut self) {
        self.require_supervisor();
        let a = &mut self.asm;
        a.load_gs(S1, KERNEL_GS_BASE);
        a.load_gs(S2, SEGMENT_GS_BASE);
        a.store_gs(KERNEL_GS_BASE, S2);
        a.store_gs(SEGMENT_GS_BASE, S1);
        a.store_gs(segment_base(seg::GS), S1);
    }
}
