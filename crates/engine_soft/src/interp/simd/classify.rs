//! Which instructions run as [stubs](super::stub), and what their stub has to provide.

use super::host::host_has;
use super::stub::{MAX_OPERANDS, Slot};
use bitflags::bitflags;
use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
};

bitflags! {
    /// Properties of a vector instruction.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Traits: u16 {
        /// VEX-encoded: needs XCR0, zeroes upper bits, has no alignment rule of its own.
        const VEX = 1 << 0;
        /// Computes in floating point: depends on MXCSR and raises #XM.
        const MXCSR = 1 << 1;
        /// Writes the arithmetic flags.
        const FLAGS = 1 << 2;
        /// Has XMM0 as an operand that is not encoded; it is slot 3.
        const IMPLICIT_XMM0 = 1 << 3;
        /// Writes that XMM0 (PCMPxSTRM) rather than reading it (blends, SHA).
        const WRITES_XMM0 = 1 << 4;
        /// Reads RAX and RDX (PCMPESTRx).
        const IMPLICIT_LENGTHS = 1 << 5;
        /// Writes RCX (PCMPxSTRI).
        const IMPLICIT_INDEX = 1 << 6;
        /// The memory operand must be aligned to its size (#GP).
        const ALIGNED = 1 << 7;
        /// Touches MMX registers, and so the x87 state.
        const MMX = 1 << 8;
        /// Reads its memory operand.
        const LOADS = 1 << 9;
        /// Writes its memory operand.
        const STORES = 1 << 10;
        /// Its memory operand is never checked for alignment (#AC), though it is short enough.
        const UNCHECKED = 1 << 11;
    }
}

/// Whether an instruction set is executed here.
fn is_ours(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::MMX
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::AES
            | F::PCLMULQDQ
            | F::SHA
            | F::AVX
            | F::AVX2
            | F::FMA
            | F::F16C
            | F::VAES
            | F::VPCLMULQDQ
            | F::GFNI
    )
}

/// Whether `code` can run as a stub on this host.
pub(super) fn has_stub(code: Code) -> bool {
    use Mnemonic as M;
    let encoding = code.op_code().encoding();
    let features = code.cpuid_features();
    let integer = matches!(
        code.mnemonic(),
        M::Movnti
            | M::Lfence
            | M::Mfence
            | M::Sfence
            | M::Pause
            | M::Clflush
            | M::Crc32
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Emms
            | M::Vzeroall
            | M::Vzeroupper
            | M::Fisttp
    );
    !integer
        && !features.is_empty()
        && matches!(encoding, EncodingKind::Legacy | EncodingKind::VEX)
        && features.iter().all(|&feature| is_ours(feature) && host_has(feature))
}

/// Whether a mnemonic computes in floating point, by the families of SDM 1 table 11-1 and 14-6: everything
/// in "arithmetic", "compare" and "convert". Integer operations begin with P and never match.
fn uses_mxcsr(mnemonic: Mnemonic) -> bool {
    const FAMILIES: [&str; 24] = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "cmpp", "cmps", "comis", "ucomis", "cvt", "round",
        "dpp", "hadd", "hsub", "fmadd", "fmsub", "fnmadd", "fnmsub", "rcp", "rsqrt", "fmaddsub", "fmsubadd",
    ];
    let name = format!("{mnemonic:?}").to_ascii_lowercase();
    let family = name.strip_prefix('v').unwrap_or(&name);
    FAMILIES.iter().any(|prefix| family.starts_with(prefix))
}

/// What a string compare takes and gives besides its operands.
#[derive(Clone, Copy)]
struct StringCompare {
    /// Lengths in RAX and RDX.
    explicit_lengths: bool,
    /// Result in XMM0, rather than in RCX.
    to_mask: bool,
}

fn string_compare(mnemonic: Mnemonic) -> Option<StringCompare> {
    use Mnemonic as M;
    let (explicit_lengths, to_mask) = match mnemonic {
        M::Pcmpestri | M::Pcmpestri64 | M::Vpcmpestri | M::Vpcmpestri64 => (true, false),
        M::Pcmpestrm | M::Pcmpestrm64 | M::Vpcmpestrm | M::Vpcmpestrm64 => (true, true),
        M::Pcmpistri | M::Vpcmpistri => (false, false),
        M::Pcmpistrm | M::Vpcmpistrm => (false, true),
        _ => return None,
    };
    Some(StringCompare { explicit_lengths, to_mask })
}

