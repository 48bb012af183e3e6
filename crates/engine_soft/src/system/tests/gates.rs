//! Call gates (SDM 3A 5.8.3 to 5.8.5) and the gates of the IDT (6.11, 6.12).

use super::rig::*;

const TARGET: u64 = 0x5000;
const GATE: u16 = FREE;
const SEGMENT: u16 = 0x38;
const STACK_SEGMENT: u16 = 0x40;

fn entry(access: u64) -> u64 {
    descriptor(0, 0xf_ffff, access, 0xc)
}

fn far(opcode: u8, selector: u16) -> Vec<u8> {
    [&[opcode, 0xff, 0xff, 0xff, 0xff][..], &selector.to_le_bytes()].concat()
}

fn call() -> Vec<u8> {
    far(0x9a, GATE | 3)
}

/// Figure 5-14: both stacks of a call to an inner level with two parameters.
#[test]
fn calls_to_an_inner_level_copy_parameters() {
    let rig = Rig::user(0);
    rig.describe(GATE, gate(CODE0, TARGET, 0xec, 2));
    rig.put(TARGET, &[0xf4]);
    rig.put32(STACK, 0x1111);
    rig.put32(STACK + 4, 0x2222);
    let ran = rig.run(&call());
    assert_eq!((ran.cpu.rip(), ran.cpu.cpl, ran.cpu.gpr(4)), (TARGET + 1, 0, STACK0 - 24));
    let stack = [CODE as u32 + 7, CODE3.into(), 0x1111, 0x2222, STACK as u32, DATA3.into()];
    assert_eq!(ran.words::<6>(), stack);
    assert_eq!((ran.cpu.segments[1].selector, ran.cpu.segments[2].selector), (CODE0, DATA0));
    // And back, releasing the parameters of both.
    rig.put(TARGET, &[0xca, 8, 0]);
    let ran = rig.run(&[&call()[..], &[0xcd, 0x40]].concat());
    assert_eq!((ran.end(), ran.word(3), ran.word(0)), (End::Vector(0x40), STACK as u32 + 8, CODE as u32 + 9));
    // 31 parameters are the most.
    rig.describe(GATE, gate(CODE0, TARGET, 0xec, 31));
    (0..31).for_each(|at| rig.put32(STACK + 4 * at, at as u32 + 1));
    rig.put(TARGET, &[0xf4]);
    let ran = rig.run(&call());
    assert_eq!((ran.cpu.gpr(4), ran.word(2), ran.word(32)), (STACK0 - 35 * 4, 1, 31));
}

/// A 16-bit gate pushes words and takes 16 bits of its offset.
#[test]
fn sixteen_bit_gates() {
    let rig = Rig::user(0);
    rig.describe(GATE, gate(CODE0, 0xffff_0000 | TARGET, 0xe4, 2));
    rig.put(TARGET, &[0xf4]);
    rig.put16(STACK, 0x1111);
    rig.put16(STACK + 2, 0x2222);
    let ran = rig.run(&call());
    assert_eq!((ran.cpu.rip(), ran.cpu.gpr(4)), (TARGET + 1, STACK0 - 12));
    let halves: [u16; 6] = std::array::from_fn(|at| u16::from_le_bytes(rig.get(STACK0 - 12 + 2 * at as u64)));
    assert_eq!(halves, [CODE as u16 + 7, CODE3, 0x1111, 0x2222, STACK as u16, DATA3]);
}

/// Calls that stay at their level use the current stack and copy nothing.
#[test]
fn calls_at_the_same_level() {
    for (access, selector) in [(0xfb, SEGMENT | 3), (0x9f, SEGMENT)] {
        let rig = Rig::user(0);
        rig.describe(SEGMENT, entry(access));
        rig.describe(GATE, gate(selector, TARGET, 0xec, 5));
        rig.put(TARGET, &[0xcd, 0x40]);
        let ran = rig.run(&call());
        assert_eq!((ran.end(), ran.word(3)), (End::Vector(0x40), STACK as u32 - 8), "{access:#x}");
        assert_eq!((rig.get32(STACK - 8), rig.get32(STACK - 4)), (CODE as u32 + 7, CODE3.into()));
        assert_eq!(ran.frame()[1], u32::from(SEGMENT | 3));
    }
}

