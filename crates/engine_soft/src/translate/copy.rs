//! Instructions that are copied: themselves, with registers and memory operands changed.

use super::asm::{S1, S2};
use super::block::{After, Builder, Unknown, is_offered};
use super::flags::{FlagUse, flag_use};
use super::memory::{GuestAddress, HostOperand, Want};
use super::mmx;
use super::operand::{self, Homed};
use super::shared::home;
use super::vector;
use crate::system::SystemState;
use iced_x86::{Code, Encoder, Instruction, Mnemonic, OpKind, Register};

/// Integer instructions that do the same to the guest's registers as to the host's.
pub(super) fn is_integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Lea
            | M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Imul
            | M::Mul
            | M::Bsf
            | M::Bsr
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bswap
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Lahf
            | M::Sahf
            | M::Clc
            | M::Stc
            | M::Cmc
            | M::Movnti
            | M::Lfence
            | M::Mfence
            | M::Sfence
    ) || is_extension(mnemonic)
        || is_conditional(mnemonic)
}

/// MOVBE, CRC32, POPCNT, LZCNT, BMI1, BMI2 and ADX.
fn is_extension(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Movbe
            | M::Crc32
            | M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsr
            | M::Blsmsk
            | M::Bzhi
            | M::Mulx
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
            | M::Adcx
            | M::Adox
    )
}

fn is_conditional(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
            | M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
    )
}

/// Instructions that do nothing the guest can see.
fn is_nothing(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Nop
            | M::Endbr64
            | M::Endbr32
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Prefetchnta
            | M::Prefetchw
    )
}

/// Whether the translator copies an instruction.
pub(super) fn is_known(system: &SystemState, i: &Instruction) -> bool {
    is_nothing(i) || is_integer(i.mnemonic()) && is_offered(system, i) && operands_known(i)
}

/// As [`is_known`], whatever the model; for counting.
pub(super) fn is_known_form(i: &Instruction) -> bool {
    use Mnemonic as M;
    is_integer(i.mnemonic()) && operands_known(i)
        || vector::is_known_form(i)
        || mmx::is_known_form(i)
        || matches!(i.mnemonic(), M::Push | M::Pop | M::Call | M::Ret | M::Leave | M::Jmp | M::Div | M::Idiv)
}

fn operands_known(i: &Instruction) -> bool {
    let bit_string = matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    let absolute = matches!(
        i.code(),
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    );
    let (mut high, mut stack, mut registers) = (false, false, 0);
    let mut memory = false;
    for at in 0..i.op_count() {
        match i.op_kind(at) {
            OpKind::Register => {
                let register = i.op_register(at);
                if !register.is_gpr() {
                    return false;
                }
                registers += 1;
                high |= operand::is_high_byte(register);
                stack |= register.full_register() == Register::RSP;
            }
            OpKind::Memory => memory = true,
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => return false,
            OpKind::FarBranch16 | OpKind::FarBranch32 => return false,
            _ => {}
        }
    }
    // A register's bit number reaches beyond the operand. A high byte cannot be encoded with the register that holds the
    // guest's RSP; with memory, it changes places with the low byte meanwhile.
    let other = registers > 1 || i.mnemonic() == Mnemonic::Cmpxchg;
    let placed = !(high && (stack || memory && other));
    !(absolute || !placed || memory && bit_string && i.op_kind(1) == OpKind::Register)
}

/// Whether the memory operand must be reached atomically.
pub(super) fn is_locked(i: &Instruction) -> bool {
    i.has_lock_prefix() || matches!(i.mnemonic(), Mnemonic::Xchg | Mnemonic::Cmpxchg16b)
}

