//! Random user-mode code.
//!
//! Instructions are drawn as bytes (prefixes, opcode map, opcode, ModRM, displacement, immediate), decoded, and kept
//! if they are user-mode instructions of the features under test. Registers then get values that point most memory
//! operands into the data pages; some are left to fault, straddle the end, or be misaligned.

use crate::case::Case;
use crate::random::Random;
use crate::{CODE_ADDRESS, DATA_ADDRESS, DATA_SIZE, XSAVE_SIZE};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

/// Which part of the instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// Everything.
    All,
    /// General-purpose instructions.
    Integer,
    /// x87 and MMX.
    X87,
    /// SSE to AVX2, FMA, AES, SHA.
    Simd,
}

/// Features whose instructions may be drawn.
const FEATURES: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL8086_ONLY,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::LZCNT,
    CpuidFeature::POPCNT,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
    CpuidFeature::ADX,
    CpuidFeature::MOVBE,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::MMX,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::AES,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::SHA,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
];

const VECTOR_FROM: &[CpuidFeature] = &[
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::AES,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::SHA,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
];

/// Left out although they are user-mode instructions: they ask the system (INT, SYSCALL), read what differs by
/// nature (time, identity, selectors, table addresses), change what the harness stands on (segments, TF, AC),
/// or store the x87 pointers that this comparison does not cover.
fn is_excluded(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let excluded = matches!(
        instruction.mnemonic(),
        M::Int
            | M::Int1
            | M::Int3
            | M::Into
            | M::Syscall
            | M::Sysenter
            | M::Sysexit
            | M::Sysret
            | M::Sysexitq
            | M::Sysretq
            | M::Cpuid
            | M::Rdtsc
            | M::Popf
            | M::Popfq
            | M::Iret
            | M::Iretd
            | M::Iretq
            | M::Retf
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Fnstenv
            | M::Fnsave
            | M::Fldenv
            | M::Frstor
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Pushf
            | M::Pushfq
            | M::Enter
            | M::Ud0
            | M::Ud1
            | M::Ud2
            | M::Hlt
            | M::Loadall
            | M::Reservednop
            | M::Fstenv
            | M::Fsave
            | M::Pause
            | M::Wrfsbase
            | M::Rdfsbase
            | M::Wrgsbase
            | M::Rdgsbase
    );
    // A far transfer or segment load would leave the harness; ports and privileged instructions only prove #GP.
    let segments = (0..instruction.op_count()).any(|i| {
        instruction.op_kind(i) == OpKind::Register && instruction.op_register(i).is_segment_register()
    });
    let far = matches!(
        instruction.code(),
        Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    );
    // FS belongs to the host's thread, whose base is unlike the guest's.
    let thread = instruction.memory_segment() == Register::FS;
    excluded
        || segments
        || far
        || thread
        || instruction.is_privileged() && !instruction.is_string_instruction()
}

/// Near branches are drawn rarely, and only short ones forward: into later instructions' bytes or the `hlt`s behind
/// them, never into a loop. Indirect ones end in a fault.
fn is_wanted_flow(random: &mut Random, instruction: &Instruction) -> bool {
    match instruction.flow_control() {
        FlowControl::Next => true,
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call => {
            let ahead = instruction.near_branch_target().wrapping_sub(instruction.next_ip());
            ahead < 24 && random.one_in(2)
        }
        FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return => random.one_in(30),
        _ => false,
    }
}

fn in_group(instruction: &Instruction, group: Group) -> bool {
    let features = instruction.cpuid_features();
    if features.iter().any(|feature| !FEATURES.contains(feature)) {
        return false;
    }
    let vector = features.iter().any(|feature| VECTOR_FROM.contains(feature));
    let x87 = features.iter().any(|f| {
        matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 | CpuidFeature::MMX)
    });
    match group {
        Group::All => true,
        Group::Integer => !vector && !x87,
        Group::X87 => x87,
        Group::Simd => vector,
    }
}

