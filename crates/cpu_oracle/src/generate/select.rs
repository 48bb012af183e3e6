//! Which instructions are drawn.

use super::Group;
use crate::random::Random;
use iced_x86::{Code, CpuidFeature as F, FlowControl, Instruction, Mnemonic as M, OpKind};

const GENERAL: &[F] = &[
    F::INTEL8086,
    F::INTEL8086_ONLY,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::CMOV,
    F::CX8,
    F::CMPXCHG16B,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::LZCNT,
    F::POPCNT,
    F::BMI1,
    F::BMI2,
    F::ADX,
    F::MOVBE,
    F::FSGSBASE,
    F::PREFETCHW,
    F::CLFSH,
    F::CLFLUSHOPT,
    F::CLWB,
    F::MOVDIRI,
    F::SERIALIZE,
    F::MSR,
    F::INVPCID,
    F::SMAP,
    F::CET_IBT,
];

const X87: &[F] = &[F::FPU, F::FPU287, F::FPU387, F::MMX];

const VECTOR: &[F] = &[
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::AES,
    F::PCLMULQDQ,
    F::SHA,
    F::AVX,
    F::AVX2,
    F::FMA,
    F::F16C,
    F::GFNI,
    F::VAES,
    F::VPCLMULQDQ,
];

const STATE: &[F] = &[F::FXSR, F::XSAVE, F::XSAVEOPT, F::XSAVEC, F::XSAVES];

/// Left out although user code can execute them. They ask the system (SYSCALL, SYSENTER), or read what differs by
/// nature: time, randomness, identity, XCR0 (the host's has AVX-512), the processor number in the global table.
/// SGDT, SIDT, SLDT, STR and SMSW fault under UMIP, but the host's kernel emulates them.
fn is_excluded(instruction: &Instruction) -> bool {
    let asks = matches!(
        instruction.mnemonic(),
        M::Syscall
            | M::Sysenter
            | M::Cpuid
            | M::Rdtsc
            | M::Rdtscp
            | M::Rdpid
            | M::Rdpmc
            | M::Rdrand
            | M::Rdseed
            | M::Xgetbv
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Loadall
            | M::Umov
            | M::Xbts
            | M::Ibts
    );
    // The host's kernel answers INT 80h; the vectors above it are the kernel's own, with gates as good as any.
    asks || instruction.mnemonic() == M::Int && instruction.immediate8() == 0x80
}

/// Whether an instruction names the address of a near branch. That address may be zero.
pub(super) fn is_direct_branch(instruction: &Instruction) -> bool {
    let near = [OpKind::NearBranch16, OpKind::NearBranch32, OpKind::NearBranch64];
    instruction.op_count() > 0 && near.contains(&instruction.op0_kind())
}

/// VMCALL and VMMCALL ask a hypervisor above the host, and what that answers is not the processor's: least of all with
/// prefixes that make them invalid.
pub(super) fn asks_hypervisor(bytes: &[u8]) -> bool {
    bytes.windows(3).any(|three| matches!(three, [0x0f, 0x01, 0xc1 | 0xd9]))
}

/// Near branches are drawn rarely, and only short ones forward: to later instructions or the `hlt`s behind them, never
/// into a loop. Indirect ones mostly end in a fault.
fn is_wanted_flow(random: &mut Random, instruction: &Instruction, group: Group) -> bool {
    match instruction.flow_control() {
        FlowControl::Next => true,
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
            if is_direct_branch(instruction) =>
        {
            let ahead = instruction.near_branch_target().wrapping_sub(instruction.next_ip());
            ahead < 24 && random.one_in(2)
        }
        FlowControl::XbeginXabortXend => false,
        _ => group == Group::System || random.one_in(30),
    }
}

fn all_in(instruction: &Instruction, lists: &[&[F]]) -> bool {
    instruction.cpuid_features().iter().all(|feature| lists.iter().any(|list| list.contains(feature)))
}

fn any_in(instruction: &Instruction, lists: &[&[F]]) -> bool {
    instruction.cpuid_features().iter().any(|feature| lists.iter().any(|list| list.contains(feature)))
}

/// Whether an instruction, which has so many prefixes, is one of this group.
pub(super) fn is_wanted(
    random: &mut Random,
    instruction: &Instruction,
    group: Group,
    prefixes: usize,
) -> bool {
    if instruction.is_invalid() {
        return group == Group::Invalid && prefixes <= FEW_PREFIXES;
    }
    if !all_in(instruction, &[GENERAL, X87, VECTOR, STATE]) || is_excluded(instruction) {
        return false;
    }
    let in_group = match group {
        Group::Integer => !any_in(instruction, &[X87, VECTOR, STATE]) && !is_systemic(instruction),
        Group::X87 => any_in(instruction, &[X87]) && !is_environment(instruction),
        Group::Simd => any_in(instruction, &[VECTOR]),
        Group::State => {
            any_in(instruction, &[STATE]) || is_environment(instruction) || is_mxcsr_or_base(instruction)
        }
        Group::System => is_systemic(instruction),
        Group::Compat | Group::All => true,
        Group::Invalid => random.one_in(6),
    };
    in_group && is_wanted_flow(random, instruction, group)
}

/// So few prefixes that no encoding exceeds 15 bytes: whether one that does not exist and is too long is #UD or #GP
/// depends on how far the processor's decoder reads.
const FEW_PREFIXES: usize = 4;

fn is_environment(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Fnstenv
            | M::Fldenv
            | M::Fnsave
            | M::Frstor
            | M::Fldcw
            | M::Fnstcw
            | M::Fnstsw
            | M::Fnclex
            | M::Fninit
    )
}

fn is_mxcsr_or_base(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Vzeroall
            | M::Vzeroupper
    )
}

/// Segments, far transfers, descriptor queries, flags, ports, privileged instructions, software interrupts.
fn is_systemic(instruction: &Instruction) -> bool {
    let segment = (0..instruction.op_count()).any(|i| {
        instruction.op_kind(i) == iced_x86::OpKind::Register
            && instruction.op_register(i).is_segment_register()
    });
    let named = matches!(
        instruction.mnemonic(),
        M::Int
            | M::Int1
            | M::Int3
            | M::Into
            | M::Iret
            | M::Iretd
            | M::Iretq
            | M::Retf
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Arpl
            | M::Bound
            | M::Lds
            | M::Les
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Pushf
            | M::Pushfd
            | M::Pushfq
            | M::Popf
            | M::Popfd
            | M::Popfq
            | M::Enter
            | M::Leave
            | M::In
            | M::Out
            | M::Hlt
            | M::Ud0
            | M::Ud1
            | M::Ud2
            | M::Rdfsbase
            | M::Wrfsbase
            | M::Rdgsbase
            | M::Wrgsbase
    );
    let far = matches!(
        instruction.code(),
        Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
            | Code::Jmp_ptr1616
            | Code::Jmp_ptr1632
            | Code::Call_ptr1616
            | Code::Call_ptr1632
    );
    segment || named || far || instruction.is_privileged()
}
