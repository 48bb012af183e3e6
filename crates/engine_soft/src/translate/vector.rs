//! SSE and AVX instructions, on the guest's registers in the host's.
//!
//! A block looks at `Shared::vector` before its first vector instruction; the registers are loaded then if
//! they are not there yet. Calls to Rust store them and load them again, ways out store them. Exceptions are
//! masked while they are loaded (a guest that unmasks one has its vector instructions interpreted), so a
//! vector instruction can only fault on memory, which is checked before.

use super::asm::cc;
use super::block::{Builder, Cold, is_offered};
use super::shared::{VECTOR, vector};
use crate::system::SystemState;
use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

/// Whether an instruction works on XMM and YMM registers, and otherwise only on general ones and plain memory.
pub(super) fn is_known(system: &SystemState, i: &Instruction) -> bool {
    is_known_form(i) && is_offered(system, i)
}

/// As [`is_known`], whatever the model.
pub(super) fn is_known_form(i: &Instruction) -> bool {
    if matches!(i.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall) {
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
