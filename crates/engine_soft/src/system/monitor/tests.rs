//! The statements of SDM 2B, MONITOR and MWAIT, and of CPUID leaves 1 and 5.

use crate::cpu::{Cpu, Flow, Stop};
use crate::decode::{Decoded, decode};
use crate::interp::harness::{CODE, DATA, UNMAPPED, cpu, cpu_in, long_state, memory};
use crate::system::SystemState;
use engine::cpu_model::{CpuModel, FeatureSet};
use std::sync::Arc;
use x86::{Exception, MpState, Vector, msr};

const MONITOR: [u8; 3] = [0x0f, 0x01, 0xc8];
const MWAIT: [u8; 3] = [0x0f, 0x01, 0xc9];
/// MONITOR with an address of 32 bits, and with FS.
const MONITOR_32: [u8; 4] = [0x67, 0x0f, 0x01, 0xc8];
const MONITOR_FS: [u8; 4] = [0x64, 0x0f, 0x01, 0xc8];

/// Executes one instruction at CPL 0 in 64-bit mode, or as `cpu` is.
fn execute(cpu: &mut Cpu, code: &[u8]) -> Flow {
    let Decoded::Insn { insn, .. } = decode(&cpu.system, code, 64) else {
        panic!("{code:x?} is no instruction")
    };
    (insn.handler)(cpu, &insn)
}

fn fault(cpu: &mut Cpu, code: &[u8]) -> Exception {
    assert_eq!(execute(cpu, code), Err(Stop::Fault), "{code:x?}");
    cpu.exception
}

/// RAX, RCX and RDX.
fn with(rax: u64, rcx: u64) -> Cpu {
    let mut cpu = cpu();
    (cpu.regs[0], cpu.regs[1], cpu.regs[2]) = (rax, rcx, u64::MAX);
    cpu
}

#[test]
fn outside_of_ring_0_they_are_undefined() {
    for code in [MONITOR, MWAIT] {
        let mut cpu = with(DATA, 0);
        cpu.cpl = 3;
        assert_eq!(fault(&mut cpu, &code), Exception::ud());
        // Before any other fault.
        cpu.regs[1] = 4;
        assert_eq!(fault(&mut cpu, &code), Exception::ud());
    }
}

#[test]
fn a_model_without_them_has_them_undefined_and_does_not_tell_of_them() {
    let plain = CpuModel::everything(FeatureSet::of("lm nx msr apic sse2 sse fxsr xsave pae"));
    let mut cpu = Cpu::new(memory(), SystemState::alone(plain), Arc::default(), 46);
    cpu.restore(&long_state()).unwrap();
    for code in [MONITOR, MWAIT] {
        assert_eq!(fault(&mut cpu, &code), Exception::ud());
    }
    assert_eq!((cpu.cpuid(1, 0)[2] & 8, cpu.cpuid(5, 0)), (0, [0; 4]));
    assert_eq!(cpu.read_msr(msr::MISC_ENABLE).unwrap() & 1 << 18, 0);
    assert!(cpu.write_msr(msr::MISC_ENABLE, 1 << 18 | 1).is_none());
}

/// SDM 4, IA32_MISC_ENABLE bit 18: clear, it clears CPUID.01H:ECX.MONITOR and makes both #UD.
#[test]
fn a_register_switches_them_off() {
    let mut cpu = with(DATA, 0);
    assert_eq!(cpu.cpuid(1, 0)[2] & 8, 8);
    let [eax, ebx, ecx, edx] = cpu.cpuid(5, 0);
    assert_eq!((eax & 0xffff, ebx & 0xffff, ecx & 3, edx), (64, 64, 3, 0));
    let enabled = cpu.read_msr(msr::MISC_ENABLE).unwrap();
    assert_eq!(enabled & 1 << 18, 1 << 18);
    cpu.write_msr(msr::MISC_ENABLE, enabled & !(1 << 18)).unwrap();
    assert_eq!(cpu.cpuid(1, 0)[2] & 8, 0);
    for code in [MONITOR, MWAIT] {
        assert_eq!(fault(&mut cpu, &code), Exception::ud());
    }
    cpu.write_msr(msr::MISC_ENABLE, enabled).unwrap();
    assert_eq!(execute(&mut cpu, &MONITOR), Ok(()));
}

