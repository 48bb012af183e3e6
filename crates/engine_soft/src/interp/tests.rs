//! Small programs in every mode; the expectations are the manual's.

use super::harness::{CODE, DATA, STACK, cpu_in, flat, long_state, memory};
use crate::cpu::Cpu;
use engine::{VcpuIo, VmExit};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Mutex;
use x86::{CpuState, Cr0, Segment, SegmentAttributes};

/// Records what reaches devices.
#[derive(Default)]
struct Devices {
    log: Mutex<Vec<(char, u64, Vec<u8>)>>,
}

impl VcpuIo for Devices {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.log.lock().expect("no panic before").push(('p', port.into(), data.to_vec()));
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(address as u8);
    }
    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.log.lock().expect("no panic before").push(('m', address, data.to_vec()));
    }
}

/// Assembles, runs exactly as many instructions as were written once, and returns the processor.
fn run_steps(
    state: &CpuState,
    bits: u32,
    steps: u64,
    program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Cpu {
    let memory = memory();
    let mut assembler = CodeAssembler::new(bits).expect("a legal width");
    program(&mut assembler).expect("a legal program");
    let code = assembler.assemble(CODE).expect("a legal program");
    memory.write(CODE, &code).expect("is RAM");
    let mut cpu = cpu_in(memory, state);
    assert_eq!(cpu.run(&Devices::default(), Some(steps)), VmExit::StepsDone);
    cpu
}

fn real_state() -> CpuState {
    let mut state = CpuState::reset(true);
    state.segments.cs = Segment { selector: 0, base: 0, limit: 0xffff, attributes: SegmentAttributes(0x9b) };
    state.rip = CODE;
    state.gprs[4] = STACK;
    state
}

fn protected_state() -> CpuState {
    let mut state = real_state();
    state.cr0 = (Cr0::PE | Cr0::ET).bits();
    state.segments.cs = flat(8, 0xc09b);
    let data = flat(16, 0xc093);
    (state.segments.ss, state.segments.ds, state.segments.es) = (data, data, data);
    state
}

#[test]
fn sums_the_first_hundred_numbers_in_every_mode() {
    for (state, bits) in [(real_state(), 16), (protected_state(), 32), (long_state(), 64)] {
        let cpu = run_steps(&state, bits, 2 + 3 * 100, |a| {
            let mut top = a.create_label();
            a.mov(eax, 0)?;
            a.mov(ecx, 100)?;
            a.set_label(&mut top)?;
            a.add(eax, ecx)?;
            a.dec(ecx)?;
            a.jne(top)
        });
        assert_eq!(cpu.gpr(0), 5050, "{bits} bits");
    }
}

#[test]
fn segment_bases_and_limits_apply_in_real_mode() {
    let mut state = real_state();
    state.segments.ds.base = 0x8000;
    let cpu = run_steps(&state, 16, 3, |a| {
        a.mov(word_ptr(0x10), 0x1234_i32)?;
        a.mov(ax, word_ptr(0x10))?;
        a.nop()
    });
    assert_eq!(cpu.gpr(0) & 0xffff, 0x1234);
    let mut bytes = [0; 2];
    cpu.memory.read(0x8010, &mut bytes).expect("is RAM");
    assert_eq!(bytes, [0x34, 0x12]);
}

#[test]
fn sixteen_bit_stack_pointers_wrap() {
    let mut state = real_state();
    state.gprs[4] = 0xabcd_0000;
    let cpu = run_steps(&state, 16, 1, |a| a.push(ax));
    assert_eq!(cpu.gpr(4), 0xabcd_fffe);
}

#[test]
fn thirty_two_bit_results_clear_the_upper_half() {
    let mut state = long_state();
    state.gprs[0] = u64::MAX;
    state.gprs[3] = u64::MAX;
    let cpu = run_steps(&state, 64, 3, |a| {
        a.mov(al, 1)?;
        a.mov(bx, 2)?;
        a.add(ebx, 1)
    });
    assert_eq!(cpu.gpr(0), 0xffff_ffff_ffff_ff01);
    assert_eq!(cpu.gpr(3), 0xffff_0003);
}

#[test]
fn overlapping_forward_moves_repeat_the_source() {
    let mut state = long_state();
    state.gprs[6] = DATA;
    state.gprs[7] = DATA + 1;
    state.gprs[1] = 5000;
    let mut cpu = run_steps(&state, 64, 2, |a| {
        a.mov(byte_ptr(rsi), 0x5a)?;
        a.rep().movsb()
    });
    assert_eq!((cpu.gpr(1), cpu.gpr(6), cpu.gpr(7)), (0, DATA + 5000, DATA + 5001));
    let mut bytes = vec![0; 5001];
    cpu.memory.read(DATA, &mut bytes).expect("is RAM");
    assert!(bytes.iter().all(|&byte| byte == 0x5a));
    cpu.instructions = 0;
}

#[test]
fn rip_relative_operands_and_calls_work_at_any_address() {
    let cpu = run_steps(&long_state(), 64, 5, |a| {
        let mut function = a.create_label();
        a.call(function)?;
        a.nop()?;
        a.set_label(&mut function)?;
        a.lea(rax, ptr(function))?;
        a.mov(rbx, qword_ptr(rsp))?;
        a.ret()?;
        a.nop()
    });
    assert_eq!(cpu.gpr(3), CODE + 5);
    assert_eq!(cpu.gpr(0), CODE + 6);
    assert_eq!(cpu.gpr(4), STACK);
}

#[test]
fn code_that_rewrites_its_own_next_instruction_runs_the_new_one() {
    let cpu = run_steps(&long_state(), 64, 3, |a| {
        let mut target = a.create_label();
        a.lea(rdi, ptr(target))?;
        // The immediate of the next MOV, one byte after its opcode.
        a.mov(byte_ptr(rdi + 1), 7)?;
        a.set_label(&mut target)?;
        a.mov(eax, 1)?;
        a.nop()
    });
    assert_eq!(cpu.gpr(0), 7);
}

#[test]
fn ports_and_devices_are_called_back() {
    let memory = memory();
    let mut assembler = CodeAssembler::new(32).expect("a legal width");
    let mut program = || -> Result<(), IcedError> {
        assembler.in_(al, 0x42)?;
        assembler.mov(dx, 0x3f8)?;
        assembler.out(dx, al)?;
        assembler.mov(ebx, dword_ptr(0xc000_0012_u32))?;
        assembler.mov(dword_ptr(0xc000_0020_u32), ebx)
    };
    program().expect("a legal program");
    memory.write(CODE, &assembler.assemble(CODE).expect("a legal program")).expect("is RAM");
    let mut cpu = cpu_in(memory, &protected_state());
    let devices = Devices::default();
    assert_eq!(cpu.run(&devices, Some(5)), VmExit::StepsDone);
    assert_eq!(cpu.gpr(3), 0x1212_1212);
    let log = devices.log.into_inner().expect("no panic before");
    assert_eq!(log, [('p', 0x3f8, vec![0x42]), ('m', 0xc000_0020, vec![0x12; 4])]);
}

#[test]
fn steps_are_counted_exactly() {
    let mut cpu = run_steps(&long_state(), 64, 1, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.inc(rbx)?;
        a.jmp(top)
    });
    for steps in [1, 2, 3, 5, 127, 128, 129, 1000, 4096] {
        let before = (cpu.instructions, cpu.gpr(0) + cpu.gpr(3));
        assert_eq!(cpu.run(&Devices::default(), Some(steps)), VmExit::StepsDone);
        assert_eq!(cpu.instructions - before.0, steps);
        assert!(cpu.gpr(0) + cpu.gpr(3) - before.1 >= steps * 2 / 3);
    }
}

