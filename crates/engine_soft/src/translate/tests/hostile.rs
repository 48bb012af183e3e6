//! Guests that try to get out, to hang, or to change code under the translator.

use super::{NoDevices, compare};
use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE, DATA, UNMAPPED};
use crate::system::event;
use engine::VmExit;
use iced_x86::code_asm::*;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn pair() -> [Cpu; 2] {
    let start = harness::long_state();
    let interpreted = harness::cpu_in(harness::memory(), &start);
    let mut translated = harness::cpu_in(harness::memory(), &start);
    translated.enable_translation(Default::default()).expect("the host has memory");
    [interpreted, translated]
}

/// Runs a program on both and compares the ends.
fn run_both(pair: &mut [Cpu; 2], code: &[u8], state: &x86::CpuState) -> VmExit {
    let exits = [0, 1].map(|index: usize| {
        let cpu = &mut pair[index];
        cpu.memory.write(CODE, code).expect("is RAM");
        cpu.restore(state).expect("the state is legal");
        cpu.run(&NoDevices, None)
    });
    let exit = exits[0].clone();
    let [a, b] = &*pair;
    compare(0, code, state, [a, b], exits);
    exit
}

#[test]
fn wild_addresses_fault_as_in_the_interpreter() {
    let mut pair = pair();
    let own = &raw const pair[1] as u64;
    let code = pair[1].translator.as_ref().map_or(0, |translator| translator.thunks.enter);
    let ram = pair[1].memory.regions()[0].host_address() as u64;
    let wild = [
        own,
        code,
        ram,
        UNMAPPED + 1,
        UNMAPPED,
        UNMAPPED - 1,
        UNMAPPED - 8,
        0x7fff_ffff_fff8,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        0xffff_ffff_ffff_fffc,
        0xdead_beef_0000_0000,
        DATA | 1 << 48,
        DATA | 1 << 63,
    ];
    for address in wild {
        for form in 0..11 {
            let mut a = CodeAssembler::new(64).expect("64 is a mode");
            match form {
                0 => a.mov(rcx, qword_ptr(rbx)),
                1 => a.mov(qword_ptr(rbx), rcx),
                2 => a.mov(byte_ptr(rbx + rdi * 8 - 16), cl),
                3 => a.movups(xmmword_ptr(rbx), xmm1),
                4 => a.push(qword_ptr(rbx)),
                5 => a.jmp(rbx),
                6 => a.lock().add(qword_ptr(rbx), rcx),
                7 => a.mov(rcx, qword_ptr(rbx + 24)).and_then(|()| a.mov(rdx, qword_ptr(rbx))),
                8 => a.mov(rcx, qword_ptr(rbx - 72)).and_then(|()| a.mov(qword_ptr(rbx), rdx)),
                9 => a
                    .sub(rbx, -64)
                    .and_then(|()| a.mov(rcx, qword_ptr(rbx - 64)))
                    .and_then(|()| a.add(rcx, qword_ptr(rbx))),
                _ => a.mov(rsp, rbx).and_then(|()| a.push(rax)),
            }
            .expect("the form exists");
            a.hlt().expect("HLT exists");
            let code = a.assemble(CODE).expect("the program assembles");
            let mut state = harness::long_state();
            state.gprs[3] = address;
            state.gprs[7] = 2;
            run_both(&mut pair, &code, &state);
        }
    }
}

#[test]
fn an_instruction_may_change_the_next_one() {
    let mut pair = pair();
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let (mut top, mut patched) = (a.create_label(), a.create_label());
    a.mov(ecx, 50).expect("exists");
    a.set_label(&mut top).expect("once");
    a.lea(rbx, ptr(patched)).expect("exists");
    // Both share a check, but not while the page holds code.
    a.mov(byte_ptr(rbx + 2), 0).expect("exists");
    a.mov(byte_ptr(rbx + 1), cl).expect("exists");
    a.set_label(&mut patched).expect("once");
    a.mov(eax, 0).expect("exists");
    a.add(rdx, rax).expect("exists");
    a.dec(ecx).expect("exists");
    a.jne(top).expect("exists");
    a.hlt().expect("exists");
    let code = a.assemble(CODE).expect("the program assembles");
    let mut state = harness::long_state();
    state.gprs[2] = 0;
    assert_eq!(run_both(&mut pair, &code, &state), VmExit::Halted);
    assert_eq!(pair[1].gpr(2), (1..=50).sum::<u64>(), "each round ran what it had written");
}

#[test]
fn an_x87_store_to_code_was_the_last_x87_instruction() {
    let mut pair = pair();
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    a.fld1().expect("exists");
    a.fld1().expect("exists");
    a.fstp(qword_ptr(rbx)).expect("exists");
    a.hlt().expect("exists");
    let code = a.assemble(CODE).expect("the program assembles");
    let mut state = harness::long_state();
    state.gprs[3] = CODE + 0x800;
    assert_eq!(run_both(&mut pair, &code, &state), VmExit::Halted);
    assert_eq!(pair[1].fpu.fip(), CODE + 4, "the store's address");
}

