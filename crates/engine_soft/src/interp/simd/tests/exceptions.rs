//! Unmasked SIMD exceptions and the checks before execution.

use super::{DATA, cpu, fault, faults, run};
use crate::cpu::Cpu;
use x86::{Cr0, Cr4, Vector};

const ALL_MASKED: u32 = 0x1f80;
/// Flag bits: invalid, denormal, zero divide, overflow, underflow, precision. The mask is 7 bits above.
const IE: u32 = 1 << 0;
const DE: u32 = 1 << 1;
const ZE: u32 = 1 << 2;
const UE: u32 = 1 << 4;
const PE: u32 = 1 << 5;

const ADDPS: &[u8] = &[0x0f, 0x58, 0xc1];
const MULPS: &[u8] = &[0x0f, 0x59, 0xc1];
const DIVPS: &[u8] = &[0x0f, 0x5e, 0xc1];
const CVTTSS2SI: &[u8] = &[0xf3, 0x0f, 0x2c, 0xc1];

fn singles(values: [f32; 4]) -> [u8; 32] {
    let mut bytes = [0xaa; 32];
    for (at, value) in values.into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// XMM0 and XMM1 with some exceptions unmasked.
fn with(first: [f32; 4], second: [f32; 4], unmasked: u32) -> Cpu {
    let mut cpu = cpu();
    cpu.vector.ymm[0] = singles(first);
    cpu.vector.ymm[1] = singles(second);
    cpu.vector.mxcsr = ALL_MASKED & !(unmasked << 7);
    cpu
}

/// The SDM's division by zero in one lane of four, unmasked.
#[test]
fn an_unmasked_exception_is_raised_and_keeps_the_destination() {
    let mut cpu = with([1.0; 4], [3.0, 2.0, 0.0, 7.0], ZE);
    faults(&mut cpu, DIVPS, Vector::Simd);
    assert_eq!(cpu.vector.ymm[0], singles([1.0; 4]));
    assert_eq!(cpu.vector.mxcsr, ALL_MASKED & !(ZE << 7) | ZE, "no result, so no precision flag either");
}

#[test]
fn without_osxmmexcpt_it_is_an_invalid_opcode() {
    let mut cpu = with([1.0; 4], [0.0; 4], ZE);
    cpu.cr4.remove(Cr4::OSXMMEXCPT);
    faults(&mut cpu, DIVPS, Vector::InvalidOpcode);
}

#[test]
fn other_exceptions_stay_masked() {
    let mut cpu = with([1.0; 4], [3.0, 2.0, 0.0, 7.0], IE);
    assert_eq!(run(&mut cpu, DIVPS), Ok(()));
    assert_eq!(cpu.vector.mxcsr & 0x3f, ZE | PE);
    assert_eq!(cpu.vector.ymm[0][8..12], f32::INFINITY.to_le_bytes());
    assert_eq!(cpu.vector.ymm[0][16..], [0xaa; 16], "a legacy instruction keeps the upper half");
}

/// SDM 1 11.5.2.3: a tiny result is an underflow even if it is exact, when unmasked.
#[test]
fn exact_tiny_results_underflow_only_if_unmasked() {
    let tiny = [f32::MIN_POSITIVE; 4];
    let mut cpu = with(tiny, [0.5; 4], 0);
    assert_eq!(run(&mut cpu, MULPS), Ok(()));
    assert_eq!(cpu.vector.mxcsr, ALL_MASKED);
    let mut cpu = with(tiny, [0.5; 4], UE);
    faults(&mut cpu, MULPS, Vector::Simd);
    assert_eq!(cpu.vector.mxcsr & 0x3f, UE);
}

/// SDM 1 11.5.3: flags of what comes before the computation are set in all lanes; those after it are not.
#[test]
fn exceptions_before_the_computation_hide_those_after() {
    let denormal = f32::from_bits(1);
    let mut cpu = with([denormal, 1.0, 1.0, 1.0], [1.0, 1e-10, 1.0, 1.0], DE);
    faults(&mut cpu, ADDPS, Vector::Simd);
    assert_eq!(cpu.vector.mxcsr & 0x3f, DE);
}

#[test]
fn general_registers_and_mmx_registers_are_kept() {
    let mut cpu = with([0.0; 4], [f32::NAN; 4], IE);
    cpu.regs[0] = 0x1122_3344_5566_7788;
    faults(&mut cpu, CVTTSS2SI, Vector::Simd);
    assert_eq!(cpu.regs[0], 0x1122_3344_5566_7788);
    let before = cpu.fpu.st(0);
    faults(&mut cpu, &[0x0f, 0x2c, 0xc1], Vector::Simd); // CVTTPS2PI MM0, XMM1
    assert_eq!(cpu.fpu.st(0), before);
}

#[test]
fn vex_forms_and_memory_operands_trap_too() {
    if !super::super::host_has(iced_x86::CpuidFeature::AVX) {
        eprintln!("skipped: the host has no AVX");
        return;
    }
    let mut cpu = with([1.0; 4], [0.0; 4], ZE);
    cpu.regs[7] = DATA;
    cpu.store(3, DATA, singles([2.0, 0.0, 2.0, 2.0])).expect("guest memory is there");
    let before = cpu.vector.ymm[2];
    faults(&mut cpu, &[0xc5, 0xfc, 0x5e, 0x17], Vector::Simd); // VDIVPS YMM2, YMM0, [RDI]
    assert_eq!(cpu.vector.ymm[2], before);
}

#[test]
fn many_traps_leave_the_host_as_it_was() {
    for _ in 0..1000 {
        let mut cpu = with([1.0; 4], [0.0; 4], ZE | IE | DE | PE);
        faults(&mut cpu, DIVPS, Vector::Simd);
    }
    let divided = std::hint::black_box(1.0_f32) / std::hint::black_box(0.0);
    assert!(divided.is_infinite());
}

/// Rows of SDM 2A tables 2-18 to 2-27 and of each instruction's exception list.
#[test]
fn the_operating_system_must_have_enabled_it() {
    const VADDPS: &[u8] = &[0xc5, 0xf8, 0x58, 0xc1];
    const VMOVUPS: &[u8] = &[0xc5, 0xf8, 0x10, 0xc1];
    const MOVUPS: &[u8] = &[0x0f, 0x10, 0xc1];
    const PADDB_MMX: &[u8] = &[0x0f, 0xfc, 0xc1];
    let refused = |bytes: &[u8], change: fn(&mut Cpu)| {
        let mut cpu = cpu();
        change(&mut cpu);
        fault(&mut cpu, bytes).vector
    };
    for bytes in [ADDPS, MOVUPS] {
        assert_eq!(refused(bytes, |cpu| cpu.cr4.remove(Cr4::OSFXSR)), Vector::InvalidOpcode);
        assert_eq!(refused(bytes, |cpu| cpu.cr0.insert(Cr0::EM)), Vector::InvalidOpcode);
    }
    assert_eq!(refused(PADDB_MMX, |cpu| cpu.cr0.insert(Cr0::EM)), Vector::InvalidOpcode);
    for bytes in [ADDPS, MOVUPS, PADDB_MMX] {
        assert_eq!(refused(bytes, |cpu| cpu.cr0.insert(Cr0::TS)), Vector::DeviceNotAvailable);
    }
    if !super::super::host_has(iced_x86::CpuidFeature::AVX) {
        eprintln!("skipped: VEX rows, the host has no AVX");
        return;
    }
    for bytes in [VADDPS, VMOVUPS] {
        assert_eq!(refused(bytes, |cpu| cpu.cr4.remove(Cr4::OSXSAVE)), Vector::InvalidOpcode);
        assert_eq!(refused(bytes, |cpu| cpu.xcr0 = 3), Vector::InvalidOpcode);
        assert_eq!(refused(bytes, |cpu| cpu.cr0.insert(Cr0::TS)), Vector::DeviceNotAvailable);
        let mut cpu = cpu();
        cpu.cr0.insert(Cr0::EM);
        assert_eq!(run(&mut cpu, bytes), Ok(()));
    }
}