#[test]
fn a_saved_state_loads_again() {
    let cpu = run_steps(&long_state(), 64, 2, |a| {
        a.mov(rax, 0x1234_5678_9abc_i64)?;
        a.cmp(rax, 5)
    });
    let saved = cpu.save();
    let mut again = cpu_in(memory(), &saved);
    assert_eq!(again.save(), saved);
    again.set_gpr(0, 0);
    assert_ne!(again.save(), saved);
}

/// Displacements that 32 signed bits do not hold: a bare 64-bit address, and RIP-relative counted from the start of the
/// instruction. FS brings both back to mapped memory.
#[test]
fn wide_displacements_reach_their_address() {
    const FAR: u64 = 0x1234_5678_9abc_def0;
    let with_fs = |base: u64| {
        let mut state = long_state();
        state.segments.fs.base = base;
        state.gprs[0] = 0x1122_3344_5566_7788;
        state
    };
    let mut absolute = with_fs(DATA.wrapping_sub(FAR));
    absolute.gprs[1] = DATA;
    let cpu = run_steps(&absolute, 64, 4, |a| {
        a.db(&[0x64, 0x48, 0xa3])?; // mov fs:[FAR], rax
        a.dq(&[FAR])?;
        a.xor(eax, eax)?;
        a.db(&[0x64, 0x66, 0xa1])?; // mov ax, fs:[FAR]
        a.dq(&[FAR])?;
        a.mov(rbx, qword_ptr(rcx))
    });
    assert_eq!((cpu.gpr(0), cpu.gpr(3)), (0x7788, 0x1122_3344_5566_7788));
    let mut relative = with_fs(DATA.wrapping_sub(CODE + 8 + 0x7fff_ffff));
    relative.gprs[1] = DATA;
    let cpu = run_steps(&relative, 64, 2, |a| {
        a.db(&[0x64, 0x48, 0x89, 0x05, 0xff, 0xff, 0xff, 0x7f])?; // mov fs:[rip + 7fffffffh], rax
        a.mov(rbx, qword_ptr(rcx))
    });
    assert_eq!(cpu.gpr(3), 0x1122_3344_5566_7788);
}