#[test]
fn code_changed_by_a_device_is_translated_anew() {
    let [_, mut cpu] = pair();
    for value in 1..20_u8 {
        // mov eax, value; hlt
        cpu.memory.write(CODE, &[0xb8, value, 0, 0, 0, 0xf4]).expect("is RAM");
        cpu.restore(&harness::long_state()).expect("the state is legal");
        assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
        assert_eq!(cpu.gpr(0), u64::from(value));
    }
}

#[test]
fn a_kick_ends_every_kind_of_loop() {
    let loops: [&[u8]; 4] = [
        // jmp itself
        &[0xeb, 0xfe],
        // dec rcx; jmp back
        &[0x48, 0xff, 0xc9, 0xeb, 0xfb],
        // lea rax, [rip]; jmp rax
        &[0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xff, 0xe0],
        // pop rax; push rax; push rax; ret, with the address of itself on the stack
        &[0x58, 0x50, 0x50, 0xc3],
    ];
    for code in loops {
        let [_, mut cpu] = pair();
        cpu.memory.write(CODE, code).expect("is RAM");
        let mut state = harness::long_state();
        cpu.memory.write(state.gprs[4], &CODE.to_le_bytes()).expect("is RAM");
        state.gprs[0] = CODE;
        cpu.restore(&state).expect("the state is legal");
        let events = std::sync::Arc::clone(&cpu.events);
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            events.fetch_or(event::KICK, Ordering::SeqCst);
        });
        assert_eq!(cpu.run(&NoDevices, None), VmExit::Kicked, "{code:x?}");
        kicker.join().expect("the kicker does not panic");
        let rip = cpu.rip();
        assert!((CODE..CODE + 16).contains(&rip), "RIP is in the loop: {rip:x}");
    }
}

#[test]
fn a_full_cache_is_emptied_and_filled_again() {
    let start = harness::long_state();
    let mut cpu = harness::cpu_in(harness::memory(), &start);
    let settings = crate::translate::TranslationSettings { cache_size: 1 << 20, ..Default::default() };
    cpu.enable_translation(settings).expect("the host has memory");
    // Each round is new code: mov eax, n; 200 times add rax, rax; hlt.
    for round in 0..4000_u32 {
        let mut code = vec![0xb8];
        code.extend_from_slice(&round.to_le_bytes());
        for _ in 0..40 {
            code.extend_from_slice(&[0x48, 0x83, 0xc0, 1]);
        }
        // The page shall not rest.
        cpu.translator.as_mut().expect("was enabled").pages.clear();
        code.push(0xf4);
        cpu.memory.write(CODE, &code).expect("is RAM");
        cpu.restore(&start).expect("the state is legal");
        assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
        assert_eq!(cpu.gpr(0), u64::from(round) + 40);
    }
    let counts = cpu.translator.as_ref().map(|translator| translator.counts).unwrap_or_default();
    assert!(counts.flushes > 0, "{counts:?}");
}

#[test]
fn code_that_rewrites_its_own_page_is_not_translated_again_and_again() {
    let mut pair = pair();
    // add [rax], al up to the end of the page, then over it; RAX points into the page.
    let mut code = vec![0; 0x1000];
    code.extend_from_slice(&[0xff, 0xc9, 0x0f, 0x85, 0xf8, 0xef, 0xff, 0xff, 0xf4]);
    let mut state = harness::long_state();
    state.gprs[0] = CODE | 1 << 8;
    state.gprs[1] = 3;
    assert_eq!(run_both(&mut pair, &code, &state), VmExit::Halted);
    let counts = pair[1].translator.as_ref().map(|translator| translator.counts).unwrap_or_default();
    assert!(counts.rests > 1000 && counts.blocks < 200, "{counts:?}");
}

#[test]
fn a_page_that_no_longer_changes_is_translated_again() {
    let [_, mut cpu] = pair();
    let start = harness::long_state();
    // mov [rip + 1], cl; mov eax, CL; add edx, eax; dec ecx; jne back; then a loop of a million; hlt
    let code = [
        0x88, 0x0d, 0x01, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0x01, 0xc2, 0xff, 0xc9, 0x75, 0xef, 0xb9, 0x40, 0x42,
        0x0f, 0, 0x01, 0xc2, 0xff, 0xc9, 0x75, 0xfa, 0xf4,
    ];
    cpu.memory.write(CODE, &code).expect("is RAM");
    let mut state = start;
    (state.gprs[1], state.gprs[2]) = (200, 0);
    cpu.restore(&state).expect("the state is legal");
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
    assert_eq!(cpu.gpr(2), (1..=200).sum::<u64>() + 1_000_000, "each round ran what it had written");
    let counts = cpu.translator.as_ref().map(|translator| translator.counts).unwrap_or_default();
    assert!(counts.rests > 0 && counts.single < 10_000, "{counts:?}");
}
