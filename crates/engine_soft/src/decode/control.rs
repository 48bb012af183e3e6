//! Handlers of near branches.

use super::sized;
use crate::insn::{Handler, Insn};
use crate::interp::control::{
    bound, call, call_indirect, call64, count_branch, jcc, jmp, jmp_indirect, loop_kind, ret, ret64,
};
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};

/// The encoding of a condition (SDM 1 B.1).
pub(super) fn condition_number(code: ConditionCode) -> u8 {
    match code {
        ConditionCode::None | ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    }
}

const JCC: [Handler; 16] = [
    jcc::<0>, jcc::<1>, jcc::<2>, jcc::<3>, jcc::<4>, jcc::<5>, jcc::<6>, jcc::<7>, jcc::<8>, jcc::<9>,
    jcc::<10>, jcc::<11>, jcc::<12>, jcc::<13>, jcc::<14>, jcc::<15>,
];

pub(super) fn select(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    use Mnemonic as M;
    let far = matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32);
    let near = matches!(i.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    let long = insn.code_size() == 64;
    Some(match i.mnemonic() {
        _ if i.is_jcc_short_or_near() => JCC[usize::from(condition_number(i.condition_code()))],
        M::Jmp if near => jmp,
        M::Call if near => {
            if long {
                call64
            } else {
                call
            }
        }
        M::Jmp | M::Call if far || i.is_jmp_far_indirect() || i.is_call_far_indirect() => return None,
        M::Jmp => jmp_indirect,
        M::Call => call_indirect,
        M::Ret if long && i.op_count() == 0 => ret64,
        M::Ret => ret,
        M::Loop => counted(i, insn, count_branch::<{ loop_kind::LOOP }>),
        M::Loope => counted(i, insn, count_branch::<{ loop_kind::LOOPE }>),
        M::Loopne => counted(i, insn, count_branch::<{ loop_kind::LOOPNE }>),
        M::Jcxz | M::Jecxz | M::Jrcxz => counted(i, insn, count_branch::<{ loop_kind::JRCXZ }>),
        M::Bound => sized!(if i.code() == Code::Bound_r16_m1616 { 2 } else { 4 }, bound),
        _ => return None,
    })
}

/// Notes the size of the counter register.
fn counted(i: &Instruction, insn: &mut Insn, handler: Handler) -> Handler {
    let name = format!("{:?}", i.code());
    insn.extra = if name.ends_with("_RCX") || name.starts_with("Jrcxz") {
        8
    } else if name.ends_with("_ECX") || name.starts_with("Jecxz") {
        4
    } else {
        2
    };
    handler
}