#[test]
fn unknown_extensions_are_general_protection_faults() {
    for rcx in [1, 2, 1 << 31, 1 << 32, u64::MAX] {
        assert_eq!(fault(&mut with(DATA, rcx), &MONITOR), Exception::gp(0), "{rcx:#x}");
    }
    for rcx in [2, 3, 1 << 31, 1 << 32] {
        assert_eq!(fault(&mut with(DATA, rcx), &MWAIT), Exception::gp(0), "{rcx:#x}");
    }
    // What nothing was monitored for is a no-op, whatever the hint in EAX.
    for rcx in [0, 1] {
        assert_eq!(execute(&mut with(u64::MAX, rcx), &MWAIT), Ok(()));
    }
}

#[test]
fn monitor_faults_as_the_load_of_a_byte() {
    let mut cpu = with(UNMAPPED, 0);
    assert_eq!(fault(&mut cpu, &MONITOR), Exception::page_fault(0, UNMAPPED));
    assert_eq!(fault(&mut with(1 << 63, 0), &MONITOR), Exception::gp(0));
    // One byte: the last of a page does not touch the next one.
    assert_eq!(execute(&mut with(UNMAPPED - 1, 0), &MONITOR), Ok(()));
    // The address has the address size, and the segment is DS unless FS or GS is named.
    assert_eq!(execute(&mut with(0xffff_ffff_0000_0000 | DATA, 0), &MONITOR_32), Ok(()));
    let mut cpu = with(DATA, 0);
    cpu.segments[4].base = 1 << 47;
    cpu.segment_base[4] = 1 << 47;
    assert_eq!(fault(&mut cpu, &MONITOR_FS), Exception::gp(0));
    assert_eq!(execute(&mut cpu, &MONITOR), Ok(()));
}

#[test]
fn mwait_waits_once_for_each_monitor() {
    let mut cpu = with(DATA + 5, 0);
    execute(&mut cpu, &MONITOR).unwrap();
    assert_eq!(execute(&mut cpu, &MWAIT), Err(Stop::Done));
    assert_eq!(cpu.mp_state, MpState::Halted);
    cpu.end_mwait();
    assert_eq!(cpu.mp_state, MpState::Runnable);
    assert_eq!(execute(&mut cpu, &MWAIT), Ok(()), "the monitor is no longer armed");
    assert_eq!(cpu.mp_state, MpState::Runnable);
}

#[test]
fn a_saved_processor_neither_waits_nor_monitors() {
    let memory = memory();
    memory.write(CODE, &[MONITOR, MWAIT, MWAIT].concat()).unwrap();
    let mut state = long_state();
    (state.gprs[0], state.gprs[1]) = (DATA, 0);
    let mut cpu = cpu_in(memory, &state);
    execute(&mut cpu, &MONITOR).unwrap();
    let saved = cpu.save();
    cpu.restore(&saved).unwrap();
    assert_eq!(execute(&mut cpu, &MWAIT), Ok(()));
    assert_eq!(cpu.save().mp_state, MpState::Runnable);
}

/// A single step traps behind HLT and MWAIT, rather than when an interrupt has ended them.
#[test]
fn a_trap_ends_the_waiting() {
    let mut cpu = with(DATA, 0);
    execute(&mut cpu, &MONITOR).unwrap();
    assert_eq!(execute(&mut cpu, &MWAIT), Err(Stop::Done));
    cpu.leave_halt();
    assert_eq!(cpu.mp_state, MpState::Runnable);
    assert_eq!(execute(&mut cpu, &[0xf4]), Err(Stop::Done));
    cpu.leave_halt();
    assert_eq!(cpu.mp_state, MpState::Runnable);
    assert_ne!(cpu.exception.vector, Vector::GeneralProtection);
}