fn draw_bytes(random: &mut Random, group: Group) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut len = 0;
    let mut push = |byte: u8| {
        bytes[len] = byte;
        len += 1;
    };
    for (prefix, rarity) in [(0x66, 4), (0xf3, 8), (0xf2, 8), (0xf0, 24), (0x67, 40), (0x65, 60)] {
        if random.one_in(rarity) {
            push(prefix);
        }
    }
    let vex = match group {
        Group::Integer => random.one_in(12),
        Group::X87 => false,
        _ => random.one_in(2),
    };
    if vex {
        push(0xc4);
        let map = 1 + random.below(3) as u8;
        push(random.bits() as u8 & 0xe0 | map);
        push(random.bits() as u8);
    } else {
        if random.one_in(2) {
            push(0x40 | random.below(16) as u8);
        }
        match (group, random.below(8)) {
            (Group::X87, 0..=5) => {
                push(0xd8 | random.below(8) as u8);
                for _ in 0..8 {
                    push(random.bits() as u8);
                }
                return bytes;
            }
            (Group::Integer, 0..=4) | (_, 0..=1) => {}
            (_, 2..=5) => push(0x0f),
            (_, other) => {
                push(0x0f);
                push(if other == 6 { 0x38 } else { 0x3a });
            }
        }
    }
    while len < 16 {
        bytes[len] = random.bits() as u8;
        len += 1;
    }
    bytes
}

fn draw_instruction(random: &mut Random, group: Group, ip: u64) -> (Instruction, Vec<u8>) {
    loop {
        let bytes = draw_bytes(random, group);
        let mut decoder = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let left_out = instruction.is_invalid()
            || is_excluded(&instruction)
            || is_known_difference(&instruction)
            || !in_group(&instruction, group);
        if left_out || !is_wanted_flow(random, &instruction) {
            continue;
        }
        return (instruction, bytes[..instruction.len()].to_vec());
    }
}

/// Vector state of mixed patterns: integers, floats of all classes, and random bits.
fn draw_xsave(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; XSAVE_SIZE];
    for at in (160..416).chain(576..XSAVE_SIZE).step_by(8) {
        bytes[at..at + 8].copy_from_slice(&draw_lane(random).to_le_bytes());
    }
    let mxcsr: u32 = match random.below(8) {
        0 => (random.bits() as u32 & 0xffff) | 0x1f80,
        1 => random.bits() as u32 & 0xffff,
        _ => 0x1f80,
    };
    bytes[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    let control: u16 = match random.below(4) {
        0 => 0x040 | (random.bits() as u16 & 0xf3f),
        1 => 0x37f & !(random.bits() as u16 & 0x3f),
        _ => 0x37f,
    };
    bytes[0..2].copy_from_slice(&control.to_le_bytes());
    let status = (random.below(8) as u16) << 11 | (random.bits() as u16 & 0x4700);
    bytes[2..4].copy_from_slice(&status.to_le_bytes());
    bytes[4] = if random.one_in(3) { random.bits() as u8 } else { 0xff };
    for register in 0..8 {
        let at = 32 + register * 16;
        let exponent = match random.below(6) {
            0 => 0,
            1 => 0x7fff,
            2 => random.bits() as u16 & 0x7fff,
            _ => 0x3ff0 + random.below(0x40) as u16,
        };
        let significand = if random.one_in(6) { random.value() } else { random.bits() | 1 << 63 };
        bytes[at..at + 8].copy_from_slice(&significand.to_le_bytes());
        let sign = (random.bits() as u16) & 0x8000;
        bytes[at + 8..at + 10].copy_from_slice(&(exponent | sign).to_le_bytes());
    }
    bytes[512] = 7;
    bytes
}

fn draw_lane(random: &mut Random) -> u64 {
    let single = |random: &mut Random| -> u64 {
        let special = [
            0_u32,
            0x8000_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0x7f80_0001,
            1,
            0x007f_ffff,
            0x7f7f_ffff,
        ];
        u64::from(match random.below(3) {
            0 => random.pick(&special),
            1 => (random.bits() as i32 as f32 / 65536.0).to_bits(),
            _ => random.bits() as u32,
        })
    };
    match random.below(4) {
        0 => random.value(),
        1 => {
            let special = [0.0, -0.0, f64::INFINITY, f64::NAN, f64::MIN_POSITIVE, 1.0, f64::MAX, 5e-324];
            random.pick(&special).to_bits()
        }
        2 => (random.bits() as i64 as f64 / 4_294_967_296.0).to_bits(),
        _ => single(random) | single(random) << 32,
    }
}

