//! Direct far transfers and segment loads: type, limit and privilege checks (SDM 2A CALL, IRET, JMP; SDM 2B MOV, RET;
//! SDM 3A 5.5 to 5.8).

use super::rig::*;

const TARGET: u64 = 0x5000;
const OK: End = End::Vector(0x40);

fn free(code: u8) -> End {
    End::Code(code, FREE.into())
}

fn entry(access: u64) -> u64 {
    descriptor(0, 0xf_ffff, access, 0xc)
}

/// far JMP and CALL
fn far(opcode: u8, selector: u16) -> Vec<u8> {
    [&[opcode][..], &(TARGET as u32).to_le_bytes(), &selector.to_le_bytes()].concat()
}

/// Ring, access byte of the descriptor, selector, what becomes of it.
#[test]
fn jumps_and_calls() {
    let three = FREE | 3;
    for (ring, access, selector, wanted) in [
        (3, 0xfb, three, OK),
        // A requested level above the current one does no harm.
        (3, 0xfb, FREE, OK),
        (3, 0xf9, three, OK),
        (3, 0x9b, three, free(13)),
        (3, 0x9f, three, OK),
        (3, 0xff, three, OK),
        (3, 0x7b, three, free(11)),
        (3, 0x1f, three, free(11)),
        (3, 0xf3, three, free(13)),
        (3, 0x82, three, free(13)),
        (3, 0x8e, three, free(13)),
        (3, 0x00, three, free(13)),
        // Privilege comes before presence.
        (3, 0x1b, three, free(13)),
        (0, 0x9b, FREE, OK),
        (0, 0x9b, FREE | 1, free(13)),
        (0, 0xfb, three, free(13)),
        (0, 0xdf, FREE, free(13)),
        (0, 0x9f, three, OK),
    ] {
        for opcode in [0xea, 0x9a] {
            let rig = if ring == 3 { Rig::user(0) } else { Rig::new() };
            rig.describe(FREE, entry(access));
            rig.put(TARGET, &[0xcd, 0x40]);
            let ran = rig.run(&far(opcode, selector));
            assert_eq!(ran.end(), wanted, "ring {ring}, access {access:#x}, {selector:#x}, {opcode:#x}");
            if wanted == OK {
                assert_eq!(ran.frame()[1], u32::from(FREE | ring), "RPL becomes the current level");
                // A far CALL has pushed CS and EIP.
                let sp = if ring == 3 { u64::from(ran.word(3)) } else { ran.cpu.gpr(4) + 12 };
                assert_eq!(sp, if opcode == 0x9a { STACK - 8 } else { STACK });
                assert_eq!(rig.access(FREE), access as u8 | 1, "accessed");
            }
        }
    }
}

#[test]
fn selectors_that_name_nothing() {
    for (selector, wanted) in [
        (0_u16, End::Code(13, 0)),
        (3, End::Code(13, 0)),
        (0x100, End::Code(13, 0x100)),
        // There is no LDT.
        (4, End::Code(13, 4)),
        (FREE | 4, End::Code(13, u32::from(FREE | 4))),
    ] {
        for opcode in [0xea, 0x9a] {
            let rig = Rig::new();
            // What lies in the table's first entry does not count.
            rig.describe(0, entry(0x9b));
            assert_eq!(rig.run(&far(opcode, selector)).end(), wanted, "{selector:#x}");
        }
    }
}

/// Limits: of the target, of the stack.
#[test]
fn limits() {
    for (limit, wanted) in [(TARGET, OK), (TARGET - 1, End::Code(13, 0))] {
        let rig = Rig::new();
        rig.describe(FREE, descriptor(0, limit + if wanted == OK { 1 } else { 0 }, 0x9b, 4));
        rig.put(TARGET, &[0xcd, 0x40]);
        assert_eq!(rig.run(&far(0xea, FREE)).end(), wanted);
    }
    let mut rig = Rig::new();
    rig.state.segments.ss.limit = STACK as u32 - 6;
    // The new EIP does not fit: nothing has happened, and the exception does not fit either.
    assert_eq!(rig.run(&far(0x9a, CODE0)).end(), End::Triple);
}

/// MOV to a data segment register and to SS: (ring, register, access byte, selector, result).
#[test]
fn loads_of_segment_registers() {
    let three = FREE | 3;
    let (ds, ss) = (0xd8_u8, 0xd0_u8);
    for (ring, register, access, selector, wanted) in [
        (3, ds, 0xf3, three, OK),
        (3, ds, 0xf3, FREE, OK),
        (3, ds, 0xf1, three, OK),
        (3, ds, 0x93, three, free(13)),
        (0, ds, 0x93, three, free(13)),
        (0, ds, 0x93, FREE, OK),
        (3, ds, 0x9f, three, OK),
        (3, ds, 0x9d, three, free(13)),
        (3, ds, 0xfb, three, OK),
        (3, ds, 0xf9, three, free(13)),
        (3, ds, 0x73, three, free(11)),
        (3, ds, 0xe2, three, free(13)),
        (3, ds, 0, 0, OK),
        (3, ds, 0, 3, OK),
        (3, ds, 0, 0x103, End::Code(13, 0x100)),
        (0, ss, 0x93, FREE, OK),
        (0, ss, 0x97, FREE, OK),
        (0, ss, 0x93, three, free(13)),
        (0, ss, 0xf3, FREE, free(13)),
        (0, ss, 0x91, FREE, free(13)),
        (0, ss, 0x9b, FREE, free(13)),
        (0, ss, 0x13, FREE, free(12)),
        (0, ss, 0, 0, End::Code(13, 0)),
        (3, ss, 0xf3, three, OK),
        (3, ss, 0xf3, FREE | 2, free(13)),
    ] {
        let rig = if ring == 3 { Rig::user(0) } else { Rig::new() };
        // Expand-down: the limit is below the stack.
        let limit = if access == 0x97 { 0 } else { 0xf_ffff };
        rig.describe(FREE, descriptor(0, limit, access, 0xc));
        let load = [0xb8, selector as u8, (selector >> 8) as u8, 0, 0, 0x8e, register, 0xcd, 0x40];
        let ran = rig.run(&load);
        assert_eq!(ran.end(), wanted, "ring {ring}, register {register:#x}, {access:#x}, {selector:#x}");
    }
    assert_eq!(Rig::new().run(&[0x8e, 0xc8]).end(), End::Vector(6), "MOV CS");
}