/// Gate's access byte and selector, target's access byte: result of CALL, result of JMP.
#[test]
fn checks_of_call_gates() {
    let on = |selector: u16, code| End::Code(code, selector.into());
    let ok = End::Ran;
    let gp0 = End::Code(13, 0);
    for (access, selector, target, by_call, by_jump) in [
        (0xec, SEGMENT, 0x9b, ok, on(SEGMENT, 13)),
        (0xec, SEGMENT, 0x9f, End::Code(13, 0), End::Code(13, 0)),
        (0xec, SEGMENT, 0xbb, ok, on(SEGMENT, 13)),
        // Gate: level, presence.
        (0x8c, SEGMENT, 0x9b, on(GATE, 13), on(GATE, 13)),
        (0x6c, SEGMENT, 0x9b, on(GATE, 11), on(GATE, 11)),
        // Target: null, beyond the table, type, presence.
        (0xec, 0, 0x9b, gp0, gp0),
        (0xec, 3, 0x9b, gp0, gp0),
        (0xec, 0x100, 0x9b, on(0x100, 13), on(0x100, 13)),
        (0xec, SEGMENT, 0x93, on(SEGMENT, 13), on(SEGMENT, 13)),
        (0xec, SEGMENT, 0x82, on(SEGMENT, 13), on(SEGMENT, 13)),
        // A JMP's privilege check comes before presence.
        (0xec, SEGMENT, 0x1b, on(SEGMENT, 11), on(SEGMENT, 13)),
        (0xec, SEGMENT, 0x1f, on(SEGMENT, 11), on(SEGMENT, 11)),
    ] {
        for (opcode, wanted) in [(0x9a, by_call), (0xea, by_jump)] {
            let rig = Rig::user(0);
            rig.describe(GATE, gate(selector, TARGET, access, 0));
            rig.describe(SEGMENT, entry(target));
            let dpl = target >> 5 & 3;
            // The stack of the target's level.
            rig.describe(STACK_SEGMENT, entry(0x93 | dpl << 5));
            rig.put32(TSS + 4 + 8 * dpl, STACK0 as u32);
            rig.put32(TSS + 8 + 8 * dpl, u32::from(STACK_SEGMENT) | dpl as u32);
            // HLT is #GP in ring 3 and ring 1, which tells that the target was reached.
            rig.put(TARGET, &[0xf4]);
            let ran = rig.run(&far(opcode, GATE | 3));
            let reached = ran.end() == gp0 && ran.frame()[0] == TARGET as u32;
            let end = if reached && wanted == ok { ok } else { ran.end() };
            assert_eq!(end, wanted, "{access:#x} {selector:#x} {target:#x} by {opcode:#x}");
        }
    }
    // From ring 0 to an outer level, and a requested level beyond the gate's.
    let rig = Rig::new();
    rig.describe(GATE, gate(CODE3, TARGET, 0xec, 0));
    assert_eq!(rig.run(&far(0x9a, GATE)).end(), End::Code(13, u32::from(CODE3 & !3)));
    rig.describe(GATE, gate(CODE0, TARGET, 0x8c, 0));
    assert_eq!(rig.run(&far(0x9a, GATE | 3)).end(), End::Code(13, GATE.into()));
    // An offset beyond the target's limit.
    rig.describe(SEGMENT, descriptor(0, TARGET - 1, 0x9b, 4));
    rig.describe(GATE, gate(SEGMENT, TARGET, 0x8c, 0));
    assert_eq!(rig.run(&far(0x9a, GATE)).end(), End::Code(13, 0));
}

/// The inner stack of the TSS: (SS field, access byte at [`STACK_SEGMENT`], limit of the TSS, result).
#[test]
fn checks_of_the_inner_stack() {
    let on = |code| End::Code(code, STACK_SEGMENT.into());
    for (selector, access, limit, wanted) in [
        (STACK_SEGMENT, 0x93, 0x67, End::Ran),
        (0, 0x93, 0x67, End::Code(10, 0)),
        (0x100, 0x93, 0x67, End::Code(10, 0x100)),
        (STACK_SEGMENT | 1, 0x93, 0x67, on(10)),
        (STACK_SEGMENT, 0xb3, 0x67, on(10)),
        (STACK_SEGMENT, 0x91, 0x67, on(10)),
        (STACK_SEGMENT, 0x9b, 0x67, on(10)),
        (STACK_SEGMENT, 0x13, 0x67, on(12)),
        (STACK_SEGMENT, 0x93, 0x0e, End::Code(10, TASK_A.into())),
    ] {
        let mut rig = Rig::user(0);
        rig.describe(GATE, gate(SEGMENT | 1, TARGET, 0xec, 0));
        rig.describe(SEGMENT, entry(0xbb));
        // The call goes to ring 1, the exception it raises to ring 0.
        rig.describe(STACK_SEGMENT, entry(if access & 0x60 == 0 { access | 0x20 } else { access & !0x60 }));
        rig.put32(TSS + 0xc, STACK0 as u32 + 0x800);
        rig.put32(TSS + 0x10, u32::from(selector) ^ u32::from(selector & !3 != 0));
        rig.state.segments.tr.limit = limit;
        rig.put(TARGET, &[0xf4]);
        let ran = rig.run(&call());
        let reached = ran.end() == End::Code(13, 0) && ran.frame()[0] == TARGET as u32;
        let end = if reached { End::Ran } else { ran.end() };
        assert_eq!(end, wanted, "{selector:#x} {access:#x} {limit:#x}");
    }
    // A stack without room: #SS with its selector.
    let rig = Rig::user(0);
    rig.describe(GATE, gate(SEGMENT | 1, TARGET, 0xec, 0));
    rig.describe(SEGMENT, entry(0xbb));
    rig.describe(STACK_SEGMENT, descriptor(0, 0x10, 0xb3, 4));
    rig.put32(TSS + 0xc, 0x8000);
    rig.put32(TSS + 0x10, u32::from(STACK_SEGMENT | 1));
    assert_eq!(rig.run(&call()).end(), End::Code(12, STACK_SEGMENT.into()));
}

