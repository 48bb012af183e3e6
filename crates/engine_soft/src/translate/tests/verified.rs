//! Blocks that are compared with the interpreter while they run.

use super::NoDevices;
use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE, DATA};
use crate::translate::{TranslationCounts, TranslationSettings};
use engine::VmExit;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where two neighbouring accesses lie in two pages.
const BORDER: u64 = DATA + 0xff8;

/// A block of copied instructions that stores around [`BORDER`].
fn stores_on_both_sides() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut on = a.create_label();
    a.mov(rbx, BORDER)?;
    a.mov(eax, 7)?;
    a.jmp(on)?;
    a.nop()?;
    a.set_label(&mut on)?;
    let mut end = a.create_label();
    a.add(rax, 5)?;
    a.mov(qword_ptr(rbx), rax)?;
    a.add(rax, 1)?;
    a.add(qword_ptr(rbx + 8), rax)?;
    a.mov(rcx, qword_ptr(rbx + 8))?;
    a.jmp(end)?;
    a.nop()?;
    a.set_label(&mut end)?;
    a.hlt()?;
    a.assemble(CODE)
}

fn processor() -> Cpu {
    let mut cpu = harness::cpu_in(harness::memory(), &harness::long_state());
    let settings = TranslationSettings { verify: 1, cache_size: 1 << 20, ..TranslationSettings::default() };
    cpu.enable_translation(settings).expect("the host has memory");
    let code = stores_on_both_sides().expect("the program assembles");
    cpu.memory.write(CODE, &code).expect("is RAM");
    cpu
}

/// Puts bytes into code memory until so many more would make it almost full.
fn fill_up(cpu: &mut Cpu, left: usize) {
    const PIECE: [u8; 16] = [0xcc; 16];
    let memory = &mut cpu.translator.as_mut().expect("was made").memory;
    let mut probe = processor();
    let other = &mut probe.translator.as_mut().expect("was made").memory;
    let mut pieces = 0;
    while !other.is_almost_full() {
        assert!(other.add(&PIECE));
        pieces += 1;
    }
    for _ in 0..pieces - left / PIECE.len() {
        assert!(memory.add(&PIECE));
    }
    assert!(!memory.is_almost_full());
}

fn counts(cpu: &Cpu) -> TranslationCounts {
    cpu.translator.as_ref().expect("was made").counts
}

#[test]
fn a_block_is_no_difference_if_code_memory_ends_in_its_middle() {
    let mut roomy = processor();
    assert_eq!(roomy.run(&NoDevices, None), VmExit::Halted);
    let usual = counts(&roomy);
    assert!(usual.verified >= 2, "{usual:?}");
    let mut ended_in_middle = 0;
    for left in (16..2048).step_by(16) {
        let mut cpu = processor();
        fill_up(&mut cpu, left);
        assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted, "{left} bytes left");
        let end = cpu.save();
        assert_eq!((end.gprs[0], end.gprs[1]), (13, 13), "{left} bytes left");
        let mut stored = [0; 16];
        cpu.memory.read(BORDER, &mut stored).expect("is RAM");
        assert_eq!(stored, [12_u64.to_le_bytes(), 13_u64.to_le_bytes()].concat()[..], "{left} bytes left");
        let counts = counts(&cpu);
        let interpreted = counts.single - usual.single;
        assert_eq!(counts.verified + interpreted, usual.verified, "{left} bytes left: {counts:?}");
        ended_in_middle += interpreted;
    }
    assert!(ended_in_middle > 3, "{ended_in_middle}");
}
