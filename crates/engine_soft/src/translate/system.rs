//! System instructions that kernels execute so often that a call to the interpreter shows: CLI and SWAPGS, with which
//! Linux enters and leaves system calls.
//!
//! The block does not know its privilege: what needs CPL 0 compares it, and is the interpreter's elsewhere.

use super::asm::{S1, S2, cc};
use super::block::{After, Builder, Unknown};
use super::shared::{CPL, EVENT_MASK, KERNEL_GS_BASE, SEGMENT_GS_BASE, SYSTEM_FLAGS, segment_base};
use crate::cpu::seg;
use crate::system::MASKABLE;
use iced_x86::{Code, Instruction};
use x86::RFlags;

impl Builder<'_> {
    /// Translates CLI and SWAPGS.
    pub fn system(&mut self, i: &Instruction) -> Result<After, Unknown> {
        match i.code() {
            Code::Cli => self.cli(),
            Code::Swapgs => self.swapgs(),
            _ => return Err(Unknown),
        }
        Ok(After::Next)
    }

    /// Leaves the instruction to the interpreter unless CPL is 0. Flags are saved afterwards.
    fn require_supervisor(&mut self) {
        // Blocks are compared by general registers and memory: that is not all these instructions change.
        self.all_copied = false;
        self.save_flags();
        let slow = self.slow_path();
        self.asm.cmp_gs8(CPL, 0);
        self.asm.jcc(cc::NE, slow);
        self.clobbered();
    }

    fn cli(&mut self) {
        self.require_supervisor();
        self.asm.and_gs32_imm(SYSTEM_FLAGS, !(RFlags::IF.bits() as u32));
        // What `Cpu::update_event_mask` would find: nothing else has changed.
        self.asm.and_gs32_imm(EVENT_MASK, !MASKABLE);
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
