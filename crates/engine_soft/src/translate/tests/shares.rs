//! Accesses that share a check: programs that move pointers about and reach memory close to them.

use super::{Random, differential_of};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Registers that hold addresses at the start.
const POINTERS: [AsmRegister64; 4] = [rbx, rbp, r12, r14];
const DATA: [AsmRegister64; 5] = [rax, rcx, rdx, rsi, r13];

fn step(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let pointer = POINTERS[random.below(4) as usize];
    let other = POINTERS[random.below(4) as usize];
    let data = DATA[random.below(5) as usize];
    let near = random.below(240) as i32 - 120;
    let far = if random.chance(10) { near * 40 } else { near };
    match random.below(30) {
        0 => a.add(pointer, near),
        1 => a.sub(pointer, far),
        2 => a.lea(pointer, other + far),
        3 => a.mov(pointer, other),
        4 => a.inc(pointer),
        5 => a.dec(pointer),
        6 => a.lea(pointer, other + r9 + near),
        7 => a.xchg(pointer, other),
        8 => a.and(pointer, -16),
        9 => a.mov(data, qword_ptr(pointer + r9 * 2 + near)),
        10 => a.mov(qword_ptr(pointer + r9 + near), data),
        11 => a.movups(xmmword_ptr(pointer + far), xmm1),
        12 => a.paddb(xmm1, xmmword_ptr(pointer + (far & !15))),
        13 => a.push(data),
        14 => a.push(pointer),
        15 => a.pop(data),
        16 => a.mov(data, qword_ptr(rsp - random.below(64))),
        17 => a.mov(qword_ptr(rsp + random.below(64)), data),
        18 => a.adc(data, rdi),
        19 => a.sbb(qword_ptr(pointer + near), data),
        20 => a.cmp(data, rdi),
        21 => a.rol(r13d, 5),
        22 => a.add(r13, data),
        23 => a.enter(16, 0).and_then(|()| a.mov(rax, qword_ptr(rbp - 8))).and_then(|()| a.leave()),
        24 => {
            let mut over = a.create_label();
            a.jb(over)?;
            a.mov(qword_ptr(pointer + near), data)?;
            a.set_label(&mut over)
        }
        25 => a.add(dword_ptr(pointer + near), eax),
        26 => a.adc(data, qword_ptr(pointer + near)),
        _ => a.mov(data, qword_ptr(pointer + far)),
    }
}

fn program(random: &mut Random) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    for _ in 0..6 + random.below(30) {
        step(&mut a, random).expect("the form exists");
    }
    // RBP may have been a frame pointer; a label must have an instruction.
    a.nop().expect("NOP exists");
    a.hlt().expect("HLT exists");
    a.assemble(0).expect("the program assembles")
}

#[test]
fn pointers_that_move_about_lead_where_they_lead_in_the_interpreter() {
    differential_of(6000, 0x5555_1234_9abc_def1, program);
}
