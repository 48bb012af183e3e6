//! Flags that are not saved because a jump leads to where they are replaced.

use super::{NoDevices, compare};
use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE, DATA, UNMAPPED};
use crate::system::event;
use engine::VmExit;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const ARITHMETIC: u64 = 0x8d5;

/// Loads bytes from RBX on, one after the other if `moving`, up to RCX = R8. Flags of the comparison with RDX are alive at
/// the jump back to the start, and replaced behind it. That block is not the one that jumps.
fn walk(moving: bool) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let (mut head, mut body, mut end) = (a.create_label(), a.create_label(), a.create_label());
    let mut assemble = || {
        a.set_label(&mut head)?;
        a.inc(rcx)?;
        a.cmp(rcx, r8)?;
        a.je(end)?;
        a.jmp(body)?;
        a.set_label(&mut end)?;
        a.hlt()?;
        a.set_label(&mut body)?;
        a.cmp(ecx, edx)?;
        if moving {
            a.movzx(esi, byte_ptr(rbx + rcx))?;
        } else {
            a.movzx(esi, byte_ptr(rbx))?;
        }
        a.jmp(head)
    };
    assemble().expect("a legal program");
    a.assemble(CODE).expect("a legal program")
}

fn processor(code: &[u8], state: &x86::CpuState, translate: bool) -> Cpu {
    let memory = harness::memory();
    memory.write(CODE, code).expect("is RAM");
    let mut cpu = harness::cpu_in(memory, state);
    if translate {
        cpu.enable_translation(Default::default()).expect("the host has memory");
    }
    cpu
}

fn state(limit: u64) -> x86::CpuState {
    let mut state = harness::long_state();
    (state.gprs[1], state.gprs[2], state.gprs[3], state.gprs[8]) = (u64::MAX, 1000, DATA, limit);
    state
}

/// Flags of `cmp left, right` by the manual's definitions.
fn compared(left: u32, right: u32) -> u64 {
    let (difference, borrow) = left.overflowing_sub(right);
    let overflow = (left as i32).overflowing_sub(right as i32).1;
    u64::from(borrow)
        | u64::from((difference as u8).count_ones().is_multiple_of(2)) << 2
        | u64::from(left & 15 < right & 15) << 4
        | u64::from(difference == 0) << 6
        | u64::from(difference >> 31) << 7
        | u64::from(overflow) << 11
}

#[test]
fn a_fault_behind_a_jump_back_has_them() {
    // Up to the end of what is mapped, and not as far.
    for limit in [u64::MAX, UNMAPPED - DATA, 5] {
        let (code, state) = (walk(true), state(limit));
        let mut pair = [false, true].map(|translate| processor(&code, &state, translate));
        let exits = [0, 1].map(|index: usize| pair[index].run(&NoDevices, None));
        let [a, b] = &pair;
        compare(0, &code, &state, [a, b], exits);
    }
}

#[test]
fn an_event_at_a_jump_back_finds_them() {
    let (code, state) = (walk(false), state(u64::MAX));
    let mut seen = 0;
    for _ in 0..40 {
        let mut cpu = processor(&code, &state, true);
        let events = Arc::clone(&cpu.events);
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(500));
            events.fetch_or(event::KICK, Ordering::SeqCst);
        });
        assert_eq!(cpu.run(&NoDevices, None), VmExit::Kicked);
        kicker.join().expect("the kicker does not panic");
        let end = cpu.save();
        if end.rip == CODE && end.gprs[1] != u64::MAX {
            seen += 1;
            assert_eq!(end.rflags & ARITHMETIC, compared(end.gprs[1] as u32, 1000), "{end:x?}");
        }
    }
    assert!(seen > 10, "{seen} of 40 kicks came at the jump");
}

/// Compared with a register that is kept in memory, in any order, before a load that faults.
#[test]
fn comparisons_with_registers_in_memory_are_made_again() {
    type Compare = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let comparisons: [Compare; 6] = [
        |a| a.test(r11b, spl),
        |a| a.cmp(r13, rsp),
        |a| a.cmp(rsp, r15),
        |a| a.cmp(r11d, ecx),
        |a| a.cmp(r8w, r13w),
        |a| a.cmp(r15, 0x1234),
    ];
    for comparison in comparisons {
        let mut a = CodeAssembler::new(64).expect("64 is a mode");
        let mut assemble = || {
            comparison(&mut a)?;
            a.mov(eax, dword_ptr(rbx))?;
            a.test(edi, edi)?;
            a.hlt()
        };
        assemble().expect("a legal program");
        let code = a.assemble(CODE).expect("a legal program");
        let mut state = state(0x8000_1234);
        (state.gprs[3], state.gprs[11], state.gprs[13], state.gprs[15]) =
            (UNMAPPED, 0x9000_0045, 0x1_0000_9000, 0x1233);
        let mut pair = [false, true].map(|translate| processor(&code, &state, translate));
        let exits = [0, 1].map(|index: usize| pair[index].run(&NoDevices, None));
        let [a, b] = &pair;
        compare(0, &code, &state, [a, b], exits);
    }
}
