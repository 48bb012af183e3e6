//! Predicted returns: programs that return to where they were called from, and to where they were not, against the
//! interpreter, which predicts nothing.

use super::pages::{LINEAR, memory, physical};
use super::{NoDevices, Random, compare};
use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE};
use crate::system::event;
use crate::translate::TranslationSettings;
use engine::VmExit;
use guest_memory::GuestMemory;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use x86::msr;

/// A page of a second stack, and the end of the first one.
const OTHER_STACK: u64 = LINEAR + 0x9800;
const STACK: u64 = LINEAR + 0x8800;
/// The first of two pages of code outside the harness's.
const FAR: u64 = 20;
/// Rounds of a program: translated code is linked in the first ones.
const ROUNDS: u32 = 5;

fn processor(memory: Arc<GuestMemory>, state: &x86::CpuState, translate: bool) -> Cpu {
    let mut cpu = harness::cpu_in(memory, state);
    if translate {
        let settings = TranslationSettings { counted: true, ..Default::default() };
        cpu.enable_translation(settings).expect("the host has memory");
    }
    cpu
}

/// Runs code from [`CODE`] on both; gives how many returns were predicted.
fn run_both(code: &[u8]) -> u64 {
    let state = start();
    let mut pair = [false, true].map(|translate| {
        let memory = memory();
        memory.write(CODE, code).expect("is RAM");
        processor(memory, &state, translate)
    });
    let exits = [0, 1].map(|index: usize| pair[index].run(&NoDevices, None));
    let [a, b] = &pair;
    compare(0, code, &state, [a, b], exits);
    pair[1].shared.counted.returns
}

fn start() -> x86::CpuState {
    let mut state = harness::long_state();
    (state.gprs[2], state.gprs[4]) = (0, STACK);
    state
}

/// A program that runs `body` some times, with subroutines behind it.
fn repeated(
    body: impl Fn(&mut CodeAssembler, &mut [CodeLabel]) -> Result<(), IcedError>,
    subroutines: impl Fn(&mut CodeAssembler, &mut [CodeLabel]) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let mut labels: Vec<_> = (0..8).map(|_| a.create_label()).collect();
    let mut assemble = || {
        let mut again = a.create_label();
        a.mov(ebp, ROUNDS)?;
        a.set_label(&mut again)?;
        body(&mut a, &mut labels)?;
        a.sub(ebp, 1)?;
        a.jne(again)?;
        a.hlt()?;
        subroutines(&mut a, &mut labels)
    };
    assemble().expect("a legal program");
    a.assemble(CODE).expect("a legal program")
}

#[test]
fn recursion_returns_from_any_depth() {
    // Deeper than the frames that are kept, too.
    for depth in [1, 3, 100, 511, 512, 513, 2000, 4000_u32] {
        let code = repeated(
            |a, labels| {
                a.mov(ecx, depth)?;
                a.call(labels[0])
            },
            |a, labels| {
                a.set_label(&mut labels[0])?;
                a.add(rax, rcx)?;
                a.sub(ecx, 1)?;
                a.je(labels[1])?;
                a.call(labels[0])?;
                a.lea(rdx, qword_ptr(rdx + rax * 2 + 1))?;
                a.set_label(&mut labels[1])?;
                a.ret()
            },
        );
        let predicted = run_both(&code);
        let kept = u64::from(depth.min(300));
        assert!(predicted >= 2 * kept, "{predicted} of {ROUNDS} times {depth} returns were predicted");
    }
}

#[test]
fn calls_through_registers_and_memory_return() {
    let code = repeated(
        |a, labels| {
            a.lea(rbx, ptr(labels[0]))?;
            a.call(rbx)?;
            a.lea(r13, ptr(labels[1]))?;
            a.call(r13)?;
            a.push(rbx)?;
            a.call(qword_ptr(rsp))?;
            a.add(rsp, 8)?;
            // The operand is where the return address goes.
            a.mov(qword_ptr(rsp - 8), r13)?;
            a.call(qword_ptr(rsp - 8))
        },
        |a, labels| {
            a.set_label(&mut labels[0])?;
            a.add(rax, 3)?;
            a.ret()?;
            a.set_label(&mut labels[1])?;
            a.imul_2(rax, rax)?;
            a.sub(rax, 1)?;
            a.ret_1(0)
        },
    );
    assert!(run_both(&code) > 0);
}

