//! Every instruction that runs as a stub, against the same bytes executed natively.

use super::native::{Block, Code as NativeCode};
use super::{DATA, Random, cpu, run};
use crate::cpu::Cpu;
use crate::interp::simd::classify;
use iced_x86::{Code, Encoder, Instruction, OpCodeOperandKind as K, OpKind, Register};
use x86::RFlags;

/// Memory that an instruction can see.
#[repr(C, align(64))]
struct Memory([u8; 64]);

/// An instruction of `code` with random registers. `memory` chooses between the forms of a
/// register-or-memory operand. `None` when there is no such form.
fn build(code: Code, memory: bool, random: &mut Random) -> Option<Instruction> {
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    let mut has_memory = false;
    for at in 0..code.op_code().op_count() {
        let vector = random.below(16) as u32;
        let general = random.below(4) as u32;
        let mmx = random.below(8) as u32;
        let register = match code.op_code().op_kind(at) {
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => Register::XMM0 + vector,
            K::xmm_or_mem if !memory => Register::XMM0 + vector,
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => Register::YMM0 + vector,
            K::ymm_or_mem if !memory => Register::YMM0 + vector,
            K::mm_reg | K::mm_rm => Register::MM0 + mmx,
            K::mm_or_mem if !memory => Register::MM0 + mmx,
            K::r32_reg | K::r32_rm => Register::EAX + general,
            K::r64_reg | K::r64_rm => Register::RAX + general,
            K::r32_or_mem if !memory => Register::EAX + general,
            K::r64_or_mem if !memory => Register::RAX + general,
            K::r32_vvvv | K::r64_vvvv => return None,
            K::imm8 => {
                instruction.set_op_kind(at, OpKind::Immediate8);
                instruction.set_immediate8(random.next() as u8);
                continue;
            }
            K::mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::mm_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::r32_or_mem_mpx => {
                has_memory = true;
                instruction.set_op_kind(at, OpKind::Memory);
                instruction.set_memory_base(Register::RDI);
                continue;
            }
            _ => return None,
        };
        instruction.set_op_kind(at, OpKind::Register);
        instruction.set_op_register(at, register);
    }
    (has_memory == memory).then_some(instruction)
}

fn encode(instruction: &Instruction) -> Vec<u8> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, 0).expect("the instruction has an encoding");
    encoder.take_buffer()
}

fn random_block(random: &mut Random) -> Block {
    let mut block = Block {
        ymm: [[0; 32]; 16],
        mm: [[0; 8]; 8],
        gprs: [random.next(), random.next(), random.next() & 15, random.next()],
        memory: 0,
        rflags: random.next() & RFlags::ARITHMETIC.bits() | 2,
        mxcsr: 0x1f80 | (random.next() as u32 & 0xe07f),
        host_mxcsr: 0,
    };
    if random.below(2) == 0 {
        block.gprs[0] &= 31;
    }
    block.ymm.iter_mut().for_each(|register| random.fill(register));
    block.mm.iter_mut().for_each(|register| random.fill(register));
    block
}

fn load(cpu: &mut Cpu, block: &Block, memory: &Memory) {
    cpu.vector.ymm = block.ymm;
    cpu.vector.mxcsr = block.mxcsr;
    cpu.regs[..4].copy_from_slice(&block.gprs);
    cpu.regs[7] = DATA;
    cpu.flags.set_bits(block.rflags);
    for (index, value) in block.mm.iter().enumerate() {
        let mut register = [0xff; 10];
        register[..8].copy_from_slice(value);
        cpu.fpu.set_st(index, &register);
    }
    cpu.fpu.set_top(0);
    cpu.store(3, DATA, memory.0).expect("guest memory is there");
}

/// What the guest has, as a block, and its memory.
fn store(cpu: &mut Cpu, block: &Block) -> (Block, [u8; 64]) {
    let mut mm = [[0; 8]; 8];
    for (index, value) in mm.iter_mut().enumerate() {
        value.copy_from_slice(&cpu.fpu.st(index)[..8]);
    }
    let arithmetic = RFlags::ARITHMETIC.bits();
    let result = Block {
        ymm: cpu.vector.ymm,
        mm,
        gprs: [cpu.regs[0], cpu.regs[1], cpu.regs[2], cpu.regs[3]],
        rflags: block.rflags & !arithmetic | cpu.flags.bits() & arithmetic,
        mxcsr: cpu.vector.mxcsr,
        ..block.clone()
    };
    (result, cpu.load(3, DATA).expect("guest memory is there"))
}

#[test]
fn every_stub_does_what_the_host_does() {
    if !is_x86_feature_detected!("avx") {
        eprintln!("skipped: the native frame needs AVX");
        return;
    }
    let mut random = Random(42);
    let mut native = NativeCode::new();
    let mut cpu = cpu();
    let mut forms = 0;
    for code in Code::values().filter(|&code| classify::has_stub(code)) {
        let mut built = 0;
        for round in 0..24 {
            let Some(instruction) = build(code, round % 2 == 1, &mut random) else {
                continue;
            };
            built += 1;
            let bytes = encode(&instruction);
            let before = random_block(&mut random);
            let mut memory = Memory([0; 64]);
            random.fill(&mut memory.0);
            load(&mut cpu, &before, &memory);
            let mut expected = Block { memory: (&raw mut memory) as u64, ..before.clone() };
            assert_eq!(run(&mut cpu, &bytes), Ok(()), "{code:?} {bytes:02x?}");
            native.run(&bytes, &mut expected);
            expected.memory = 0;
            let (mut actual, guest_memory) = store(&mut cpu, &before);
            actual.host_mxcsr = expected.host_mxcsr;
            expected.rflags &= RFlags::ARITHMETIC.bits() | 2;
            if let Some(difference) = difference(&before, &expected, &actual) {
                panic!("{code:?} {bytes:02x?}: {difference}");
            }
            assert_eq!(memory.0, guest_memory, "{code:?} {bytes:02x?}");
        }
        if built == 0 && !written_out(code) {
            panic!("no form of {code:?} was built: {:?}", code.op_code().op_kinds());
        }
        forms += built;
    }
    eprintln!("{forms} instructions compared");
    assert!(forms > 10_000);
}

/// The first part of the state that is not as expected.
fn difference(before: &Block, expected: &Block, actual: &Block) -> Option<String> {
    for index in 0..16 {
        if expected.ymm[index] != actual.ymm[index] {
            let (old, wanted, got) = (before.ymm[index], expected.ymm[index], actual.ymm[index]);
            return Some(format!("YMM{index} {wanted:02x?}, not {got:02x?}; before {old:02x?}"));
        }
    }
    (expected != actual).then(|| {
        format!(
            "MM {:x?} {:x?} GPR {:x?} {:x?} RFLAGS {:x} {:x} MXCSR {:x} {:x}",
            expected.mm,
            actual.mm,
            expected.gprs,
            actual.gprs,
            expected.rflags,
            actual.rflags,
            expected.mxcsr,
            actual.mxcsr
        )
    })
}

/// Masked moves, which have tests of their own.
fn written_out(code: Code) -> bool {
    let name = format!("{code:?}");
    name.contains("gather") || name.contains("ask")
}
