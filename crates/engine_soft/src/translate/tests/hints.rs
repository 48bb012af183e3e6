//! Hints, against the interpreter, which has none.

use super::pages::{LINEAR, physical};
use super::stack::run_both;
use iced_x86::code_asm::*;

/// Two pages, and the one through which the table of both can be changed.
const DATA: u64 = LINEAR + (8 << 12);
const OTHER: u64 = LINEAR + (9 << 12);
const TABLE: u64 = LINEAR + (1 << 12);
const CR0_WP: u64 = 1 << 16;

/// An entry of the TLB that nothing matches, or no store, holds the address of page 0 or 1.
#[test]
fn the_first_pages_are_not_found_by_empty_entries() {
    for address in [0_u64, 8, 0xff0, 0xff8, 0xffc, 0x1000, 0x1008, 0x1ff8, 0x1ffc, 0x2000] {
        for forget in [false, true] {
            for read_only in [false, true] {
                let entry = physical(8) | if read_only { 1 } else { 3 };
                run_both(
                    |a| {
                        // The hint of RBX is the page's entry, without the right to store if it is read only.
                        a.mov(rax, TABLE + 8 * 8)?;
                        a.mov(qword_ptr(rax), rsi)?;
                        a.invlpg(ptr(rbx))?;
                        a.mov(rcx, qword_ptr(rbx + 16))?;
                        if forget {
                            a.invlpg(ptr(rbx))?;
                        }
                        a.mov(rbx, address)?;
                        a.mov(rdx, qword_ptr(rbx))?;
                        a.mov(qword_ptr(rbx), rdi)?;
                        a.mov(r8, qword_ptr(rbx))?;
                        a.mov(rbx, DATA)?;
                        a.mov(qword_ptr(rbx + 24), rdi)
                    },
                    |state| {
                        (state.gprs[3], state.gprs[6], state.gprs[7]) = (DATA, entry, 0x1122_3344_5566_7788);
                        state.cr0 |= CR0_WP;
                    },
                );
            }
        }
    }
}

/// What a hint leads to is another page's, has lost a right, or is gone.
#[test]
fn they_follow_the_page_tables() {
    for entry in [physical(9) | 3, physical(8) | 1, physical(8) | 3, 0] {
        for by_cr3 in [false, true] {
            run_both(
                |a| {
                    a.mov(qword_ptr(rbx), rdi)?;
                    a.mov(rax, TABLE + 8 * 8)?;
                    a.mov(qword_ptr(rax), rsi)?;
                    if by_cr3 {
                        a.mov(rax, cr3)?;
                        a.mov(cr3, rax)?;
                    } else {
                        a.invlpg(ptr(rbx))?;
                    }
                    a.mov(rcx, qword_ptr(rbx))?;
                    a.mov(qword_ptr(rbx + 8), rcx)?;
                    a.mov(r8, OTHER)?;
                    a.mov(r9, qword_ptr(r8))
                },
                |state| {
                    (state.gprs[3], state.gprs[6], state.gprs[7]) = (DATA, entry, 0x1122_3344_5566_7788);
                    state.cr0 |= CR0_WP;
                },
            );
        }
    }
}

/// A check that goes to another page each time does without; and all is as before.
#[test]
fn one_that_always_misses_is_given_up() {
    let pair = run_both(
        |a| {
            let mut again = a.create_label();
            let mut other = a.create_label();
            a.set_label(&mut again)?;
            a.xor(rbx, (OTHER ^ DATA) as i32)?;
            a.jmp(other)?;
            a.set_label(&mut other)?;
            a.add(qword_ptr(rbx), rcx)?;
            a.mov(rdx, qword_ptr(rbx + 8))?;
            a.add(rax, rdx)?;
            a.sub(rcx, 1)?;
            a.jne(again)
        },
        |state| (state.gprs[1], state.gprs[3]) = (3_000_000, DATA),
    );
    let given_up = pair[1].translator.as_ref().map_or(0, |translator| translator.counts.hints_given_up);
    assert!(given_up > 0, "checks that always miss still have hints");
}