/// IRET (flags on top) and far RET from ring 0: (CS, its access, SS, its access, result).
#[test]
fn returns() {
    const SECOND: u16 = 0x38;
    let (cs, ss) = (FREE, SECOND);
    let second = |code| End::Code(code, SECOND.into());
    for (cs, cs_access, ss, ss_access, wanted) in [
        // To the same level.
        (cs, 0x9b, 0, 0, OK),
        (cs, 0x9f, 0, 0, OK),
        (0, 0x9b, 0, 0, End::Code(13, 0)),
        (0x100, 0x9b, 0, 0, End::Code(13, 0x100)),
        (cs, 0x93, 0, 0, free(13)),
        (cs, 0xfb, 0, 0, free(13)),
        (cs, 0xff, 0, 0, free(13)),
        (cs, 0x1b, 0, 0, free(11)),
        (cs, 0x89, 0, 0, free(13)),
        // To ring 3.
        (cs | 3, 0xfb, ss | 3, 0xf3, OK),
        (cs | 3, 0x9f, ss | 3, 0xf3, OK),
        (cs | 3, 0x9b, ss | 3, 0xf3, free(13)),
        (cs | 3, 0x7b, ss | 3, 0xf3, free(11)),
        (cs | 3, 0xfb, 0, 0xf3, End::Code(13, 0)),
        (cs | 3, 0xfb, 0x103, 0xf3, End::Code(13, 0x100)),
        (cs | 3, 0xfb, ss, 0xf3, second(13)),
        (cs | 3, 0xfb, ss | 3, 0x93, second(13)),
        (cs | 3, 0xfb, ss | 3, 0xf1, second(13)),
        (cs | 3, 0xfb, ss | 3, 0xfb, second(13)),
        (cs | 3, 0xfb, ss | 3, 0x73, second(12)),
    ] {
        for interrupt in [false, true] {
            let rig = Rig::new();
            rig.describe(FREE, entry(cs_access));
            rig.describe(SECOND, entry(ss_access));
            rig.put(TARGET, &[0xcd, 0x40]);
            let frame: &[u32] = if interrupt {
                &[TARGET as u32, cs.into(), 2, 0xb000, ss.into()]
            } else {
                &[TARGET as u32, cs.into(), 0xb000, ss.into()]
            };
            for (at, word) in (0..).zip(frame) {
                rig.put32(STACK + 4 * at, *word);
            }
            let ran = rig.run(if interrupt { &[0xcf] } else { &[0xcb] });
            assert_eq!(ran.end(), wanted, "{cs:#x} {cs_access:#x}, {ss:#x} {ss_access:#x}, IRET {interrupt}");
            if wanted == OK && cs & 3 == 3 {
                assert_eq!((ran.word(3), ran.word(4)), (0xb000, ss.into()));
                assert!(!ran.cpu.segments[3].attributes.present(), "DS of ring 0 is null in ring 3");
            }
            if wanted != OK {
                assert_eq!(ran.frame()[..2], [CODE as u32, CODE0.into()]);
                assert_eq!(ran.cpu.gpr(4) + 16, STACK, "the stack was not popped");
            }
        }
    }
}

/// No return goes inwards, and IRET of ring 3 changes neither IF nor IOPL.
#[test]
fn returns_of_users() {
    let rig = Rig::user(0);
    for (at, word) in (0..).zip([TARGET as u32, CODE0.into(), 0x3202]) {
        rig.put32(STACK + 4 * at, word);
    }
    for code in [0xcb, 0xcf] {
        assert_eq!(rig.run(&[code]).end(), End::Code(13, CODE0.into()), "{code:#x}");
    }
    rig.put32(STACK + 4, CODE3.into());
    rig.put(TARGET, &[0xcd, 0x40]);
    let ran = rig.run(&[0xcf]);
    assert_eq!((ran.end(), ran.frame()[2]), (OK, 2));
    // RET n releases parameters of both stacks.
    let rig = Rig::new();
    for (at, word) in (0..).zip([TARGET as u32, CODE3.into(), 0, 0, 0xb000, DATA3.into()]) {
        rig.put32(STACK + 4 * at, word);
    }
    rig.put(TARGET, &[0xcd, 0x40]);
    let ran = rig.run(&[0xca, 8, 0]);
    assert_eq!((ran.end(), ran.word(3)), (OK, 0xb008));
}