/// More frames than the host's stack could hold, if all were kept.
#[test]
fn recursion_does_not_fill_the_hosts_stack() {
    const DEPTH: u32 = 1_000_000;
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let (mut deeper, mut end) = (a.create_label(), a.create_label());
    let mut assemble = || {
        a.mov(ecx, DEPTH)?;
        a.call(deeper)?;
        a.hlt()?;
        a.set_label(&mut deeper)?;
        a.sub(ecx, 1)?;
        a.je(end)?;
        a.call(deeper)?;
        a.inc(rdx)?;
        a.set_label(&mut end)?;
        a.ret()
    };
    assemble().expect("a legal program");
    let code = a.assemble(CODE).expect("a legal program");
    let memory = memory();
    memory.write(CODE, &code).expect("is RAM");
    let mut state = start();
    state.gprs[4] = LINEAR + (3000 << 12);
    let mut cpu = processor(memory, &state, true);
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
    assert_eq!(cpu.save().gprs[2], u64::from(DEPTH) - 1);
}

/// What a subroutine does to its return address.
#[test]
fn returns_to_elsewhere_get_there() {
    type Change = fn(&mut CodeAssembler, &mut [CodeLabel]) -> Result<(), IcedError>;
    let changes: [Change; 7] = [
        // Returns behind the next instruction.
        |a, _| a.add(qword_ptr(rsp), 4),
        // As a retpoline: calls to have a frame, and returns through another address.
        |a, labels| {
            a.call(labels[2])?;
            a.set_label(&mut labels[3])?;
            a.pause()?;
            a.jmp(labels[3])?;
            a.set_label(&mut labels[2])?;
            a.lea(rdx, ptr(labels[1]))?;
            a.mov(qword_ptr(rsp), rdx)
        },
        // Takes the address, and comes back by a jump.
        |a, _| {
            a.pop(rdx)?;
            a.jmp(rdx)
        },
        // Returns twice: first to the other subroutine.
        |a, labels| {
            a.lea(rdx, ptr(labels[1]))?;
            a.push(rdx)
        },
        // Leaves out its caller.
        |a, labels| {
            a.call(labels[4])?;
            a.hlt()?;
            a.set_label(&mut labels[4])?;
            a.add(rsp, 8)
        },
        // To the call itself, once.
        |a, labels| {
            a.add(rbx, 1)?;
            a.test(bl, 1)?;
            a.je(labels[5])?;
            a.sub(qword_ptr(rsp), 5)?;
            a.set_label(&mut labels[5])
        },
        // Over the end of the address space, where nothing is: the fault is the return's.
        |a, _| a.btc(qword_ptr(rsp), 62),
    ];
    for change in changes {
        let code = repeated(
            |a, labels| {
                a.call(labels[0])?;
                // Four bytes.
                a.add(rax, 7)?;
                a.add(rsi, 1)
            },
            |a, labels| {
                a.set_label(&mut labels[0])?;
                change(a, labels)?;
                a.ret()?;
                a.set_label(&mut labels[1])?;
                a.add(rdi, 5)?;
                a.ret()
            },
        );
        run_both(&code);
    }
}

#[test]
fn two_stacks_take_turns() {
    let code = repeated(
        |a, labels| {
            a.mov(r12, OTHER_STACK)?;
            a.lea(rdx, ptr(labels[1]))?;
            a.mov(qword_ptr(r12), rdx)?;
            a.call(labels[0])?;
            a.add(rax, 1)?;
            a.call(labels[0])?;
            a.add(rax, 2)
        },
        |a, labels| {
            // The switch: returns on the other stack.
            a.set_label(&mut labels[0])?;
            a.add(rbx, 1)?;
            a.xchg(rsp, r12)?;
            a.ret()?;
            // The other thread.
            a.set_label(&mut labels[1])?;
            a.lea(rcx, qword_ptr(rcx + rbx * 4))?;
            a.call(labels[0])?;
            a.jmp(labels[1])
        },
    );
    run_both(&code);
}

