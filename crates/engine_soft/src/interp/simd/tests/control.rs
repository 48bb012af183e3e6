//! MXCSR, VZERO and the bounds of the stub table.

use super::{DATA, cpu, faults, run};
use crate::interp::simd::classify;
use iced_x86::{Code, CpuidFeature, OpCodeOperandKind};
use x86::Vector;

#[test]
fn mxcsr_refuses_reserved_bits() {
    let mut cpu = cpu();
    cpu.regs[7] = DATA;
    cpu.store(3, DATA, 0x1_0000_u32).expect("guest memory is there");
    let ldmxcsr = [0x0f, 0xae, 0x17];
    faults(&mut cpu, &ldmxcsr, Vector::GeneralProtection);
    cpu.store(3, DATA, 0xffff_u32).expect("guest memory is there");
    assert_eq!(run(&mut cpu, &ldmxcsr), Ok(()));
    assert_eq!(cpu.vector.mxcsr, 0xffff);
    cpu.vector.mxcsr = 0x9fc0;
    assert_eq!(run(&mut cpu, &[0xc5, 0xf8, 0xae, 0x1f]), Ok(())); // VSTMXCSR
    assert_eq!(cpu.load::<u32>(3, DATA).ok(), Some(0x9fc0));
}

#[test]
fn vzero_clears_what_the_mode_has() {
    let mut cpu = cpu();
    cpu.vector.ymm = [[0xff; 32]; 16];
    assert_eq!(run(&mut cpu, &[0xc5, 0xf8, 0x77]), Ok(())); // VZEROUPPER
    assert!(cpu.vector.ymm.iter().all(|r| r[..16] == [0xff; 16] && r[16..] == [0; 16]));
    cpu.long64 = false;
    assert_eq!(run(&mut cpu, &[0xc5, 0xfc, 0x77]), Ok(())); // VZEROALL
    assert_eq!(cpu.vector.ymm[7], [0; 32]);
    assert_eq!(cpu.vector.ymm[8][0], 0xff);
}

/// Every stub that a guest can cause fits into the arena, whose size is 16 MiB.
#[test]
fn the_arena_holds_all_stubs() {
    const LONGEST_STUB: usize = 112;
    let stubs: usize = Code::values()
        .filter(|&code| classify::has_stub(code))
        .map(|code| {
            let kinds = code.op_code().op_kinds();
            let immediates = if kinds.contains(&OpCodeOperandKind::imm8) { 256 } else { 1 };
            let forms = if kinds.iter().any(|kind| format!("{kind:?}").contains("or_mem")) { 2 } else { 1 };
            immediates * forms
        })
        .sum();
    eprintln!("{stubs} stubs");
    assert!(stubs * LONGEST_STUB <= 16 << 20, "{stubs}");
}

#[test]
fn features_without_an_executor_are_not_offered() {
    assert!(super::super::host_has(CpuidFeature::SSE2));
    assert!(!super::super::host_has(CpuidFeature::AVX512F));
    assert!(!super::super::host_has(CpuidFeature::SSE4A));
    assert!(!super::super::host_has(CpuidFeature::XOP));
}
