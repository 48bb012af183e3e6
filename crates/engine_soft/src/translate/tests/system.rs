//! What is translated of system instructions, against the interpreter.

use super::{NoDevices, compare};
use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE, DATA, STACK, UNMAPPED};
use iced_x86::code_asm::*;
use std::sync::atomic::Ordering;
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
    run_prepared(program, state, |_| {})
}

/// As [`run_both`], after both processors were prepared.
fn run_prepared(
    program: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    state: &x86::CpuState,
    prepare: impl Fn(&mut Cpu),
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
        prepare(cpu);
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
    for number in 0..3 {
        let program = |a: &mut CodeAssembler| match number {
            0 => a.swapgs(),
            1 => a.cli(),
            _ => a.sti(),
        };
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

#[test]
fn kernels_open_interrupts() {
    for waiting in [0, crate::system::MASKABLE] {
        for open_before in [false, true] {
            let mut state = start(0);
            if !open_before {
                state.rflags &= !RFlags::IF.bits();
            }
            let program = |a: &mut CodeAssembler| {
                a.cmp(rbx, rcx)?;
                a.sti()?;
                a.setg(al)?;
                a.adc(rcx, rbx)
            };
            let pair = run_prepared(program, &state, |cpu| cpu.events.store(waiting, Ordering::SeqCst));
            for cpu in &pair {
                assert_ne!(cpu.save().rflags & RFlags::IF.bits(), 0);
                assert_eq!(cpu.event_mask & crate::system::MASKABLE, crate::system::MASKABLE);
                assert_eq!(cpu.shadow, 0, "the shadow is over");
            }
        }
    }
}

/// Interrupts are not taken before the instruction behind STI is complete.
#[test]
fn shadow_of_sti_reaches_into_the_next_block() {
    let program = |a: &mut CodeAssembler| {
        let mut next = a.create_label();
        a.cli()?;
        a.sti()?;
        a.jmp(next)?;
        a.set_label(&mut next)?;
        a.inc(rcx)
    };
    run_prepared(program, &start(0), |cpu| cpu.events.store(crate::system::MASKABLE, Ordering::SeqCst));
}

#[test]
fn pushed_flags_are_those_of_the_processor() {
    for cpl in [0, 3] {
        for (left, right) in [(1_i64, 2), (2, 1), (5, 5), (i64::MIN, 1), (-1, 1), (0x10, 0x0f)] {
            for stack in [STACK, STACK - 4, UNMAPPED + 8, UNMAPPED + 4, 1 << 47] {
                let program = |a: &mut CodeAssembler| {
                    a.cmp(rbx, rcx)?;
                    a.pushfq()?;
                    a.setg(al)?;
                    a.std()?;
                    a.pushfq()?;
                    a.adc(rcx, rbx)?;
                    a.pushfq()
                };
                let mut state = start(cpl);
                (state.gprs[3], state.gprs[1], state.gprs[4]) = (left as u64, right as u64, stack);
                run_both(program, &state);
            }
        }
    }
}

#[test]
fn time_stamps_leave_everything_else_alone() {
    const TSC: u64 = 0xfedc_ba98_7654_3210;
    const RESTRICTED: u64 = 1 << 2;
    let program = |a: &mut CodeAssembler| {
        a.movdqu(xmm3, xmmword_ptr(rbx))?;
        a.fld(dword_ptr(rbx + 4))?;
        a.cmp(rsi, rdi)?;
        a.rdtsc()?;
        a.setb(bl)?;
        a.shl(rdx, 32)?;
        a.or(rdx, rax)?;
        a.push(rdx)?;
        a.rdtscp()?;
        a.push(rcx)?;
        a.push(rax)?;
        a.movq(r12, xmm3)?;
        a.fstp(dword_ptr(rsp - 16))
    };
    for (cpl, restricted) in [(0, false), (0, true), (3, false), (3, true)] {
        let mut state = start(cpl);
        state.cr4 |= if restricted { RESTRICTED } else { 0 };
        state.cr4 |= (x86::Cr4::OSFXSR | x86::Cr4::OSXMMEXCPT).bits();
        for (number, register) in (5..16).zip(&mut state.gprs[5..]) {
            *register = 0x1111_1111_1111_1111 * number;
        }
        let pair = run_prepared(program, &state, |cpu| {
            (cpu.system.msrs.tsc_offset, cpu.system.msrs.tsc_aux) = (TSC, 0x77);
        });
        for cpu in &pair {
            let mut pushed = [0; 8];
            cpu.memory.read(STACK - 8, &mut pushed).expect("is RAM");
            let stamp = u64::from_le_bytes(pushed);
            assert_eq!(stamp, if cpl == 3 && restricted { 0 } else { TSC }, "CPL {cpl}, {restricted}");
        }
    }
}
