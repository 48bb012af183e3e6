//! What is translated of system instructions, against the interpreter.

use super::{NoDevices, compare};
use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE, DATA, STACK, UNMAPPED};
use iced_x86::code_asm::*;
use x86::{RFlags, SegmentAttributes};

/// The harness's processor, interpreted and translated, with all of its pages open to CPL 3.
fn pair() -> [Cpu; 2] {
    [false, true].map(|translate| {
        let memory = harness::memory();
        let root = harness::long_state().cr3;
        for table in 0..4 {
            for entry in 0..512 {
                let at = root + 0x1000 * table + 8 * entry;
                let mut bytes = [0; 8];
                memory.read(at, &mut bytes).expect("is RAM");
                bytes[0] |= if bytes[0] & 1 != 0 { 4 } else { 0 };
                memory.write(at, &bytes).expect("is RAM");
            }
        }
        let mut cpu = harness::cpu_in(memory, &harness::long_state());
        if translate {
            cpu.enable_translation(Default::default()).expect("the host has memory");
        }
        cpu
    })
}

fn run_both(
    program: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    state: &x86::CpuState,
) -> [Cpu; 2] {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    program(&mut a).and_then(|()| a.hlt()).expect("a legal program");
    let code = a.assemble(CODE).expect("a legal program");
    let mut pair = pair();
    let exits = [0, 1].map(|index: usize| {
        let cpu = &mut pair[index];
        cpu.memory.write(CODE, &code).expect("is RAM");
        cpu.memory.write(DATA, &(0..=255).collect::<Vec<u8>>()).expect("is RAM");
        cpu.restore(state).expect("the state is legal");
        cpu.run(&NoDevices, None)
    });
    let [a, b] = &pair;
    compare(0, &code, state, [a, b], exits);
    let [a, b] = [&pair[0], &pair[1]].map(Cpu::save);
    assert_eq!((a.segments.gs.base, a.rflags), (b.segments.gs.base, b.rflags));
    let bases = [&pair[0], &pair[1]].map(|cpu| cpu.system.msrs.kernel_gs_base);
    assert_eq!(bases[0], bases[1]);
    let events = [&pair[0], &pair[1]].map(|cpu| cpu.event_mask);
    assert_eq!(events[0], events[1]);
    let stacks = [&pair[0], &pair[1]].map(|cpu| {
        let mut bytes = vec![0; 0x400];
        cpu.memory.read(STACK - 0x400, &mut bytes).expect("is RAM");
        bytes
    });
    assert!(stacks[0] == stacks[1], "stacks differ");
    pair
}

fn start(cpl: u16) -> x86::CpuState {
    let mut state = harness::long_state();
    state.rflags = 2 | (RFlags::IF | RFlags::CF | RFlags::SF).bits();
    state.segments.gs.base = DATA + 0x40;
    state.gprs[3] = DATA;
    if cpl == 3 {
        state.segments.cs.selector |= 3;
        state.segments.cs.attributes = SegmentAttributes(0xa0fb);
        state.segments.ss.selector |= 3;
        state.segments.ss.attributes = SegmentAttributes(0xc0f3);
    }
    state
}

#[test]
fn kernels_swap_bases_and_close_interrupts() {
    let program = |a: &mut CodeAssembler| {
        a.cmp(rbx, rcx)?;
        a.swapgs()?;
        a.setg(al)?;
        a.mov(rdx, qword_ptr(8).gs())?;
        a.swapgs()?;
        a.push(qword_ptr(8).gs())?;
        a.cli()?;
        a.adc(rcx, rbx)
    };
    let pair = run_both(program, &start(0));
    for cpu in &pair {
        let end = cpu.save();
        assert_eq!(end.segments.gs.base, DATA + 0x40);
        assert_eq!(end.rflags & RFlags::IF.bits(), 0);
        let mut word = [0; 8];
        cpu.memory.read(end.gprs[4], &mut word).expect("is RAM");
        assert_eq!(u64::from_le_bytes(word), 0x4f4e_4d4c_4b4a_4948);
    }
}

#[test]
fn programs_may_not() {
    for number in 0..2 {
        let program = |a: &mut CodeAssembler| if number == 0 { a.swapgs() } else { a.cli() };
        let state = start(3);
        let pair = run_both(program, &state);
        for cpu in &pair {
            let end = cpu.save();
            assert_eq!((end.rip, end.segments.gs.base), (CODE, DATA + 0x40), "it faults");
            assert_ne!(end.rflags & RFlags::IF.bits(), 0);
        }
    }
}

#[test]
fn pushes_of_memory_fault_before_they_change_anything() {
    for (from, stack) in [
        (DATA, STACK),
        (DATA + 0xffc, STACK),
        (UNMAPPED, STACK),
        (UNMAPPED - 4, STACK),
        (DATA, UNMAPPED + 8),
        (DATA, UNMAPPED + 4),
        (DATA, 1 << 47),
        (1 << 47, STACK),
        (STACK - 8, STACK),
    ] {
        let program = |a: &mut CodeAssembler| {
            a.add(rcx, 1)?;
            a.push(qword_ptr(rbx))?;
            a.push(qword_ptr(rbx + rcx * 8 - 8))?;
            a.setc(dl)
        };
        let mut state = start(0);
        (state.gprs[3], state.gprs[4]) = (from, stack);
        run_both(program, &state);
    }
    let mut state = start(0);
    state.gprs[4] = STACK - 0x20;
    state.gprs[13] = DATA + 16;
    run_both(|a| a.push(qword_ptr(rsp + 8)).and_then(|()| a.push(qword_ptr(r13))), &state);
}
