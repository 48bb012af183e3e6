//! Instructions that cross the end of a page, which are the interpreter's.

use super::{NoDevices, compare};
use crate::interp::harness::{self, CODE};
use iced_x86::code_asm::*;

/// Where a page ends, from the start of the program.
const END: u64 = 0x1000;
const ROUNDS: u64 = 1000;

/// A loop that starts with an ADD of which so many bytes are in the first page.
fn program(inside: u64) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let mut again = a.create_label();
    let mut assemble = || {
        a.mov(rcx, ROUNDS)?;
        a.xor(rax, rax)?;
        a.jmp(CODE + END - inside)?;
        a.assemble(CODE)
    };
    let mut code = assemble().expect("a legal program");
    code.resize((END - inside) as usize, 0xcc);
    a.reset();
    let mut assemble = || {
        a.set_label(&mut again)?;
        a.add(rax, 0x1234_5678)?;
        a.setc(dl)?;
        a.dec(rcx)?;
        a.jne(again)?;
        a.hlt()?;
        a.assemble(CODE + END - inside)
    };
    code.extend(assemble().expect("a legal program"));
    code
}

#[test]
fn they_are_looked_at_once() {
    for inside in 1..6 {
        let code = program(inside);
        let state = harness::long_state();
        let mut pair = [false, true].map(|translate| {
            let mut cpu = harness::cpu_in(harness::memory(), &state);
            if translate {
                cpu.enable_translation(Default::default()).expect("the host has memory");
            }
            cpu
        });
        let exits = [0, 1].map(|index: usize| {
            let cpu = &mut pair[index];
            cpu.memory.write(CODE, &code).expect("is RAM");
            let mut start = state.clone();
            start.rip = CODE;
            cpu.restore(&start).expect("the state is legal");
            cpu.run(&NoDevices, None)
        });
        let [a, b] = &pair;
        compare(inside, &code, &state, [a, b], exits);
        assert_eq!(pair[0].save().gprs[0], 0x1234_5678 * ROUNDS);
        let offset = (CODE + END - inside) & 0xfff;
        let translator = pair[1].translator.as_ref().expect("was enabled");
        assert!(
            translator.blocks.keys().any(|key| key & 0xffff == offset),
            "nobody looks at what starts at {offset:#x} again"
        );
    }
}
