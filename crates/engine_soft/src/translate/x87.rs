//! x87 instructions, on the guest's x87 registers in the host's.
//!
//! A block looks at `Shared::x87` before its first x87 instruction; the image in [`Cpu::fpu`](crate::cpu::Cpu::fpu)
//! is loaded then if it is not yet. Calls to Rust store it and load it again, ways out store it. All exceptions
//! are masked while it is loaded (a guest that unmasks one has its x87 instructions interpreted), so an
//! instruction can only fault on memory, which is checked before. FLDCW, which could unmask one, loads a checked
//! copy of the guest's word: another processor may change the original meanwhile.
//!
//! The host would keep its own address as the last instruction's; the guest's is written to `Shared::fip` by
//! blocks, where somebody could look at it, and put into the image when that is stored. As long as nothing is
//! unmasked, the last opcode and data address stay what they were.

use super::asm::{Refers, S1, S2, cc};
use super::block::{After, Builder, Unknown, is_offered};
use super::cold::Cold;
use super::flags::FlagUse;
use super::memory::{GuestAddress, Want};
use super::shared::{FIP, SPARE, X87};
use crate::system::SystemState;
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpKind};

/// Whether an instruction is one of the x87's that are copied.
pub(super) fn is_known(system: &SystemState, i: &Instruction) -> bool {
    is_known_form(i) && is_offered(system, i)
}

/// As [`is_known`], whatever the model.
pub(super) fn is_known_form(i: &Instruction) -> bool {
    use Mnemonic as M;
    if i.code() == Code::Wait {
        return true;
    }
    let info = i.code().op_code();
    let opcode = if info.op_code_len() == 2 { info.op_code() >> 8 } else { info.op_code() };
    let escape = info.encoding() == EncodingKind::Legacy
        && info.table() == iced_x86::OpCodeTableKind::Normal
        && (0xd8..=0xdf).contains(&opcode);
    // Those move the whole environment, are of older coprocessors, or clear the pointers.
    let other = matches!(
        i.mnemonic(),
        M::Fldenv
            | M::Fnstenv
            | M::Fstenv
            | M::Frstor
            | M::Fnsave
            | M::Fsave
            | M::Fninit
            | M::Finit
            | M::Fneni
            | M::Feni
            | M::Fndisi
            | M::Fdisi
            | M::Fnsetpm
            | M::Fsetpm
            | M::Frstpm
    );
    let operands = (0..i.op_count()).all(|at| match i.op_kind(at) {
        OpKind::Register => i.op_register(at).is_st() || i.op_register(at) == iced_x86::Register::AX,
        kind => kind == OpKind::Memory,
    });
    escape && !other && operands
}

/// Instructions that leave the last instruction's address.
fn keeps_pointers(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Wait | M::Fldcw | M::Fnstcw | M::Fstcw | M::Fnstsw | M::Fstsw | M::Fnclex | M::Fclex
    )
}

impl Builder<'_> {
    /// The guest's x87 registers are the host's afterwards.
    pub fn want_x87(&mut self) {
        if self.x87_loaded {
            return;
        }
        self.save_flags();
        let from = self.asm.label();
        self.asm.cmp_gs8(X87, 0);
        self.asm.jcc(cc::E, from);
        self.clobbered();
        let back = self.asm.mark();
        let site = self.site();
        self.cold.push(Cold::X87 { from, back, site });
        self.x87_loaded = true;
    }

    /// Copies an x87 instruction, or says that it is not known before emitting anything.
    pub fn x87(&mut self, i: &Instruction) -> Result<After, Unknown> {
        if !self.context.thunks.x87 || !is_known(self.context.system, i) {
            return Err(Unknown);
        }
        let memory = i.op_count() > 0 && i.op0_kind() == OpKind::Memory
            || i.op_count() > 1 && i.op1_kind() == OpKind::Memory;
        let address = if memory { Some(GuestAddress::of(self.context.kind, i)?) } else { None };
        self.want_x87();
        match address {
            None if i.code() == Code::Wait => {}
            None => {
                let used = super::flags::flag_use(i);
                if matches!(used, FlagUse::Reads | FlagUse::Changes) {
                    self.need_flags();
                }
                self.encode(i);
                self.flags_after(i, used);
            }
            Some(address) if i.mnemonic() == Mnemonic::Fldcw => self.load_control(&address),
            Some(address) => {
                let access = self.accesses(i);
                let at = usize::from(i.op0_kind() != OpKind::Memory);
                let want = Want { store: super::operand::writes(access[at]), aligned: false };
                let operand = self.check(&address, i.memory_size().size() as u32, want);
                let mut copied = *i;
                operand.apply(&mut copied);
                self.encode(&copied);
                // Before the look at the tracker: if that leaves the block, this instruction was the last.
                self.note_pointer(i);
                self.stored(&operand);
            }
        }
        self.note_pointer(i);
        Ok(After::Next)
    }

    /// The instruction becomes the last one, if it is one of those that do.
    fn note_pointer(&mut self, i: &Instruction) {
        if !keeps_pointers(i) {
            self.x87_last = Some(self.offset);
        }
    }

    fn load_control(&mut self, address: &GuestAddress) {
        /// All exceptions masked.
        const MASKED: u32 = 0x3f;
        let operand = self.check(address, 2, Want::LOAD);
        let slow = self.slow_path();
        let a = &mut self.asm;
        // mov S1w, [..]
        a.raw(&[0x66]);
        a.operand32(0x8b, S1, operand.base, operand.index, operand.disp);
        a.store_gs(SPARE, S1);
        a.not32(S1);
        a.test_imm32(S1, MASKED);
        a.jcc(cc::NE, slow);
        // fldcw gs:[SPARE]
        a.raw(&[0x65, 0xd9, 0x2c, 0x25]);
        a.raw(&(SPARE as u32).to_le_bytes());
    }

    /// Tells where the last x87 instruction was, if that has not been told. Uses [`S1`], keeps flags.
    pub fn tell_x87(&mut self) {
        if let Some(offset) = self.x87_last.take() {
            self.emit_x87_pointer(offset);
        }
    }

    /// As [`Builder::tell_x87`], on a side way.
    pub fn emit_x87_pointer(&mut self, offset: u16) {
        self.in_page_address(i64::from(offset));
        self.asm.store_gs(FIP, S1);
    }

    /// Emits the way to loaded registers.
    pub fn emit_want_x87(&mut self, from: super::asm::Label, back: super::asm::Label, site: usize) {
        self.asm.bind(from);
        self.asm.mov_number(S2, site as u32, Refers::Site);
        self.call_out(self.context.thunks.call_x87);
        self.asm.jmp(back);
    }
}