#[test]
fn code_behind_a_call_may_change_before_the_return() {
    let code = repeated(
        |a, labels| {
            a.call(labels[0])?;
            a.set_label(&mut labels[1])?;
            // mov al, imm8
            a.mov(al, 0)?;
            a.add(rdx, rax)
        },
        |a, labels| {
            a.set_label(&mut labels[0])?;
            a.mov(byte_ptr(labels[1]) + 1, bpl)?;
            a.ret()
        },
    );
    run_both(&code);
}

/// Another processor, or a device, writes there while the subroutine waits for it.
#[test]
fn code_behind_a_call_may_be_changed_by_others() {
    const READY: u64 = LINEAR + 0x10_0000;
    const DONE: u64 = READY + 8;
    let (ready, done) = (physical(0x100), physical(0x100) + 8);
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let (mut again, mut wait, mut changed) = (a.create_label(), a.create_label(), a.create_label());
    let mut assemble = || {
        a.mov(ebp, ROUNDS)?;
        a.mov(rbx, DONE)?;
        a.mov(rsi, READY)?;
        a.set_label(&mut again)?;
        a.call(wait)?;
        a.set_label(&mut changed)?;
        // mov al, imm8
        a.mov(al, 1)?;
        a.add(rdx, rax)?;
        a.sub(ebp, 1)?;
        a.jne(again)?;
        a.hlt()?;
        a.set_label(&mut wait)?;
        a.mov(qword_ptr(rsi), rbp)?;
        let mut poll = a.create_label();
        a.set_label(&mut poll)?;
        a.cmp(byte_ptr(rbx + rbp), 0)?;
        a.je(poll)?;
        a.ret()
    };
    assemble().expect("a legal program");
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let code = a.assemble_options(CODE, options).expect("a legal program");
    let at = code.label_ip(&changed).expect("it is there");
    let memory = memory();
    memory.write(CODE, &code.inner.code_buffer).expect("is RAM");
    let mut state = start();
    state.gprs[0] = 0;
    let mut cpu = processor(Arc::clone(&memory), &state, true);
    let other = std::thread::spawn(move || {
        for wanted in (1..=u64::from(ROUNDS)).rev() {
            let mut round = [0; 8];
            while u64::from_le_bytes(round) != wanted {
                memory.read(ready, &mut round).expect("is RAM");
                std::thread::yield_now();
            }
            if wanted == 1 {
                memory.write(at + 1, &[100]).expect("is RAM");
            }
            memory.write(done + wanted, &[1]).expect("is RAM");
        }
    });
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
    other.join().expect("the other processor does not panic");
    assert_eq!(cpu.save().gprs[2], u64::from(ROUNDS) - 1 + 100);
}

