//! The copy of the stack's TLB entry, against the interpreter, which has none.

use super::pages::{LINEAR, memory, physical};
use super::{NoDevices, compare};
use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// The page of the stack, another one, and the one through which the table of both can be changed.
const STACK: u64 = 8;
const OTHER: u64 = 9;
const TABLE: u64 = 1;
/// Guest-physical address of that table.
const TABLE_AT: u64 = 0x31_1000;
const CR0_WP: u64 = 1 << 16;

fn at(page: u64) -> u64 {
    LINEAR + (page << 12)
}

/// Runs a program on both; gives the processors.
pub(super) fn run_both(
    program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
    change: impl Fn(&mut x86::CpuState),
) -> [Cpu; 2] {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    program(&mut a).and_then(|()| a.hlt()).expect("a legal program");
    let code = a.assemble(CODE).expect("a legal program");
    let mut state = harness::long_state();
    state.gprs[4] = at(STACK) + 0x800;
    change(&mut state);
    let mut pair = [false, true].map(|translate| {
        let memory = memory();
        memory.write(TABLE_AT + 8 * TABLE, &(TABLE_AT | 3).to_le_bytes()).expect("is RAM");
        memory.write(CODE, &code).expect("is RAM");
        let mut cpu = harness::cpu_in(memory, &state);
        if translate {
            cpu.enable_translation(Default::default()).expect("the host has memory");
        }
        cpu
    });
    let exits = [0, 1].map(|index: usize| pair[index].run(&NoDevices, None));
    let [a, b] = &pair;
    compare(0, &code, &state, [a, b], exits);
    assert_eq!(a.save().cr2, b.save().cr2);
    for page in [STACK - 1, STACK, OTHER] {
        let [a, b] = [&pair[0], &pair[1]].map(|cpu| {
            let mut bytes = vec![0; 0x1000];
            cpu.memory.read(physical(page), &mut bytes).expect("is RAM");
            bytes
        });
        assert!(a == b, "page {page} differs");
    }
    pair
}

#[test]
fn it_follows_the_page_tables() {
    for by_cr3 in [false, true] {
        for entry in [physical(OTHER) | 3, physical(STACK) | 1, 0] {
            let program = |a: &mut CodeAssembler| {
                a.push(rcx)?;
                a.pop(rdx)?;
                a.mov(rax, at(TABLE) + 8 * STACK)?;
                a.mov(qword_ptr(rax), rbx)?;
                if by_cr3 {
                    a.mov(rax, cr3)?;
                    a.mov(cr3, rax)?;
                } else {
                    a.invlpg(ptr(rsp))?;
                }
                a.push(rsi)?;
                a.mov(rax, at(OTHER) + 0x7f8)?;
                a.mov(r8, qword_ptr(rax))
            };
            let pair = run_both(program, |state| {
                (state.gprs[1], state.gprs[3], state.gprs[6]) = (0x1111, entry, 0x2222);
                state.cr0 |= CR0_WP;
            });
            let faults = entry != physical(OTHER) | 3;
            let end = pair[1].save();
            assert_eq!(end.gprs[2], 0x1111);
            assert_eq!(end.cr2 == at(STACK) + 0x7f8, faults, "{:#x}", end.cr2);
            assert_eq!(end.gprs[8] == 0x2222, !faults);
        }
    }
}

/// The entry is there when the stack pointer goes elsewhere, or is not there any more.
#[test]
fn wild_stack_pointers_fault_as_ever() {
    let mut wild =
        vec![0, 8, 4, 0x7f8, 1 << 47, 1 << 63, u64::MAX, u64::MAX - 7, at(STACK) ^ 1 << 63, LINEAR];
    wild.extend([at(STACK), at(STACK) + 4, at(STACK) + 8, at(STACK) + 0xf80, at(OTHER) + 1, at(OTHER)]);
    for pointer in wild {
        for forget in [false, true] {
            let program = |a: &mut CodeAssembler| {
                a.push(rcx)?;
                if forget {
                    a.invlpg(ptr(rsp))?;
                }
                a.mov(rsp, pointer)?;
                a.push(rcx)?;
                a.push(word_ptr(rsp + 1))?;
                a.movzx(edx, byte_ptr(rsp - 1))?;
                a.mov(byte_ptr(rsp - 1), cl)?;
                a.pop(ax)?;
                a.ret()
            };
            run_both(program, |state| state.gprs[1] = 0x1122_3344_5566_7788);
        }
    }
}