/// Points the memory operand at the data pages by choosing the base register's value.
fn aim(random: &mut Random, instruction: &Instruction, gprs: &mut [u64; 16], taken: &mut u16) {
    let index = |register: Register| register.is_gpr64().then(|| register.number());
    for implicit in implicit_pointers(instruction) {
        if *taken & 1 << implicit == 0 {
            gprs[implicit] = DATA_ADDRESS + 0x40 + random.below(DATA_SIZE as u64 - 0x100);
            *taken |= 1 << implicit;
        }
    }
    let memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    let Some(base) = index(instruction.memory_base()).filter(|_| memory) else { return };
    if *taken & 1 << base != 0 {
        return;
    }
    *taken |= 1 << base;
    let scaled = match instruction.memory_index() {
        Register::None => 0,
        vector if vector.is_vector_register() => 0,
        register => {
            let number = register.number();
            if *taken & 1 << number == 0 && number != base {
                gprs[number] = random.below(64);
                *taken |= 1 << number;
            }
            gprs[number].wrapping_mul(u64::from(instruction.memory_index_scale()))
        }
    };
    let target = match random.below(16) {
        0 => DATA_ADDRESS + DATA_SIZE as u64 - random.below(40),
        1 => DATA_ADDRESS + 0x1000 - random.below(40),
        2 => random.bits(),
        3..=6 => DATA_ADDRESS + random.below(DATA_SIZE as u64 - 64),
        _ => DATA_ADDRESS + (random.below(DATA_SIZE as u64 - 128) & !63),
    };
    gprs[base] = if instruction.memory_index() == instruction.memory_base() {
        target.wrapping_sub(instruction.memory_displacement64())
            / (1 + u64::from(instruction.memory_index_scale()))
    } else {
        target.wrapping_sub(instruction.memory_displacement64()).wrapping_sub(scaled)
    };
}

fn implicit_pointers(instruction: &Instruction) -> Vec<usize> {
    let mut registers = Vec::new();
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::MemorySegRSI | OpKind::MemorySegESI => registers.push(6),
            OpKind::MemorySegRDI | OpKind::MemoryESRDI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                registers.push(7)
            }
            _ => {}
        }
    }
    if instruction.is_stack_instruction() {
        registers.push(4);
    }
    if instruction.mnemonic() == Mnemonic::Xlatb {
        registers.push(3);
    }
    registers
}

/// A case of one to four instructions. The same seed gives the same case.
pub fn case(seed: u64, group: Group) -> Case {
    let mut random = Random::new(seed);
    let mut gprs = std::array::from_fn(|_| random.value());
    gprs[4] = DATA_ADDRESS + 0x800;
    let mut taken = 0;
    let mut code = Vec::new();
    let mut undefined = 0_u32;
    let mut ever_undefined = 0_u32;
    let mut instructions = 0;
    let wanted = 1 + random.below(4) as u32;
    while instructions < wanted {
        let (instruction, bytes) = draw_instruction(&mut random, group, CODE_ADDRESS + code.len() as u64);
        if instruction.rflags_read() & undefined != 0 || depends_on_undefined(&instruction) {
            continue;
        }
        let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if repeats && instruction.is_string_instruction() {
            if taken & 2 != 0 {
                continue;
            }
            gprs[1] = random.below(48);
            taken |= 2;
        }
        aim(&mut random, &instruction, &mut gprs, &mut taken);
        undefined = undefined
            & !instruction.rflags_written()
            & !instruction.rflags_cleared()
            & !instruction.rflags_set()
            | instruction.rflags_undefined();
        // The case may end by a fault after any of its instructions.
        ever_undefined |= undefined;
        code.extend_from_slice(&bytes);
        instructions += 1;
    }
    Case {
        code,
        gprs,
        rflags: 0x202 | random.bits() & 0x8d5 | if random.one_in(4) { 0x400 } else { 0 },
        xsave: draw_xsave(&mut random),
        data_seed: random.bits(),
        undefined_flags: architectural(ever_undefined),
        instructions,
    }
}

/// Results, not only flags, that the manual leaves undefined: SHLD/SHRD with a count beyond a 16-bit operand, and
/// BSWAP of a 16-bit register.
fn depends_on_undefined(instruction: &Instruction) -> bool {
    use Code::{Bswap_r16, Shld_rm16_r16_CL, Shld_rm16_r16_imm8, Shrd_rm16_r16_CL, Shrd_rm16_r16_imm8};
    matches!(
        instruction.code(),
        Bswap_r16 | Shld_rm16_r16_CL | Shld_rm16_r16_imm8 | Shrd_rm16_r16_CL | Shrd_rm16_r16_imm8
    )
}

fn architectural(bits: u32) -> u64 {
    use iced_x86::RflagsBits as R;
    [(R::CF, 0), (R::PF, 2), (R::AF, 4), (R::ZF, 6), (R::SF, 7), (R::OF, 11)]
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, position)| 1 << position)
        .sum()
}
