//! Translated code against the interpreter: random programs, from the same state, to the same end.

mod crossing;
mod flags;
mod generate;
mod golden;
mod hints;
mod hostile;
mod legacy;
mod loops;
mod pages;
mod returns;
mod shares;
mod stack;
mod strings;
mod system;
mod verified;

use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE, DATA, STACK, UNMAPPED};
use crate::interp::x87::FpuState;
use engine::{VcpuIo, VmExit};
use generate::{POINTERS, instruction};
pub(super) use generate::{codes, vector_codes, x87_codes};
use iced_x86::Code;
use iced_x86::Formatter;

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

/// A random program that ends in HLT, with forward branches and calls of the next instruction.
pub(super) fn program(random: &mut Random, codes: &[Code]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut left = 4 + random.below(20);
    while left > 0 {
        if random.chance(10) {
            // jcc over the next instruction
            let Some(next) = instruction(random, codes, 64) else { continue };
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
        } else if let Some(next) = instruction(random, codes, 64) {
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

/// A program's disassembly.
fn listing(bits: u32, code: &[u8], start: u64) -> String {
    let mut text = String::from("\n");
    for i in &mut iced_x86::Decoder::with_ip(bits, code, start, 0) {
        let mut line = String::new();
        iced_x86::IntelFormatter::new().format(&i, &mut line);
        text += &format!("{:4x} {line}\n", i.ip());
    }
    text
}

fn compare(case: u64, code: &[u8], from: &x86::CpuState, pair: [&Cpu; 2], exits: [VmExit; 2]) {
    let [wanted, got] = pair.map(Cpu::save);
    let show = || {
        let text = listing(pair[0].code_size.into(), code, from.rip);
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
    let (faults, counts) = differential_in(cases, seed, settings, program, looped, state);
    assert!(
        faults > cases / 100 && faults < cases * 19 / 20,
        "faults and ends both happen: {faults} of {cases}"
    );
    counts
}

/// As [`differential_with`], from states of any mode; gives the number of programs that did not end with HLT, too. The
/// second argument of `state` is the linear address of the code.
fn differential_in(
    cases: u64,
    seed: u64,
    settings: super::TranslationSettings,
    program: impl Fn(&mut Random) -> Vec<u8>,
    looped: impl Fn(&mut Random, &[u8]) -> Vec<u8>,
    state: impl Fn(&mut Random, u64) -> x86::CpuState,
) -> (u64, super::TranslationCounts) {
    let mut random = Random(seed);
    let ram = [harness::memory(), harness::memory()];
    let start = harness::long_state();
    let mut interpreted = harness::cpu_in(ram[0].clone(), &start);
    let mut translated = harness::cpu_in(ram[1].clone(), &start);
    translated
        .enable_translation(super::TranslationSettings { cache_size: 4 << 20, ..settings })
        .expect("the host has memory");
    let area = (UNMAPPED - DATA) as usize;
    let counted = translated.translator.as_ref().is_some_and(|translator| translator.counted);
    let (mut faults, mut exact, mut executed) = (0, 0, [0, 0]);
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
            legacy::prepare(memory);
            memory.write(rip, &code).expect("is RAM");
            memory.write(DATA, &data).expect("is RAM");
            memory.write(STACK - 0x100, &data[..0x200]).expect("is RAM");
        }
        // The page of the last program shall not rest.
        translated.translator.as_mut().expect("was enabled").pages.clear();
        let seed = random.next();
        let before = [&interpreted, &translated].map(Cpu::executed);
        let exits = [run(&mut interpreted, &from, seed), run(&mut translated, &from, seed)];
        if counted && exits[0] == VmExit::Halted {
            let [wanted, got] = [&interpreted, &translated].map(Cpu::executed);
            let (wanted, got) = (wanted - before[0], got - before[1]);
            // Nothing is forgotten; what is left by a check that fails may count again.
            let listing = || listing(interpreted.code_size.into(), &code, from.rip);
            assert!(got >= wanted, "case {case}: {got} executed of {wanted}{}", listing());
            exact += u64::from(wanted == got);
            executed = [executed[0] + wanted, executed[1] + got];
        }
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
    if counted {
        let [wanted, got] = executed;
        eprintln!(
            "{exact} of {cases} programs counted exactly; {got} instructions counted, {wanted} executed"
        );
        assert!(exact > cases / 8 && got < wanted * 2, "{exact} exact, {got} counted of {wanted}");
    }
    assert!(counts.blocks + counts.installed > cases / 2, "code was translated: {counts:?}");
    (faults, counts)
}

#[test]
fn random_programs_end_as_in_the_interpreter() {
    differential(6000, 0x1234_5678_9abc_def1, &codes(64));
}

#[test]
fn counted_programs_end_as_in_the_interpreter_and_forget_no_instruction() {
    let settings = super::TranslationSettings { counted: true, ..Default::default() };
    let codes = codes(64);
    differential_with(3000, 0x2244_5678_9abc_def1, |random| program(random, &codes), settings);
}

#[test]
fn random_vector_programs_end_as_in_the_interpreter() {
    let mut all = vector_codes(64);
    assert!(all.len() > 800, "{} codes", all.len());
    all.extend(
        [Code::Stmxcsr_m32, Code::Ldmxcsr_m32, Code::VEX_Vstmxcsr_m32, Code::VEX_Vldmxcsr_m32].repeat(5),
    );
    all.extend(codes(64).into_iter().step_by(4));
    differential(6000, 0x7777_5678_9abc_def1, &all);
}

#[test]
fn random_x87_programs_end_as_in_the_interpreter() {
    let mut all = x87_codes(64);
    assert!(all.len() > 100, "{} codes", all.len());
    all.extend(codes(64).into_iter().step_by(7));
    all.extend(vector_codes(64).into_iter().step_by(40));
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