/// The kernel's frames are not the user's: a user's return to behind a kernel's call faults.
#[test]
fn a_user_does_not_return_into_the_kernel() {
    const KERNEL_ROUNDS: u32 = 10;
    const USER: u64 = 0x5_0000;
    const USER_STACK: u64 = 0x5_1800;
    const KERNEL_STACK: u64 = LINEAR + 0x8800;
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let mut labels: [_; 5] = std::array::from_fn(|_| a.create_label());
    let [again, behind, leave, entry, user] = &mut labels;
    let mut assemble = || {
        a.mov(ebp, KERNEL_ROUNDS + 3)?;
        a.set_label(again)?;
        a.call(*leave)?;
        a.set_label(behind)?;
        a.add(edx, 1)?;
        a.sub(ebp, 1)?;
        a.jne(*again)?;
        a.hlt()?;
        a.set_label(leave)?;
        // The first rounds stay in the kernel.
        a.cmp(ebp, 3)?;
        a.jbe(*user)?;
        a.ret()?;
        a.set_label(user)?;
        a.mov(rcx, USER)?;
        a.mov(r11d, 2)?;
        // The user returns to its next instruction, and in the last round to behind the kernel's call.
        a.mov(rax, USER + 1)?;
        a.lea(rbx, ptr(*behind))?;
        a.cmp(ebp, 1)?;
        a.cmove(rax, rbx)?;
        a.mov(rsp, USER_STACK)?;
        a.mov(qword_ptr(rsp), rax)?;
        a.sysretq()?;
        a.set_label(entry)?;
        a.mov(rsp, KERNEL_STACK)?;
        a.sub(ebp, 1)?;
        a.jmp(*again)
    };
    assemble().expect("a legal program");
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let code = a.assemble_options(CODE, options).expect("a legal program");
    let [behind, entry] = [1, 3].map(|label| code.label_ip(&labels[label]).expect("it is there"));
    // ret; syscall
    let user = [0xc3, 0x0f, 0x05];
    let mut state = start();
    state.set_msr(msr::LSTAR, entry);
    state.set_msr(msr::STAR, 0x1b << 48 | 8 << 32);
    let mut pair = [false, true].map(|translate| {
        let memory = memory();
        memory.write(CODE, &code.inner.code_buffer).expect("is RAM");
        memory.write(USER, &user).expect("is RAM");
        // The way to the pages of the user.
        for (at, entry) in [
            (0x30_0000, 0x30_1007),
            (0x30_1000, 0x30_2007),
            (0x30_2000, 0x30_3007),
            (0x30_3000 + 8 * (USER >> 12), USER | 7),
            (0x30_3000 + 8 * (USER_STACK >> 12), USER_STACK & !0xfff | 7),
        ] {
            memory.write(at, &u64::to_le_bytes(entry)).expect("is RAM");
        }
        processor(memory, &state, translate)
    });
    let exits = [0, 1].map(|index: usize| pair[index].run(&NoDevices, None));
    let [a, b] = &pair;
    compare(0, &code.inner.code_buffer, &state, [a, b], exits);
    assert!(b.shared.counted.returns > 0);
    assert_eq!((b.save().cr2, b.save().gprs[2]), (behind, u64::from(KERNEL_ROUNDS)));
}

/// The caller's page is mapped elsewhere before the return: other code is behind the call then.
#[test]
fn the_page_behind_a_call_may_change_before_the_return() {
    let call_and_tell = |value: u8| {
        let mut a = CodeAssembler::new(64).expect("64 is a mode");
        let mut assemble = || {
            a.call(rbx)?;
            a.add(rdx, i32::from(value))?;
            a.ret()
        };
        assemble().expect("a legal program");
        a.assemble(LINEAR + (FAR << 12)).expect("a legal program")
    };
    // The page tables' own page of entries for the data.
    const TABLE: u64 = 1;
    const TABLE_AT: u64 = 0x31_1000;
    let entry = LINEAR + (TABLE << 12) + 8 * FAR;
    for by_cr3 in [false, true] {
        let code = repeated(
            |a, labels| {
                a.mov(r12, LINEAR + (FAR << 12))?;
                a.lea(rbx, ptr(labels[0]))?;
                a.mov(r8, entry)?;
                a.mov(r9, physical(FAR) | 3)?;
                a.mov(r10, physical(FAR + 1) | 3)?;
                // Some rounds of nothing new, then the other page.
                for _ in 0..3 {
                    a.call(r12)?;
                }
                a.xchg(r9, r10)?;
                a.call(r12)?;
                a.xchg(r9, r10)?;
                a.mov(qword_ptr(r8), r9)?;
                a.invlpg(ptr(r12))
            },
            |a, labels| {
                a.set_label(&mut labels[0])?;
                a.mov(qword_ptr(r8), r9)?;
                if by_cr3 {
                    a.mov(rax, cr3)?;
                    a.mov(cr3, rax)?;
                } else {
                    a.invlpg(ptr(r12))?;
                }
                a.ret()
            },
        );
        let state = start();
        let ends = [false, true].map(|translate| {
            let memory = memory();
            memory.write(TABLE_AT + 8 * TABLE, &(TABLE_AT | 3).to_le_bytes()).expect("is RAM");
            memory.write(CODE, &code).expect("is RAM");
            for (page, value) in [(FAR, 1), (FAR + 1, 100)] {
                memory.write(physical(page), &call_and_tell(value)).expect("is RAM");
            }
            let mut cpu = processor(memory, &state, translate);
            assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
            cpu.save().gprs[2]
        });
        assert_eq!(ends, [u64::from(ROUNDS) * 103; 2]);
    }
}

