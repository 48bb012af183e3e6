//! MMX instructions, on the guest's x87 registers in the host's (see [`x87`](mod@super::x87)).
//!
//! They set all tags to valid and TOP to zero (EMMS: to empty), and leave the pointers to the last x87 instruction: the
//! host does that to the registers that hold the guest's. They cannot raise x87 exceptions, but wait for pending ones;
//! the registers are only loaded while none is pending.

use super::block::is_offered;
use crate::system::SystemState;
use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

/// Whether an instruction works on MMX registers, and otherwise only on XMM and general ones and plain memory.
pub(super) fn is_known(system: &SystemState, i: &Instruction) -> bool {
    is_known_form(i) && is_offered(system, i)
}

/// As [`is_known`], whatever the model.
pub(super) fn is_known_form(i: &Instruction) -> bool {
    if i.mnemonic() == Mnemonic::Emms {
        return true;
    }
    let mut any = false;
    let operands = (0..i.op_count()).all(|at| match i.op_kind(at) {
        OpKind::Register => {
            let register = i.op_register(at);
            any |= register.is_mm();
            register.is_mm() || register.is_xmm() || register.is_gpr()
        }
        OpKind::Memory | OpKind::Immediate8 => true,
        _ => false,
    });
    any && operands && i.encoding() == EncodingKind::Legacy && i.cpuid_features().iter().all(is_mmx_feature)
}

fn is_mmx_feature(feature: &CpuidFeature) -> bool {
    matches!(
        feature,
        CpuidFeature::MMX | CpuidFeature::SSE | CpuidFeature::SSE2 | CpuidFeature::SSSE3 | CpuidFeature::X64
    )
}

/// Whether XMM registers, or MXCSR, are used, too.
pub(super) fn uses_vectors(i: &Instruction) -> bool {
    use Mnemonic as M;
    let registers =
        (0..i.op_count()).any(|at| i.op_kind(at) == OpKind::Register && i.op_register(at).is_xmm());
    let control = matches!(
        i.mnemonic(),
        M::Cvtpi2ps | M::Cvtpi2pd | M::Cvtps2pi | M::Cvtpd2pi | M::Cvttps2pi | M::Cvttpd2pi
    );
    registers || control
}