/// Whether a memory operand must be aligned to its size: for legacy SSE every 16-byte one except those of
/// the unaligned moves and the string compares, for VEX only that of the aligned moves (SDM 2A 2.4, 1 14.9).
fn must_be_aligned(instruction: &Instruction, vex: bool) -> bool {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    let unaligned = matches!(mnemonic, M::Movups | M::Movupd | M::Movdqu | M::Lddqu)
        || string_compare(mnemonic).is_some();
    let aligned = matches!(
        mnemonic,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
    );
    let size = instruction.memory_size().size();
    if vex { aligned && size >= 16 } else { size == 16 && !unaligned }
}

/// The traits of an instruction for which [`has_stub`] holds.
pub(super) fn traits(instruction: &Instruction) -> Traits {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    let vex = instruction.code().op_code().encoding() == EncodingKind::VEX;
    let mut traits = Traits::empty();
    traits.set(Traits::VEX, vex);
    traits.set(Traits::MXCSR, uses_mxcsr(mnemonic));
    traits.set(Traits::FLAGS, instruction.rflags_modified() != 0);
    traits.set(Traits::ALIGNED, must_be_aligned(instruction, vex));
    // SDM 2A 2.4.8, exceptions type 11, has #AC; silicon does not.
    traits.set(Traits::UNCHECKED, matches!(mnemonic, M::Vcvtph2ps | M::Vcvtps2ph));
    let compare = string_compare(mnemonic);
    let mask_result = compare.is_some_and(|compare| compare.to_mask);
    let mask_source = matches!(mnemonic, M::Blendvpd | M::Blendvps | M::Pblendvb | M::Sha256rnds2);
    traits.set(Traits::IMPLICIT_XMM0, mask_result || mask_source);
    traits.set(Traits::WRITES_XMM0, mask_result);
    traits.set(Traits::IMPLICIT_LENGTHS, compare.is_some_and(|compare| compare.explicit_lengths));
    traits.set(Traits::IMPLICIT_INDEX, compare.is_some_and(|compare| !compare.to_mask));
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    for (index, kind) in instruction.op_kinds().enumerate() {
        let access = info.op_access(index as u32);
        if kind == OpKind::Register {
            let register = instruction.op_register(index as u32);
            traits.set(Traits::MMX, traits.contains(Traits::MMX) || register.is_mm());
        } else if kind == OpKind::Memory {
            traits.set(Traits::STORES, is_write(access));
            traits.set(Traits::LOADS, access != OpAccess::Write);
        }
    }
    traits
}

fn is_write(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Whether operand `index` is a register that the instruction writes.
pub(super) fn writes(instruction: &Instruction, index: usize, traits: Traits) -> bool {
    if index + 1 == MAX_OPERANDS && traits.contains(Traits::IMPLICIT_XMM0) {
        return traits.contains(Traits::WRITES_XMM0);
    }
    if index >= instruction.op_count() as usize || instruction.op_kind(index as u32) != OpKind::Register {
        return false;
    }
    is_write(InstructionInfoFactory::new().info(instruction).op_access(index as u32))
}

/// The operands. `None` when there is one of a kind that no vector instruction has.
pub(super) fn slots(instruction: &Instruction, traits: Traits) -> Option<[Slot; MAX_OPERANDS]> {
    let mut slots = [Slot::None; MAX_OPERANDS];
    for (index, kind) in instruction.op_kinds().enumerate() {
        let slot = match kind {
            OpKind::Immediate8 => continue,
            OpKind::Memory => Slot::Memory,
            OpKind::Register => {
                let register = instruction.op_register(index as u32);
                let number = register.number() as u8;
                if register.is_xmm() || register.is_ymm() {
                    Slot::Vector(number & 15)
                } else if register.is_mm() {
                    Slot::Mmx(number & 7)
                } else if register.is_gpr32() || register.is_gpr64() {
                    Slot::General(number & 15)
                } else {
                    return None;
                }
            }
            _ => return None,
        };
        *slots.get_mut(index)? = slot;
    }
    if traits.contains(Traits::IMPLICIT_XMM0) {
        slots[MAX_OPERANDS - 1] = Slot::Vector(0);
    }
    Some(slots)
}