/// A tree of calls that all lead forward in one page has more returns than anybody can wait for.
#[test]
fn a_kick_ends_a_tree_of_calls() {
    let mut code = Vec::new();
    for _ in 0..200 {
        // call the next function, twice; ret
        code.extend_from_slice(&[0xe8, 6, 0, 0, 0, 0xe8, 1, 0, 0, 0, 0xc3]);
    }
    code.push(0xc3);
    let memory = memory();
    memory.write(CODE, &code).expect("is RAM");
    let mut cpu = processor(memory, &start(), true);
    let events = Arc::clone(&cpu.events);
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        events.fetch_or(event::KICK, Ordering::SeqCst);
    });
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Kicked);
    kicker.join().expect("the kicker does not panic");
}

/// Random subroutines that call later ones, in several pages, and sometimes return by a jump.
#[test]
fn random_calls_end_as_in_the_interpreter() {
    let mut random = Random(0x1357_9bdf_0246_8ace);
    let mut predicted = 0;
    for case in 0..150 {
        let code = random_program(&mut random).unwrap_or_else(|error| panic!("case {case}: {error}"));
        predicted += run_both(&code);
    }
    assert!(predicted > 1000, "{predicted} returns were predicted");
}

fn random_program(random: &mut Random) -> Result<Vec<u8>, IcedError> {
    const SUBROUTINES: usize = 8;
    let mut a = CodeAssembler::new(64)?;
    let mut labels: Vec<_> = (0..=SUBROUTINES).map(|_| a.create_label()).collect();
    let mut again = a.create_label();
    a.mov(ebp, ROUNDS)?;
    a.set_label(&mut again)?;
    a.call(labels[0])?;
    a.dec(ebp)?;
    a.jne(again)?;
    a.hlt()?;
    for number in 0..SUBROUTINES {
        if random.chance(30) {
            a.nops_with_size(random.below(3000) as usize)?;
        }
        a.set_label(&mut labels[number])?;
        for _ in 0..random.below(4) {
            match random.below(6) {
                0 => a.inc(rax)?,
                1 => a.lea(rdx, qword_ptr(rdx + rax * 2 + 3))?,
                2 => a.adc(rsi, rax)?,
                3 => a.dec(edi)?,
                4 => a.xor(rax, rdx)?,
                _ => a.cmp(rax, rsi)?,
            }
            if random.chance(70) {
                let later = labels[number + 1 + random.below((SUBROUTINES - number) as u64) as usize];
                match random.below(3) {
                    0 => a.call(later)?,
                    1 => {
                        a.lea(r13, ptr(later))?;
                        a.call(r13)?;
                    }
                    _ => {
                        a.lea(rbx, ptr(later))?;
                        a.push(rbx)?;
                        a.call(qword_ptr(rsp))?;
                        a.pop(rbx)?;
                    }
                }
            }
        }
        if random.chance(10) {
            a.pop(r9)?;
            a.jmp(r9)?;
        } else {
            a.ret()?;
        }
    }
    a.set_label(&mut labels[SUBROUTINES])?;
    a.add(r8, rax)?;
    a.ret()?;
    a.assemble(CODE)
}