/// Interrupt gates clear IF, trap gates do not; both clear TF, NT and RF (6.12.1.3).
#[test]
fn flags_through_gates() {
    for (access, keeps_if, wide) in
        [(0xee, false, true), (0xef, true, true), (0xe6, false, false), (0xe7, true, false)]
    {
        let mut rig = Rig::new();
        rig.state.rflags = 0x4ed7;
        rig.put64(IDT + 8 * 0x50, gate(CODE0, 0x6500, access, 0));
        let ran = rig.run(&[0xcd, 0x50]);
        assert_eq!(ran.cpu.rflags(), if keeps_if { 0xed7 } else { 0xcd7 }, "{access:#x}");
        assert_eq!(ran.cpu.gpr(4), STACK - if wide { 12 } else { 6 });
        if wide {
            assert_eq!(ran.words::<3>(), [CODE as u32 + 2, CODE0.into(), 0x4ed7]);
        } else {
            let halves: [u16; 3] =
                std::array::from_fn(|at| u16::from_le_bytes(rig.get(STACK - 6 + 2 * at as u64)));
            assert_eq!(halves, [CODE as u16 + 2, CODE0, 0x4ed7]);
        }
    }
}

/// The gate of vector 50h and its target by INT n from ring 3, and of vector 2 by an NMI, whose error codes have EXT.
#[test]
fn checks_of_interrupt_gates() {
    let gp = |code: u32| End::Code(13, code);
    let target = u32::from(SEGMENT);
    for (entry_at, access, by_int, by_nmi) in [
        (gate(SEGMENT, 0x6500, 0xee, 0), 0x9b_u64, End::Vector(0x50), End::Vector(0x50)),
        // DPL counts for software only.
        (gate(SEGMENT, 0x6500, 0x8e, 0), 0x9b, gp(0x282), End::Vector(0x50)),
        (gate(SEGMENT, 0x6500, 0x6e, 0), 0x9b, End::Code(11, 0x282), End::Code(11, 0x13)),
        // Types that are none of gates.
        (gate(SEGMENT, 0x6500, 0xec, 0), 0x9b, gp(0x282), gp(0x13)),
        (gate(SEGMENT, 0x6500, 0xe4, 0), 0x9b, gp(0x282), gp(0x13)),
        (gate(SEGMENT, 0x6500, 0xe9, 0), 0x9b, gp(0x282), gp(0x13)),
        (gate(SEGMENT, 0x6500, 0xfe, 0), 0x9b, gp(0x282), gp(0x13)),
        (0, 0x9b, gp(0x282), gp(0x13)),
        // Targets.
        (gate(0, 0x6500, 0xee, 0), 0x9b, gp(0), gp(1)),
        (gate(0x100, 0x6500, 0xee, 0), 0x9b, gp(0x100), gp(0x101)),
        (gate(SEGMENT, 0x6500, 0xee, 0), 0x93, gp(target), gp(target | 1)),
        (gate(SEGMENT, 0x6500, 0xee, 0), 0x1b, End::Code(11, target), End::Code(11, target | 1)),
        (gate(SEGMENT, 0x6500, 0xee, 0), 0x89, gp(target), gp(target | 1)),
    ] {
        for (nmi, wanted) in [(false, by_int), (true, by_nmi)] {
            let rig = Rig::user(0);
            rig.put64(IDT + 8 * if nmi { 2 } else { 0x50 }, entry_at);
            rig.describe(SEGMENT, entry(access));
            let ran = if nmi { rig.run_with(&[0x90; 8], 4, NMI) } else { rig.run(&[0xcd, 0x50]) };
            assert_eq!(ran.end(), wanted, "{entry_at:#x}, {access:#x}, NMI {nmi}");
        }
    }
    // Beyond the table's limit, and beyond the target's.
    let mut rig = Rig::user(0);
    rig.describe(SEGMENT, descriptor(0, 0x64ff, 0x9b, 4));
    rig.put64(IDT + 8 * 0x50, gate(SEGMENT, 0x6500, 0xee, 0));
    assert_eq!(rig.run(&[0xcd, 0x50]).end(), gp(0));
    rig.state.idtr.limit = 0x50 * 8 + 6;
    assert_eq!(rig.run(&[0xcd, 0x50]).end(), gp(0x282));
    // From ring 0, a handler of an outer level.
    let rig = Rig::new();
    rig.put64(IDT + 8 * 0x50, gate(CODE3, 0x6500, 0xee, 0));
    assert_eq!(rig.run(&[0xcd, 0x50]).end(), gp(u32::from(CODE3 & !3)));
}
