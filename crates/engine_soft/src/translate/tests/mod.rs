//! Translated code against the interpreter: random programs, from the same state, to the same end.

mod golden;
mod hostile;
mod pages;
mod shares;
mod strings;

use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE, DATA, STACK, UNMAPPED};
use crate::interp::x87::FpuState;
use engine::{VcpuIo, VmExit};
use iced_x86::Formatter;
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, OpCodeOperandKind as Kind, Register};

pub(super) struct NoDevices;

impl VcpuIo for NoDevices {}

/// Xorshift.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Values at which things happen.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(4),
            1 => u64::MAX - self.below(4),
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            _ => self.next(),
        }
    }
}

/// Registers that hold addresses and are rarely written.
const POINTERS: [u8; 4] = [3, 5, 12, 14];

pub(super) fn codes() -> Vec<Code> {
    use iced_x86::Mnemonic as M;
    let wanted = |code: &Code| {
        let info = code.op_code();
        let more = matches!(
            code.mnemonic(),
            M::Div
                | M::Idiv
                | M::Push
                | M::Pop
                | M::Leave
                | M::Nop
                | M::Cld
                | M::Pushfq
                | M::Movsb
                | M::Stosq
                | M::Lodsd
        );
        info.mode64()
            && matches!(info.encoding(), iced_x86::EncodingKind::Legacy | iced_x86::EncodingKind::VEX)
            && (super::copy::is_integer(code.mnemonic()) || more)
    };
    Code::values().filter(wanted).filter(|code| !skipped(*code)).collect()
}

/// SSE and AVX instructions on registers and plain memory.
pub(super) fn vector_codes() -> Vec<Code> {
    let wanted = |code: &Code| {
        let info = code.op_code();
        let encoding =
            matches!(info.encoding(), iced_x86::EncodingKind::Legacy | iced_x86::EncodingKind::VEX);
        let vector = (0..info.op_count()).any(|at| {
            let class = operand_class(info.op_kind(at));
            matches!(class, Some(Class::Vector(_) | Class::VectorOrMemory(_)))
        });
        info.mode64() && encoding && vector && !code.mnemonic_is_masked()
    };
    Code::values().filter(wanted).filter(|code| !skipped(*code)).collect()
}

trait Masked {
    fn mnemonic_is_masked(&self) -> bool;
}

impl Masked for Code {
    /// XSAVE's and others' memory has no fixed size.
    fn mnemonic_is_masked(&self) -> bool {
        let features = self.cpuid_features();
        features.iter().any(|f| matches!(f, iced_x86::CpuidFeature::SSE4A | iced_x86::CpuidFeature::XOP))
    }
}

/// x87 instructions, those that load and store whole environments left out.
pub(super) fn x87_codes() -> Vec<Code> {
    let wanted = |code: &Code| {
        let info = code.op_code();
        let value = if info.op_code_len() == 2 { info.op_code() >> 8 } else { info.op_code() };
        let name = format!("{code:?}");
        let whole = ["env", "rstor", "save"].iter().any(|part| name.to_lowercase().contains(part));
        let escape = (0xd8..=0xdf).contains(&value) && info.table() == iced_x86::OpCodeTableKind::Normal;
        info.mode64() && escape && info.encoding() == iced_x86::EncodingKind::Legacy && !whole
    };
    Code::values().filter(wanted).filter(|code| !skipped(*code)).collect()
}

/// Far, segment, control and debug registers, and absolute addresses.
fn skipped(code: Code) -> bool {
    let info = code.op_code();
    (0..info.op_count()).any(|at| operand_class(info.op_kind(at)).is_none())
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    General(u32),
    Memory,
    GeneralOrMemory(u32),
    Vector(u32),
    VectorOrMemory(u32),
    Immediate,
    /// ST(i).
    Stack,
    Implied,
}

