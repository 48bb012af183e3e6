//! SSE and AVX instructions, on the guest's registers in the host's.
//!
//! A block looks at `Shared::vector` before its first vector instruction; the registers are loaded then if
//! they are not there yet. Calls to Rust store them and load them again, ways out store them. Exceptions are
//! masked while they are loaded (a guest that unmasks one has its vector instructions interpreted), so a
//! vector instruction can only fault on memory, which is checked before.

use super::asm::{S1, cc};
use super::block::{After, Builder, Unknown, is_offered};
use super::cold::Cold;
use super::memory::{GuestAddress, Want};
use super::shared::{SPARE, VECTOR, vector};
use crate::system::SystemState;
use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

/// Whether an instruction works on XMM and YMM registers, and otherwise only on general ones and plain memory.
pub(super) fn is_known(system: &SystemState, i: &Instruction) -> bool {
    is_known_form(i) && is_offered(system, i)
}

/// As [`is_known`], whatever the model.
pub(super) fn is_known_form(i: &Instruction) -> bool {
    if matches!(i.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall) || is_control(i) {
        return true;
    }
    if !matches!(i.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return false;
    }
    let features = i.cpuid_features().iter().all(|feature| is_vector_feature(*feature));
    let mut vectors = false;
    let operands = (0..i.op_count()).all(|at| match i.op_kind(at) {
        OpKind::Register => {
            let register = i.op_register(at);
            let vector = register.is_xmm() || register.is_ymm();
            vectors |= vector;
            vector || register.is_gpr()
        }
        OpKind::Memory => !i.memory_index().is_vector_register(),
        OpKind::Immediate8 => true,
        _ => false,
    });
    operands && features && vectors
}

fn is_vector_feature(feature: CpuidFeature) -> bool {
    matches!(
        feature,
        CpuidFeature::SSE
            | CpuidFeature::SSE2
            | CpuidFeature::SSE3
            | CpuidFeature::SSSE3
            | CpuidFeature::SSE4_1
            | CpuidFeature::SSE4_2
            | CpuidFeature::AES
            | CpuidFeature::PCLMULQDQ
            | CpuidFeature::SHA
            | CpuidFeature::AVX
            | CpuidFeature::AVX2
            | CpuidFeature::FMA
            | CpuidFeature::F16C
            | CpuidFeature::VAES
            | CpuidFeature::VPCLMULQDQ
            | CpuidFeature::GFNI
            | CpuidFeature::X64
    )
}

/// Whether an instruction loads or stores MXCSR by itself.
pub(super) fn is_control(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(i.mnemonic(), M::Ldmxcsr | M::Vldmxcsr | M::Stmxcsr | M::Vstmxcsr)
}

/// The level of `Shared::vector` that an instruction needs.
pub(super) fn level(i: &Instruction) -> u8 {
    if i.encoding() == EncodingKind::VEX { vector::AVX } else { vector::SSE }
}

/// Whether the memory operand must be aligned to its size.
pub(super) fn wants_alignment(i: &Instruction) -> bool {
    use Mnemonic as M;
    if i.memory_size().size() < 16 {
        return false;
    }
    if i.encoding() == EncodingKind::VEX {
        return matches!(
            i.mnemonic(),
            M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntdq | M::Vmovntps | M::Vmovntpd | M::Vmovntdqa
        );
    }
    !matches!(
        i.mnemonic(),
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpistri
            | M::Pcmpistrm
    )
}

impl Builder<'_> {
    /// LDMXCSR and STMXCSR, or says that it is none of them before emitting anything.
    pub fn vector_control(&mut self, i: &Instruction) -> Result<After, Unknown> {
        if !is_control(i) || !is_offered(self.context.system, i) {
            return Err(Unknown);
        }
        let address = GuestAddress::of(self.context.kind, i)?;
        self.want_vector(level(i));
        if matches!(i.mnemonic(), Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr) {
            let operand = self.check(&address, 4, Want::STORE);
            let mut copied = *i;
            operand.apply(&mut copied);
            self.encode(&copied);
            self.stored(&operand);
        } else {
            self.load_mxcsr(&address);
        }
        Ok(After::Next)
    }

    /// Loads MXCSR from a checked copy: another processor may change the original meanwhile. What would fault, or
    /// unmask an exception, is the interpreter's.
    fn load_mxcsr(&mut self, address: &GuestAddress) {
        /// All exceptions masked.
        const MASKED: i32 = 0x1f80;
        /// The masks, and all that no processor has.
        const LOOKED_AT: i32 = MASKED | !0xffff;
        let operand = self.check(address, 4, Want::LOAD);
        let slow = self.slow_path();
        let a = &mut self.asm;
        a.operand32(0x8b, S1, operand.base, operand.index, operand.disp);
        a.store_gs(SPARE, S1);
        a.and_imm32(S1, LOOKED_AT);
        a.cmp_imm32(S1, MASKED);
        a.jcc(cc::NE, slow);
        // ldmxcsr gs:[SPARE]
        a.raw(&[0x65, 0x0f, 0xae, 0x14, 0x25]);
        a.raw(&(SPARE as u32).to_le_bytes());
    }

    /// The guest's vector registers are the host's afterwards.
    pub fn want_vector(&mut self, level: u8) {
        if self.vector >= level {
            return;
        }
        self.save_flags();
        let from = self.asm.label();
        self.asm.cmp_gs8(VECTOR, level);
        self.asm.jcc(cc::B, from);
        self.clobbered();
        let back = self.asm.mark();
        let site = self.site();
        self.cold.push(Cold::Vector { from, back, site, level, x87: self.x87_last });
        self.vector = level;
    }
}
