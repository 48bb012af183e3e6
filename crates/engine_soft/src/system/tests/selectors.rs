//! LAR, LSL, VERR, VERW, LLDT and LTR (SDM 2A LAR, LLDT, LSL, LTR; SDM 2B VERR).

use super::rig::*;

const ZF: u64 = 1 << 6;
/// lar eax, ecx; lsl eax, ecx; verr cx; verw cx
const LAR: &[u8] = &[0x0f, 0x02, 0xc1];
const LSL: &[u8] = &[0x0f, 0x03, 0xc1];
const VERR: &[u8] = &[0x0f, 0x00, 0xe1];
const VERW: &[u8] = &[0x0f, 0x00, 0xe9];

/// A question about a descriptor: what EAX is if it is answered.
fn ask(rig: &mut Rig, code: &[u8], selector: u16) -> Option<u32> {
    rig.state.gprs[0] = 0x5a5a_5a5a;
    rig.state.gprs[1] = selector.into();
    let ran = rig.run_with(code, 1, 0);
    assert_eq!(ran.end(), End::Ran);
    (ran.cpu.rflags() & ZF != 0).then_some(ran.cpu.regs[0] as u32)
}

/// Types of system descriptors that LAR and LSL answer for (tables 3-52 and 3-57).
#[test]
fn system_types() {
    for kind in 0..16_u64 {
        let mut rig = Rig::new();
        rig.describe(FREE, descriptor(0x1234_5678, 0x3_4567, 0x80 | kind, 0));
        let by_lar = [1, 2, 3, 4, 5, 9, 11, 12].contains(&kind);
        let by_lsl = [1, 2, 3, 9, 11].contains(&kind);
        assert_eq!(ask(&mut rig, LAR, FREE).is_some(), by_lar, "LAR, type {kind}");
        assert_eq!(ask(&mut rig, LSL, FREE), by_lsl.then_some(0x3_4567), "LSL, type {kind}");
        assert_eq!(ask(&mut rig, VERR, FREE), None, "VERR, type {kind}");
        assert_eq!(ask(&mut rig, VERW, FREE), None, "VERW, type {kind}");
    }
}

/// Code and data segments: (ring, access byte, RPL, visible to LAR and LSL, readable, writable).
#[test]
fn segments() {
    for (ring, access, rpl, visible, readable, writable) in [
        (0, 0x93_u64, 0, true, true, true),
        (0, 0x91, 0, true, true, false),
        (0, 0x9b, 0, true, true, false),
        (0, 0x99, 0, true, false, false),
        (0, 0xf3, 3, true, true, true),
        (0, 0x93, 1, false, false, false),
        (3, 0x93, 3, false, false, false),
        (3, 0x93, 0, false, false, false),
        (3, 0xf3, 3, true, true, true),
        (3, 0xd3, 0, false, false, false),
        // Conforming code is visible to everybody.
        (3, 0x9f, 3, true, true, false),
        (3, 0x9d, 3, true, false, false),
        // Presence does not matter.
        (0, 0x13, 0, true, true, true),
    ] {
        let mut rig = if ring == 3 { Rig::user(0) } else { Rig::new() };
        rig.describe(FREE, descriptor(0, 0x1_2345, access, 0xd));
        let selector = FREE | rpl;
        let rights = (access << 8 | 0xd1 << 16) as u32;
        let row = format!("ring {ring}, access {access:#x}, RPL {rpl}");
        assert_eq!(ask(&mut rig, LAR, selector), visible.then_some(rights & 0x00ff_ff00), "LAR, {row}");
        assert_eq!(ask(&mut rig, LSL, selector), visible.then_some(0x1234_5fff), "LSL, {row}");
        assert_eq!(ask(&mut rig, VERR, selector).is_some(), readable, "VERR, {row}");
        assert_eq!(ask(&mut rig, VERW, selector).is_some(), writable, "VERW, {row}");
    }
    for selector in [0, 3, 0x100, 4] {
        for code in [LAR, LSL, VERR, VERW] {
            assert_eq!(ask(&mut Rig::new(), code, selector), None, "{selector:#x}");
        }
    }
}

/// LLDT and LTR: (descriptor, selector, result of LLDT, result of LTR).
#[test]
fn loads_of_system_segments() {
    let system = |access| descriptor(0x3400, 0x67, access, 0);
    let on = |code| End::Code(code, FREE.into());
    let ok = End::Ran;
    for (entry, selector, by_lldt, by_ltr) in [
        (system(0x82), FREE, ok, on(13)),
        (system(0x89), FREE, on(13), ok),
        (system(0x81), FREE, on(13), ok),
        (system(0x8b), FREE, on(13), on(13)),
        (system(0x8c), FREE, on(13), on(13)),
        (system(0x93), FREE, on(13), on(13)),
        (system(0x02), FREE, on(11), on(13)),
        (system(0x09), FREE, on(13), on(11)),
        (0, 0, ok, End::Code(13, 0)),
        (0, 0x100, End::Code(13, 0x100), End::Code(13, 0x100)),
        (0, 0x0c, End::Code(13, 0x0c), End::Code(13, 0x0c)),
    ] {
        for (code, wanted) in [([0x0f, 0x00, 0xd1, 0xf4], by_lldt), ([0x0f, 0x00, 0xd9, 0xf4], by_ltr)] {
            let mut rig = Rig::new();
            rig.describe(FREE, entry);
            rig.state.gprs[1] = selector.into();
            assert_eq!(rig.run(&code).end(), wanted, "{entry:#x}, {selector:#x}, {code:x?}");
            if wanted == ok && by_ltr == ok {
                assert_eq!(rig.access(FREE) & 2, 2, "busy");
            }
        }
    }
    assert_eq!(Rig::user(3).run(&[0x0f, 0x00, 0xd1]).end(), End::Code(13, 0));
    assert_eq!(Rig::user(3).run(&[0x0f, 0x00, 0xd9]).end(), End::Code(13, 0));
}

/// What is null, and what is beyond an LDT, when there is one.
#[test]
fn the_local_table() {
    let mut rig = Rig::new();
    rig.describe(FREE, descriptor(0x3400, 0xf, 0x82, 0));
    rig.put64(0x3400, descriptor(0, 0xf_ffff, 0x93, 0xc));
    rig.put64(0x3408, descriptor(0, 0xf_ffff, 0x93, 0xc));
    rig.state.gprs[1] = FREE.into();
    // lldt cx; mov ds, ax
    for (selector, wanted) in [(4_u16, End::Ran), (0xc, End::Ran), (0x14, End::Code(13, 0x14))] {
        rig.state.gprs[0] = selector.into();
        let ran = rig.run(&[0x0f, 0x00, 0xd1, 0x8e, 0xd8, 0xf4]);
        assert_eq!((ran.end(), selector), (wanted, selector));
    }
}