fn operand_class(kind: Kind) -> Option<Class> {
    Some(match kind {
        Kind::r8_reg | Kind::r8_opcode => Class::General(1),
        Kind::r16_reg | Kind::r16_opcode | Kind::r16_rm | Kind::r16_reg_mem => Class::General(2),
        Kind::r32_reg | Kind::r32_opcode | Kind::r32_rm | Kind::r32_vvvv | Kind::r32_reg_mem => {
            Class::General(4)
        }
        Kind::r64_reg | Kind::r64_opcode | Kind::r64_rm | Kind::r64_vvvv | Kind::r64_reg_mem => {
            Class::General(8)
        }
        Kind::r8_or_mem => Class::GeneralOrMemory(1),
        Kind::r16_or_mem => Class::GeneralOrMemory(2),
        Kind::r32_or_mem => Class::GeneralOrMemory(4),
        Kind::r64_or_mem => Class::GeneralOrMemory(8),
        Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => Class::Vector(16),
        Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => Class::Vector(32),
        Kind::xmm_or_mem => Class::VectorOrMemory(16),
        Kind::ymm_or_mem => Class::VectorOrMemory(32),
        Kind::mem => Class::Memory,
        Kind::imm8
        | Kind::imm8sex16
        | Kind::imm8sex32
        | Kind::imm8sex64
        | Kind::imm16
        | Kind::imm32
        | Kind::imm32sex64
        | Kind::imm64 => Class::Immediate,
        Kind::st0 => Class::Stack,
        Kind::sti_opcode => Class::Stack,
        Kind::al
        | Kind::cl
        | Kind::ax
        | Kind::eax
        | Kind::rax
        | Kind::dx
        | Kind::imm8_const_1
        | Kind::seg_rSI
        | Kind::es_rDI
        | Kind::seg_rDI => Class::Implied,
        _ => return None,
    })
}