impl Builder<'_> {
    /// Copies the instruction, or says that it is not known before emitting anything.
    pub fn copy(&mut self, i: &Instruction) -> Result<After, Unknown> {
        if is_nothing(i) {
            return Ok(After::Next);
        }
        if i.mnemonic() == Mnemonic::Pause {
            self.asm.raw(&[0xf3, 0x90]);
            return Ok(After::Next);
        }
        if matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) {
            return self.divide(i);
        }
        if let Ok(after) = self.vector_control(i) {
            return Ok(after);
        }
        let vectors = vector::is_known(self.context.system, i);
        let mmx = self.context.thunks.x87 && mmx::is_known(self.context.system, i);
        if !vectors && !mmx && !is_known(self.context.system, i) {
            return Err(Unknown);
        }
        let memory = (0..i.op_count()).find(|&at| i.op_kind(at) == OpKind::Memory);
        if i.mnemonic() == Mnemonic::Lea {
            return self.lea(i);
        }
        let access = self.accesses(i);
        let homed = operand::homed(i, |at| access[at as usize]).ok_or(Unknown)?;
        let mut copied = *i;
        copied.set_has_rep_prefix(false);
        copied.set_has_repne_prefix(false);
        copied.set_has_xacquire_prefix(false);
        copied.set_has_xrelease_prefix(false);
        let used = flag_use(i);
        match memory {
            None => {
                self.want_registers(i, vectors, mmx);
                operand::rename(&mut copied, &homed, &[S1, S2]);
                self.flags_before(i, used);
                let from = self.asm.bytes.len();
                match operand::at_home(i, &homed) {
                    Some(at_home) => self.encode(&at_home),
                    None => self.with_homed(&copied, &homed, &[S1, S2]),
                }
                self.flags_after(i, used);
                if homed.len() < 2 {
                    self.keep_addend(from);
                }
            }
            Some(at) => {
                if homed.len() > 1 {
                    return Err(Unknown);
                }
                let address = GuestAddress::of(self.context.kind, i)?;
                let size = i.memory_size().size() as u32;
                let aligned = is_locked(i) || (vectors || mmx) && vector::wants_alignment(i);
                let want = Want { store: operand::writes(access[at as usize]), aligned };
                self.want_registers(i, vectors, mmx);
                let mut operand = self.check(&address, size, want);
                self.copy_with_memory(copied, &homed, &mut operand, used);
            }
        }
        Ok(After::Next)
    }

    /// The guest's registers that are not always the host's are so afterwards, as far as the instruction needs them.
    fn want_registers(&mut self, i: &Instruction, vectors: bool, mmx: bool) {
        if vectors || mmx && mmx::uses_vectors(i) {
            self.want_vector(vector::level(i));
        }
        if mmx {
            self.want_x87();
        }
    }

    fn copy_with_memory(
        &mut self,
        mut copied: Instruction,
        homed: &[Homed],
        operand: &mut HostOperand,
        used: FlagUse,
    ) {
        let mut scratch = [S1, S2];
        if !homed.is_empty() {
            scratch[0] = self.free_scratch(operand);
        }
        let swapped = self.use_low_byte(&mut copied, operand);
        operand.apply(&mut copied);
        operand::rename(&mut copied, homed, &scratch);
        let from = self.asm.bytes.len();
        self.flags_before(&copied, used);
        if let Some(register) = swapped {
            self.asm.swap_bytes(register);
        }
        self.with_homed(&copied, homed, &scratch);
        if let Some(register) = swapped {
            self.asm.swap_bytes(register);
        }
        self.flags_after(&copied, used);
        if homed.is_empty() || scratch[0] == S1 {
            self.keep_addend(from);
        }
        self.stored(operand);
    }

    /// Makes a high byte among the operands the low byte of its register, which the caller exchanges with it before and
    /// after the instruction; the address of the memory operand does not need the register then.
    fn use_low_byte(&mut self, i: &mut Instruction, memory: &mut HostOperand) -> Option<u8> {
        let at = (0..i.op_count())
            .find(|&at| i.op_kind(at) == OpKind::Register && operand::is_high_byte(i.op_register(at)))?;
        let register = operand::number(i.op_register(at));
        i.set_op_register(at, Register::AL + u32::from(register));
        if memory.base == register || memory.index == Some(register) {
            // The other register is the addend.
            self.asm.lea_full(S2, memory.address(), true);
            (memory.base, memory.index, memory.disp) = (S2, None, 0);
        }
        Some(register)
    }

    /// Emits an instruction between loads and stores of the registers kept in memory.
    pub fn with_homed(&mut self, i: &Instruction, homed: &[Homed], scratch: &[u8]) {
        for (held, &register) in homed.iter().zip(scratch) {
            if held.read {
                self.asm.load_gs(register, home(held.guest));
            }
        }
        self.encode(i);
        for (held, &register) in homed.iter().zip(scratch) {
            if held.written {
                self.asm.store_gs(home(held.guest), register);
            }
        }
    }

    /// Encodes a guest instruction with host operands.
    pub fn encode(&mut self, i: &Instruction) {
        let mut encoder = Encoder::new(64);
        encoder.set_buffer(std::mem::take(&mut self.asm.bytes));
        let result = encoder.encode(i, 0);
        self.asm.bytes = encoder.take_buffer();
        if let Err(error) = result {
            // Not expected of what `is_known` lets through, but a guest chooses the instruction: the block is dropped.
            tracing::debug!(%error, instruction = ?i.code(), "An instruction cannot be encoded again");
            self.failed = true;
        }
    }

    fn lea(&mut self, i: &Instruction) -> Result<After, Unknown> {
        let address = GuestAddress::of(self.context.kind, i)?;
        let to = i.op0_register();
        if to.size() < 4 {
            return self.lea16(&address, to);
        }
        let wide = to.size() == 8;
        match operand::place(to) {
            operand::Place::Host(host) => self.effective(&address, host, wide),
            operand::Place::Home => {
                self.effective(&address, S1, wide);
                self.asm.store_gs(home(operand::number(to)), S1);
            }
        }
        Ok(After::Next)
    }

    fn lea16(&mut self, address: &GuestAddress, to: Register) -> Result<After, Unknown> {
        let operand::Place::Host(host) = operand::place(to) else { return Err(Unknown) };
        self.effective(address, S1, false);
        self.asm.mov16(host, S1);
        Ok(After::Next)
    }

    /// DIV and IDIV: what could raise #DE is the interpreter's.
    fn divide(&mut self, i: &Instruction) -> Result<After, Unknown> {
        let size =
            if i.op0_kind() == OpKind::Memory { i.memory_size().size() } else { i.op0_register().size() };
        if size < 4 {
            return Err(Unknown);
        }
        let wide = size == 8;
        let divisor = self.divisor(i, wide)?;
        let slow = self.slow_path();
        let signed = i.mnemonic() == Mnemonic::Idiv;
        self.guard_division(divisor, signed, wide, slow);
        self.need_after_guard();
        let mut copied = *i;
        copied.set_op0_kind(OpKind::Register);
        copied.set_op0_register(if wide { Register::RAX } else { Register::EAX } + u32::from(divisor));
        self.encode(&copied);
        self.flags_after(i, FlagUse::Changes);
        Ok(After::Next)
    }

    /// The host register that has the divisor; flags are saved.
    fn divisor(&mut self, i: &Instruction, wide: bool) -> Result<u8, Unknown> {
        if i.op0_kind() == OpKind::Memory {
            let address = GuestAddress::of(self.context.kind, i)?;
            let operand = self.check(&address, if wide { 8 } else { 4 }, Want::LOAD);
            if wide {
                self.asm.operand(0x8b, S1, operand.base, operand.index, operand.disp);
            } else {
                self.asm.operand32(0x8b, S1, operand.base, operand.index, operand.disp);
            }
            return Ok(S1);
        }
        self.save_flags();
        let register = i.op0_register();
        Ok(match operand::place(register) {
            operand::Place::Host(host) => host,
            operand::Place::Home => {
                self.asm.load_gs(S1, home(operand::number(register)));
                S1
            }
        })
    }

    fn need_after_guard(&mut self) {
        self.clobbered();
        self.need_flags();
    }

    /// Goes to `slow` unless the quotient certainly fits.
    fn guard_division(&mut self, divisor: u8, signed: bool, wide: bool, slow: super::asm::Label) {
        use super::asm::{Alu, cc};
        const RDX: u8 = 2;
        let a = &mut self.asm;
        if !signed {
            // The quotient fits if the upper half is below the divisor.
            if wide {
                a.alu_rr(Alu::Cmp, RDX, divisor)
            } else {
                a.alu_rr32(Alu::Cmp, RDX, divisor)
            }
            a.jcc(cc::AE, slow);
            return;
        }
        // Only sign-extended dividends, and no divisor of 0 or -1.
        a.mov(S2, super::asm::RAX);
        a.shift(7, S2, if wide { 63 } else { 31 }, wide);
        if wide {
            a.alu_rr(Alu::Cmp, S2, RDX)
        } else {
            a.alu_rr32(Alu::Cmp, S2, RDX)
        }
        a.jcc(cc::NE, slow);
        a.lea_full(S2, super::asm::Address { base: Some(divisor), index: None, scale: 0, disp: 1 }, wide);
        if wide {
            a.cmp_imm(S2, 1)
        } else {
            a.cmp_imm32(S2, 1)
        }
        // Not above 1: the divisor was -1 or 0.
        a.jcc(6, slow);
    }
}
