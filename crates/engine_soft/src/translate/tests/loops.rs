//! Loops of one block: random bodies that move pointers by constants through several pages, into one that is missing.

use super::pages::{LINEAR, memory, physical};
use super::{NoDevices, Random, differential_in, state};
use crate::interp::harness;
use crate::translate::TranslationSettings;
use engine::VmExit;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Registers that hold addresses at the start.
const POINTERS: [AsmRegister64; 4] = [rbx, rbp, r12, r14];
const DATA: [AsmRegister64; 6] = [rax, rcx, rdx, rsi, r13, r15];
const STEPS: [i32; 12] = [1, 2, 4, 8, 16, 24, 40, 255, 256, 264, 1024, 4096];

fn step(random: &mut Random) -> i32 {
    let known = if random.chance(20) { STEPS.len() } else { 8 };
    let step = STEPS[random.below(known as u64) as usize];
    if random.chance(40) { -step } else { step }
}

/// What the body does besides counting.
fn act(a: &mut CodeAssembler, random: &mut Random, out: CodeLabel) -> Result<(), IcedError> {
    let pointer = POINTERS[random.below(4) as usize];
    let other = POINTERS[random.below(4) as usize];
    let data = DATA[random.below(6) as usize];
    let near = random.below(120) as i32 - 60;
    match random.below(34) {
        0..4 => a.add(pointer, step(random)),
        4 => a.sub(pointer, step(random)),
        5 => a.lea(pointer, pointer + step(random)),
        6 => a.inc(pointer),
        7 => a.add(r9, step(random)),
        8 => a.mov(pointer, other),
        9 => a.lea(pointer, other + near),
        10 => a.mov(qword_ptr(pointer + near), data),
        11 => a.mov(byte_ptr(pointer + near), cl),
        12 => a.add(qword_ptr(pointer + r9 * 2 + near), data),
        13 => a.mov(data, qword_ptr(pointer + r9 * 4 + near)),
        14 => a.movups(xmm1, xmmword_ptr(pointer + near)),
        15 => a.movaps(xmmword_ptr(pointer + (near & !15)), xmm1),
        16 => a.paddb(xmm1, xmmword_ptr(pointer + (near & !15))),
        17 => a.push(data).and_then(|()| a.pop(DATA[random.below(6) as usize])),
        18 => a.push(data),
        19 => a.adc(data, rdi),
        20 => a.sbb(data, qword_ptr(pointer + near)),
        21 => a.rol(r13d, 5).and_then(|()| a.xor(r15, r13)),
        22 => a.imul_3(r13, data, 77),
        23 => a.mul(data),
        24 => a.shl(data, cl),
        25 => a.add(ah, dl),
        26 => a.add(eax, 0x1234_5678),
        27 => a.cmovb(data, rdi),
        28 => a.jb(out),
        29 => a.cmp(data, qword_ptr(pointer + near)).and_then(|()| a.je(out)),
        30 => a.fadd(qword_ptr(pointer + near)).and_then(|()| a.fstp(st1)),
        31 => a.setb(byte_ptr(rsp - 8)),
        _ => a.mov(data, qword_ptr(pointer + near)),
    }
}

/// The end of the body; R10 and R11 count.
fn close(a: &mut CodeAssembler, random: &mut Random, top: CodeLabel) -> Result<(), IcedError> {
    match random.below(6) {
        0 => a.dec(r11d).and_then(|()| a.jne(top)),
        1 => a.dec(r11).and_then(|()| a.jne(top)),
        2 => a.sub(r11, 1).and_then(|()| a.ja(top)),
        3 => a.add(r10d, 3).and_then(|()| a.cmp(r10d, r11d)).and_then(|()| a.jb(top)),
        4 => {
            a.lea(r11, r11 - 1)?;
            a.test(r11, r11)?;
            a.jne(top)
        }
        _ => a.inc(r10).and_then(|()| a.cmp(r10, r11)).and_then(|()| a.jl(top)),
    }
}

fn program(random: &mut Random) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let mut build = || -> Result<Vec<u8>, IcedError> {
        let (mut top, mut out) = (a.create_label(), a.create_label());
        a.xor(r10d, r10d)?;
        let most = if random.chance(30) { 1500 } else { 40 };
        a.mov(r11d, 1 + random.below(most) as u32)?;
        a.set_label(&mut top)?;
        a.nop()?;
        for _ in 0..1 + random.below(10) {
            act(&mut a, random, out)?;
        }
        if random.chance(20) {
            a.dec(r11d)?;
            a.je(out)?;
            a.jmp(top)?;
        } else {
            close(&mut a, random, top)?;
        }
        a.set_label(&mut out)?;
        a.hlt()?;
        a.assemble(0)
    };
    build().expect("the program assembles")
}

#[test]
fn loops_end_as_in_the_interpreter() {
    let settings = TranslationSettings::default();
    let (faults, _) =
        differential_in(8000, 0x1357_2468_9abc_def1, settings, program, |_, body| body.to_vec(), state);
    assert!((400..7600).contains(&faults), "faults and ends both happen: {faults}");
}

#[test]
fn loops_that_are_counted_end_as_in_the_interpreter() {
    let settings = TranslationSettings { counted: true, ..TranslationSettings::default() };
    differential_in(1500, 0x7531_2468_9abc_def1, settings, program, |_, body| body.to_vec(), state);
}

/// Words of ten pages are added up from below, and the sums stored from above into the next ten. Neighbouring pages are
/// not neighbours in RAM, so an iteration too many behind a check meets other words.
#[test]
fn loops_follow_the_page_tables() {
    const WORDS: u64 = 10 * 512 - 3;
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let mut assemble = || {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.add(rax, qword_ptr(rbx))?;
        a.mov(qword_ptr(rdi), rax)?;
        a.add(rbx, 8)?;
        a.sub(rdi, 8)?;
        a.dec(rcx)?;
        a.jne(top)?;
        a.hlt()?;
        a.assemble(harness::CODE)
    };
    let code = assemble().expect("the program assembles");
    let mut cpu = harness::cpu_in(memory(), &harness::long_state());
    cpu.enable_translation(TranslationSettings::default()).expect("the host has memory");
    let place = |word: u64| physical(word / 512) + word % 512 * 8;
    for word in 0..WORDS {
        cpu.memory.write(place(word), &(word * word).to_le_bytes()).expect("is RAM");
    }
    cpu.memory.write(harness::CODE, &code).expect("is RAM");
    let mut start = harness::long_state();
    let last = 20 * 512 - 1;
    (start.gprs[0], start.gprs[1], start.gprs[3], start.gprs[7]) = (0, WORDS, LINEAR, LINEAR + last * 8);
    cpu.restore(&start).expect("the state is legal");
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
    let mut sum = 0_u64;
    for word in 0..WORDS {
        sum += word * word;
        let mut stored = [0; 8];
        cpu.memory.read(place(last - word), &mut stored).expect("is RAM");
        assert_eq!(u64::from_le_bytes(stored), sum, "word {word}");
    }
    // Only checks before iterations leave what they found there.
    assert!(cpu.shared.shares[..2].iter().all(|[addend, _]| *addend != 0), "the second translation ran");
}