fn general(random: &mut Random, size: u32) -> Register {
    let mut number = random.below(16) as u32;
    if (POINTERS.contains(&(number as u8)) || number == 4) && !random.chance(5) {
        number = [0, 1, 2, 6, 7, 8, 13, 15][random.below(8) as usize];
    }
    if number == 11 {
        // Counts rounds.
        number = 10;
    }
    match size {
        1 if random.chance(15) => Register::AH + random.below(4) as u32,
        1 if number >= 4 => Register::SPL + (number - 4),
        1 => Register::AL + number,
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

fn memory(random: &mut Random) -> MemoryOperand {
    let base = Register::RAX + u32::from(POINTERS[random.below(4) as usize]);
    let disp = match random.below(12) {
        0 => 0xff8 + random.below(16) as i64,
        1 => -(random.below(0x40) as i64),
        2 => (UNMAPPED - DATA) as i64 - random.below(24) as i64,
        3 | 4 => random.below(0x200) as i64,
        _ => 32 * random.below(16) as i64,
    };
    let index = [Register::None, Register::RCX, Register::R15, Register::R9][random.below(4) as usize];
    let index = if random.chance(85) { Register::None } else { index };
    let scale = if index == Register::None { 1 } else { 1 << random.below(4) };
    let segment = if random.chance(4) { Register::GS } else { Register::None };
    let base = if random.chance(3) { Register::RAX + random.below(16) as u32 } else { base };
    MemoryOperand::new(base, index, scale, disp, if disp == 0 { 0 } else { 8 }, false, segment)
}

fn instruction(random: &mut Random, codes: &[Code]) -> Option<Vec<u8>> {
    let code = codes[random.below(codes.len() as u64) as usize];
    let info = code.op_code();
    let mut i = Instruction::new();
    i.set_code(code);
    for at in 0..info.op_count() {
        let class = operand_class(info.op_kind(at))?;
        let to_memory = match class {
            Class::Memory => true,
            Class::GeneralOrMemory(_) | Class::VectorOrMemory(_) => random.chance(55),
            _ => false,
        };
        if to_memory {
            let m = memory(random);
            i.set_op_kind(at, iced_x86::OpKind::Memory);
            i.set_memory_base(m.base);
            i.set_memory_index(m.index);
            i.set_memory_index_scale(m.scale);
            i.set_memory_displacement64(m.displacement as u64);
            i.set_memory_displ_size(m.displ_size);
            i.set_segment_prefix(m.segment_prefix);
            continue;
        }
        match class {
            Class::General(size) | Class::GeneralOrMemory(size) => {
                i.set_op_kind(at, iced_x86::OpKind::Register);
                i.set_op_register(at, general(random, size));
            }
            Class::Vector(size) | Class::VectorOrMemory(size) => {
                let first = if size == 32 { Register::YMM0 } else { Register::XMM0 };
                i.set_op_kind(at, iced_x86::OpKind::Register);
                i.set_op_register(at, first + random.below(16) as u32);
            }
            Class::Stack => {
                let number = if info.op_kind(at) == Kind::st0 { 0 } else { random.below(8) as u32 };
                i.set_op_kind(at, iced_x86::OpKind::Register);
                i.set_op_register(at, Register::ST0 + number);
            }
            Class::Immediate => {
                let kind = immediate_kind(info.op_kind(at));
                i.set_op_kind(at, kind);
                let value = random.value();
                match kind {
                    iced_x86::OpKind::Immediate8 => i.set_immediate8(value as u8),
                    iced_x86::OpKind::Immediate8to16 => i.set_immediate8to16(i16::from(value as i8)),
                    iced_x86::OpKind::Immediate8to32 => i.set_immediate8to32(i32::from(value as i8)),
                    iced_x86::OpKind::Immediate8to64 => i.set_immediate8to64(i64::from(value as i8)),
                    iced_x86::OpKind::Immediate16 => i.set_immediate16(value as u16),
                    iced_x86::OpKind::Immediate32 => i.set_immediate32(value as u32),
                    iced_x86::OpKind::Immediate32to64 => i.set_immediate32to64(i64::from(value as i32)),
                    _ => i.set_immediate64(value),
                }
            }
            _ => return implied(code, random),
        }
    }
    if info.can_use_lock_prefix() && i.op0_kind() == iced_x86::OpKind::Memory && random.chance(15) {
        i.set_has_lock_prefix(true);
    }
    encode(&i)
}

/// The bytes, followed by a comparison if flags are undefined: the interpreter need not know them.
fn encode(i: &Instruction) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(i, 0).ok()?;
    let mut bytes = encoder.take_buffer();
    if i.rflags_undefined() != 0 {
        // cmp r10, rcx
        bytes.extend_from_slice(&[0x49, 0x39, 0xca]);
    }
    Some(bytes)
}

/// Instructions with implied operands, as bytes by their simplest form.
fn implied(code: Code, random: &mut Random) -> Option<Vec<u8>> {
    let size = [4_u32, 8][random.below(2) as usize];
    let register = general(random, size);
    let i = match code {
        Code::Shl_rm32_CL
        | Code::Shl_rm64_CL
        | Code::Shr_rm64_CL
        | Code::Sar_rm32_CL
        | Code::Rcl_rm64_CL
        | Code::Ror_rm32_CL => {
            let fits =
                matches!(code, Code::Shl_rm32_CL | Code::Sar_rm32_CL | Code::Ror_rm32_CL) == (size == 4);
            if !fits {
                return None;
            }
            Instruction::with2(code, register, Register::CL).ok()?
        }
        _ => return None,
    };
    encode(&i)
}

fn immediate_kind(kind: Kind) -> iced_x86::OpKind {
    use iced_x86::OpKind as O;
    match kind {
        Kind::imm8 => O::Immediate8,
        Kind::imm8sex16 => O::Immediate8to16,
        Kind::imm8sex32 => O::Immediate8to32,
        Kind::imm8sex64 => O::Immediate8to64,
        Kind::imm16 => O::Immediate16,
        Kind::imm32 => O::Immediate32,
        Kind::imm32sex64 => O::Immediate32to64,
        _ => O::Immediate64,
    }
}

/// A random program that ends in HLT, with forward branches and calls of the next instruction.
pub(super) fn program(random: &mut Random, codes: &[Code]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut left = 4 + random.below(20);
    while left > 0 {
        if random.chance(10) {
            // jcc over the next instruction
            let Some(next) = instruction(random, codes) else { continue };
            bytes.extend_from_slice(&[0x70 | random.below(16) as u8, next.len() as u8]);
            bytes.extend_from_slice(&next);
        } else if random.chance(6) {
            // A run of pushes, or of pops, of any registers but R11
            let (opcode, count) = ([0x50, 0x58][random.below(2) as usize], 2 + random.below(8));
            for _ in 0..count {
                match random.below(15) as u8 {
                    number @ 0..8 => bytes.push(opcode | number),
                    number => bytes
                        .extend_from_slice(&[0x41, opcode | [0, 1, 2, 4, 5, 6, 7][usize::from(number - 8)]]),
                }
            }
        } else if random.chance(4) {
            // call the next instruction; drop the return address
            bytes.extend_from_slice(&[0xe8, 0, 0, 0, 0, 0x59]);
        } else if let Some(next) = instruction(random, codes) {
            bytes.extend_from_slice(&next);
        } else {
            continue;
        }
        left -= 1;
    }
    bytes.push(0xf4);
    bytes
}

/// A short loop around a program: `mov r11d, n … dec r11d; jne back`.
fn looped(random: &mut Random, body: &[u8]) -> Vec<u8> {
    let body = &body[..body.len() - 1];
    let mut bytes = vec![0x41, 0xbb, 2 + random.below(5) as u8, 0, 0, 0];
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(&[0x41, 0xff, 0xcb]);
    let back = -(body.len() as i32 + 3 + 6);
    bytes.extend_from_slice(&[0x0f, 0x85]);
    bytes.extend_from_slice(&back.to_le_bytes());
    bytes.push(0xf4);
    bytes
}

fn state(random: &mut Random, rip: u64) -> x86::CpuState {
    let mut state = harness::long_state();
    for number in 0..16 {
        state.gprs[number] = random.value();
    }
    for pointer in POINTERS {
        state.gprs[usize::from(pointer)] = DATA + 0x100 + 32 * random.below(16);
    }
    state.gprs[4] = STACK - 8 * random.below(4);
    state.gprs[9] = 32 * random.below(8);
    state.rflags = 2 | random.next() & 0x8d5;
    state.segments.gs.base = random.below(0x100);
    state.rip = rip;
    state
}

fn run(cpu: &mut Cpu, state: &x86::CpuState, seed: u64) -> VmExit {
    cpu.restore(state).expect("the state is legal");
    let mut random = Random(seed | 1);
    for register in &mut cpu.vector.ymm {
        // Numbers of both sizes that make sense now and then.
        for lane in register.chunks_mut(8) {
            let value = match random.below(4) {
                0 => random.next(),
                1 => f64::to_bits(random.below(1000) as f64),
                2 => u64::from(f32::to_bits(random.below(1000) as f32)) * 0x1_0000_0001,
                _ => 0,
            };
            lane.copy_from_slice(&value.to_le_bytes());
        }
    }
    // Two registers are empty; the other ones hold numbers.
    cpu.fpu = FpuState::default();
    cpu.fpu.set_fsw((random.below(8) as u16) << 11);
    cpu.fpu.set_abridged_tags(!9_u8.rotate_left(random.below(8) as u32));
    for index in 0..8 {
        let mut value = [0; 10];
        value[..8].copy_from_slice(&(random.next() | 1 << 63).to_le_bytes());
        value[8..].copy_from_slice(&(0x3ff0 + random.below(0x30) as u16).to_le_bytes());
        cpu.fpu.set_st(index, &value);
    }
    cpu.run(&NoDevices, None)
}

fn compare(case: u64, code: &[u8], from: &x86::CpuState, pair: [&Cpu; 2], exits: [VmExit; 2]) {
    let [wanted, got] = pair.map(Cpu::save);
    let code_start = from.rip;
    let show = || {
        let mut text = String::new();
        let mut decoder = iced_x86::Decoder::with_ip(64, code, code_start, 0);
        for i in &mut decoder {
            let mut line = String::new();
            iced_x86::IntelFormatter::new().format(&i, &mut line);
            text += &format!("{:4x} {line}\n", i.ip());
        }
        format!("case {case} at {:x} exit {:?} cr2 {:x}\n{text}", wanted.rip, exits, wanted.cr2)
    };
    if exits[0] != exits[1] {
        panic!("exits {}", show());
    }
    assert_eq!(wanted.rip, got.rip, "RIP {}", show());
    assert_eq!(format!("{:x?}", wanted.gprs), format!("{:x?}", got.gprs), "{}", show());
    assert_eq!(format!("{:x}", wanted.rflags), format!("{:x}", got.rflags), "flags {}", show());
    assert_eq!(wanted.cr2, got.cr2, "CR2 {}", show());
    assert_eq!(pair[0].vector.mxcsr, pair[1].vector.mxcsr, "MXCSR {}", show());
    assert_eq!(pair[0].fpu.x87_bytes(), pair[1].fpu.x87_bytes(), "x87 {}", show());
    for number in 0..16 {
        assert_eq!(pair[0].vector.ymm[number], pair[1].vector.ymm[number], "YMM{number} {}", show());
    }
}

fn differential(cases: u64, seed: u64, codes: &[Code]) {
    differential_of(cases, seed, |random| program(random, codes));
}

/// Runs programs, which end with HLT, by both tiers, some of them in a loop.
fn differential_of(cases: u64, seed: u64, program: impl Fn(&mut Random) -> Vec<u8>) {
    differential_with(cases, seed, program, super::TranslationSettings::default());
}

/// As [`differential_of`], with other settings; tells what the translator counted.
pub(super) fn differential_with(
    cases: u64,
    seed: u64,
    program: impl Fn(&mut Random) -> Vec<u8>,
    settings: super::TranslationSettings,
) -> super::TranslationCounts {
    let mut random = Random(seed);
    let ram = [harness::memory(), harness::memory()];
    let start = harness::long_state();
    let mut interpreted = harness::cpu_in(ram[0].clone(), &start);
    let mut translated = harness::cpu_in(ram[1].clone(), &start);
    translated
        .enable_translation(super::TranslationSettings { cache_size: 4 << 20, ..settings })
        .expect("the host has memory");
    let area = (UNMAPPED - DATA) as usize;
    let mut faults = 0;
    for case in 0..cases {
        let mut code = program(&mut random);
        if random.chance(40) {
            code = looped(&mut random, &code);
        }
        let rip = CODE + random.below(0x2000);
        let from = state(&mut random, rip);
        let mut data = vec![0; area];
        data.iter_mut().for_each(|byte| *byte = random.next() as u8);
        for memory in &ram {
            memory.write(rip, &code).expect("is RAM");
            memory.write(DATA, &data).expect("is RAM");
            memory.write(STACK - 0x100, &data[..0x200]).expect("is RAM");
        }
        // The page of the last program shall not rest.
        translated.translator.as_mut().expect("was enabled").pages.clear();
        let seed = random.next();
        let exits = [run(&mut interpreted, &from, seed), run(&mut translated, &from, seed)];
        faults += u64::from(exits[0] != VmExit::Halted);
        compare(case, &code, &from, [&interpreted, &translated], exits);
        let mut after = [vec![0; area], vec![0; area]];
        let mut stacks = [vec![0; 0x800], vec![0; 0x800]];
        for index in 0..2 {
            ram[index].read(DATA, &mut after[index]).expect("is RAM");
            ram[index].read(STACK - 0x400, &mut stacks[index]).expect("is RAM");
        }
        assert!(after[0] == after[1], "case {case}: data differ");
        assert!(stacks[0] == stacks[1], "case {case}: stacks differ");
    }
    let counts = translated.translator.as_ref().map(|t| t.counts).unwrap_or_default();
    assert!(counts.blocks + counts.installed > cases / 2, "code was translated: {counts:?}");
    assert!(
        faults > cases / 100 && faults < cases * 19 / 20,
        "faults and ends both happen: {faults} of {cases}"
    );
    counts
}

#[test]
fn random_programs_end_as_in_the_interpreter() {
    differential(6000, 0x1234_5678_9abc_def1, &codes());
}

#[test]
fn random_vector_programs_end_as_in_the_interpreter() {
    let mut all = vector_codes();
    assert!(all.len() > 800, "{} codes", all.len());
    all.extend(
        [Code::Stmxcsr_m32, Code::Ldmxcsr_m32, Code::VEX_Vstmxcsr_m32, Code::VEX_Vldmxcsr_m32].repeat(5),
    );
    all.extend(codes().into_iter().step_by(4));
    differential(6000, 0x7777_5678_9abc_def1, &all);
}

#[test]
fn random_x87_programs_end_as_in_the_interpreter() {
    let mut all = x87_codes();
    assert!(all.len() > 100, "{} codes", all.len());
    all.extend(codes().into_iter().step_by(7));
    all.extend(vector_codes().into_iter().step_by(40));
    differential(6000, 0x3333_5678_9abc_def1, &all);
}

#[test]
fn mxcsr_is_loaded_and_stored_as_by_the_interpreter() {
    // Flush to zero; rounding up; a mask missing; a reserved bit.
    for value in [0x9f80_u32, 0x5f80, 0x1f00, 0x1_1f80] {
        let mut pair = [(); 2].map(|()| harness::cpu());
        pair[1].enable_translation(Default::default()).expect("the host has memory");
        // movaps xmm0, xmm0; push value; ldmxcsr [rsp]; stmxcsr [rsp + 4]; cvtsi2ss xmm0, rsp; mov rax, [rsp]; hlt
        let mut code = vec![0x0f, 0x28, 0xc0, 0x68];
        code.extend_from_slice(&value.to_le_bytes());
        code.extend_from_slice(&[0x0f, 0xae, 0x14, 0x24, 0x0f, 0xae, 0x5c, 0x24, 4]);
        code.extend_from_slice(&[0xf3, 0x48, 0x0f, 0x2a, 0xc4, 0x48, 0x8b, 4, 0x24, 0xf4]);
        let state = harness::long_state();
        let exits = [0, 1].map(|index: usize| {
            pair[index].memory.write(CODE, &code).expect("is RAM");
            pair[index].restore(&state).expect("the state is legal");
            pair[index].run(&NoDevices, None)
        });
        let [a, b] = &pair;
        compare(u64::from(value), &code, &state, [a, b], exits);
        assert_eq!(a.vector.mxcsr, b.vector.mxcsr, "after loading {value:#x}");
        if value >> 16 == 0 {
            assert_eq!(a.vector.mxcsr & !0x3f, value, "was loaded");
        }
    }
}

#[test]
fn unmasked_x87_exceptions_are_the_guests() {
    let mut pair = [(); 2].map(|()| harness::cpu());
    pair[1].enable_translation(Default::default()).expect("the host has memory");
    // fldz; fld1; push 0x37b; fldcw [rsp]; fdiv st0, st1; fld1; hlt: zero divide is unmasked, FLD1 reports it.
    let code = [0xd9, 0xee, 0xd9, 0xe8, 0x68, 0x7b, 3, 0, 0, 0xd9, 0x2c, 0x24, 0xd8, 0xf1, 0xd9, 0xe8, 0xf4];
    let state = harness::long_state();
    let exits = [0, 1].map(|index: usize| {
        pair[index].memory.write(CODE, &code).expect("is RAM");
        pair[index].restore(&state).expect("the state is legal");
        pair[index].run(&NoDevices, None)
    });
    assert_ne!(exits[0], VmExit::Halted, "there is no handler");
    let [a, b] = &pair;
    compare(0, &code, &state, [a, b], exits);
}
