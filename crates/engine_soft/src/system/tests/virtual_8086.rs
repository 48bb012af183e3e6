//! Virtual-8086 mode (SDM 3A chapter 20).

use super::rig::*;
use x86::Cr4;

const IF: u64 = 1 << 9;
const VIF: u64 = 1 << 19;
const VIP: u64 = 1 << 20;

/// 20.2.7 and 20.2.8: what IOPL and the mode forbid. `#GP(0)` unless it says otherwise.
#[test]
fn sensitive_instructions() {
    const GP: End = End::Code(13, 0);
    const UD: End = End::Vector(6);
    // Code, with IOPL 3, with IOPL 0.
    let table: [(&[u8], End, End); 23] = [
        (&[0xfa, 0xcd, 0x40], End::Vector(0x40), GP), // cli
        (&[0xfb, 0xcd, 0x40], End::Vector(0x40), GP), // sti
        (&[0x9c, 0xcd, 0x40], End::Vector(0x40), GP), // pushf
        (&[0x9d, 0xcd, 0x40], End::Vector(0x40), GP), // popf
        (&[0xcd, 0x41], End::Vector(0x41), GP),       // int 41h
        (&[0xcf], End::Vector(0x40), GP),             // iret, to the zeros below
        (&[0xcc], End::Vector(3), End::Vector(3)),    // int3
        (&[0xf4], GP, GP),                            // hlt
        (&[0x0f, 0x20, 0xc0], GP, GP),                // mov eax, cr0
        (&[0x0f, 0x22, 0xc0], GP, GP),                // mov cr0, eax
        (&[0x0f, 0x23, 0xc0], GP, GP),                // mov dr0, eax
        (&[0x0f, 0x01, 0x16, 0, 0], GP, GP),          // lgdt
        (&[0x0f, 0x01, 0x1e, 0, 0], GP, GP),          // lidt
        (&[0x0f, 0x01, 0xf0], GP, GP),                // lmsw ax
        (&[0x0f, 0x06], GP, GP),                      // clts
        (&[0x0f, 0x32], GP, GP),                      // rdmsr
        (&[0x0f, 0x30], GP, GP),                      // wrmsr
        (&[0x0f, 0x08], GP, GP),                      // invd
        (&[0x0f, 0x00, 0xd0], UD, UD),                // lldt ax
        (&[0x0f, 0x00, 0xd8], UD, UD),                // ltr ax
        (&[0x0f, 0x00, 0xc0], UD, UD),                // sldt ax
        (&[0x0f, 0x02, 0xc0], UD, UD),                // lar ax, ax
        (&[0x0f, 0x00, 0xe0], UD, UD),                // verr ax
    ];
    for (code, open, closed) in table {
        for (iopl, wanted) in [(3, open), (0, closed)] {
            let rig = Rig::v86(iopl);
            // IRET goes to 0000:0000, where INT 40h is.
            rig.put(0, &[0xcd, 0x40]);
            assert_eq!(rig.run(code).end(), wanted, "{code:x?} with IOPL {iopl}");
        }
    }
}

/// 20.3.1.1: the frame on ring 0's stack, cleared segments and flags; and IRET back (20.2.5).
#[test]
fn to_ring_zero_and_back() {
    let mut rig = Rig::v86(3);
    rig.state.rflags |= IF | 1 << 14 | 0x8d5;
    // The handler makes its frame's IP point behind, and returns.
    rig.put(HANDLERS + 16 * 0x41, &[0xcf]);
    let ran = rig.run(&[0xcd, 0x40]);
    assert_eq!(ran.end(), End::Vector(0x40));
    let pushed = [2, 0x400, 0x2_7ad7, 0x100, 0x900, 0xe00, 0xd00, 0xf00, 0xf10];
    assert_eq!(ran.words::<9>(), pushed);
    assert_eq!((ran.cpu.gpr(4), ran.cpu.cpl), (STACK0 - 36, 0));
    // VM, NT, TF, RF and, by an interrupt gate, IF are clear.
    assert_eq!(ran.cpu.rflags(), 0x3ad7 & !IF);
    for number in [0, 3, 4, 5] {
        assert_eq!(ran.cpu.segments[number].selector, 0, "segment {number}");
        assert!(!ran.cpu.segments[number].attributes.present());
    }
    let ran = rig.run_with(&[0xcd, 0x41], 2, 0);
    assert!(ran.cpu.is_v86());
    assert_eq!((ran.cpu.rip(), ran.cpu.gpr(4), ran.cpu.rflags()), (2, 0x100, 0x2_7ad7));
    assert_eq!(
        ran.cpu.segments.map(|segment| segment.selector)[..6],
        [0xe00, 0x400, 0x900, 0xd00, 0xf00, 0xf10]
    );
}

/// 20.3.1: a gate to a ring other than 0 is `#GP` with the code segment's selector.
#[test]
fn handlers_outside_of_ring_zero_are_refused() {
    for (access, selector) in [(0xfb, FREE | 3), (0x9f, FREE), (0xbb, FREE)] {
        let rig = Rig::v86(3);
        rig.describe(FREE, descriptor(0, 0xf_ffff, access, 0xc));
        rig.put64(IDT + 8 * 0x50, gate(selector, HANDLERS, 0xee, 0));
        let ran = rig.run(&[0xcd, 0x50]);
        assert_eq!(ran.end(), End::Code(13, FREE.into()), "access {access:#x}");
    }
    // INT n needs a gate of DPL 3, hardware and exceptions do not.
    let rig = Rig::v86(3);
    rig.put64(IDT + 8 * 0x50, gate(CODE0, HANDLERS, 0x8e, 0));
    assert_eq!(rig.run(&[0xcd, 0x50]).end(), End::Code(13, 0x50 << 3 | 2));
}

/// IRET of ring 0 enters with VM in the popped flags; in ring 3 VM is not writable.
#[test]
fn entering() {
    let rig = Rig::new();
    let frame = [0x10_u32, 0x4ff, 0x2_3202, 0x200, 0xc00, 1, 2, 3, 4];
    for (at, word) in (0..).zip(frame) {
        rig.put32(STACK + 4 * at, word);
    }
    let ran = rig.run_with(&[0xcf], 1, 0);
    assert!(ran.cpu.is_v86());
    assert_eq!((ran.cpu.rip(), ran.cpu.gpr(4), ran.cpu.cpl, ran.cpu.rflags()), (0x10, 0x200, 3, 0x2_3202));
    assert_eq!(ran.cpu.segments.map(|segment| segment.selector)[..6], [1, 0x4ff, 0xc00, 2, 3, 4]);

    let user = Rig::user(0);
    for (at, word) in (0..).zip([0x5000, u32::from(CODE3), 0x2_3202]) {
        user.put32(STACK + 4 * at, word);
    }
    let ran = user.run_with(&[0xcf], 1, 0);
    assert_eq!((ran.cpu.rip(), ran.cpu.rflags()), (0x5000, 2), "neither VM nor IF nor IOPL");
}

/// 20.2.8.1: ports by the bitmap alone, whatever IOPL says.
#[test]
fn ports_hang_on_the_bitmap() {
    for iopl in [0, 3] {
        let mut rig = Rig::v86(iopl);
        rig.state.segments.tr.limit = 0x6a;
        rig.put16(TSS + 102, 0x68);
        rig.put(TSS + 0x68, &[0b1111_1101, 0xff, 0xff]);
        let open = rig.run_with(&[0xe4, 1], 1, 0);
        assert_eq!((open.end(), open.cpu.regs[0] & 0xff), (End::Ran, 1));
        assert_eq!(rig.run(&[0xe4, 2]).end(), End::Code(13, 0));
    }
}

/// Table 20-2, methods of INT n under VME: by IOPL and the redirection bitmap.
#[test]
fn software_interrupts_with_the_extensions() {
    const OWN: u64 = 0x5000;
    for (iopl, redirect, wanted) in [
        (3, true, Some(End::Vector(0x50))),
        (0, true, Some(End::Code(13, 0))),
        (3, false, None),
        (0, false, None),
    ] {
        let mut rig = Rig::v86(iopl);
        rig.state.cr4 = Cr4::VME.bits();
        rig.state.segments.tr.limit = 0xff;
        rig.put16(TSS + 102, 0x88);
        rig.put(TSS + 0x68, &[if redirect { 0xff } else { 0 }; 32]);
        rig.put32(4 * 0x50, (OWN as u32 >> 4) << 16 | 3);
        rig.state.rflags |= IF | VIF;
        let ran = rig.run_with(&[0xcd, 0x50], if wanted.is_some() { 5 } else { 1 }, 0);
        let Some(wanted) = wanted else {
            // Through the program's own table, with a frame of three words.
            assert_eq!((ran.cpu.segments[1].base, ran.cpu.rip(), ran.cpu.gpr(4)), (OWN, 3, 0x100 - 6));
            let frame: [u16; 3] =
                std::array::from_fn(|at| u16::from_le_bytes(rig.get(0x90fa + 2 * at as u64)));
            // Of IF with IOPL 3, of VIF below; IOPL is shown as 3.
            assert_eq!(frame, [2, 0x400, 0x3202], "IOPL {iopl}");
            // With IOPL 3 IF is cleared, else VIF.
            let cleared = if iopl == 3 { IF } else { VIF };
            assert_eq!(ran.cpu.rflags() & (IF | VIF), (IF | VIF) & !cleared);
            continue;
        };
        assert_eq!(ran.end(), wanted, "IOPL {iopl}");
    }
}

/// 20.3.2: with VME and IOPL below 3, the flag instructions work on VIF.
#[test]
fn flag_instructions_with_the_extensions() {
    let run = |flags: u64, code: &[u8], steps| {
        let mut rig = Rig::v86(0);
        rig.state.cr4 = Cr4::VME.bits();
        rig.state.rflags |= flags;
        rig.put16(0x9100, if flags & VIF != 0 { 2 } else { 0x202 });
        let ran = rig.run_with(code, steps, 0);
        (ran.end(), ran.cpu.rflags() & (IF | VIF | VIP), rig.get::<2>(0x90fe))
    };
    assert_eq!(run(IF | VIF, &[0xfa], 1).1, IF, "CLI");
    assert_eq!(run(IF, &[0xfb], 1).1, IF | VIF, "STI");
    assert_eq!(run(IF | VIP, &[0xfb], 2).0, End::Code(13, 0), "STI with a virtual interrupt pending");
    // PUSHF shows VIF as IF, and IOPL 3.
    assert_eq!(u16::from_le_bytes(run(VIF, &[0x9c], 1).2), 0x3202);
    assert_eq!(u16::from_le_bytes(run(IF, &[0x9c], 1).2), 0x3002);
    // POPF writes VIF.
    assert_eq!(run(IF, &[0x9d], 1).1, IF | VIF);
    assert_eq!(run(IF | VIF, &[0x9d], 1).1, IF);
    assert_eq!(run(IF | VIP, &[0x9d], 2).0, End::Code(13, 0));
    // With 32-bit operands they are #GP all the same.
    assert_eq!(run(IF, &[0x66, 0x9c], 2).0, End::Code(13, 0));
    assert_eq!(run(IF, &[0x66, 0x9d], 2).0, End::Code(13, 0));
}

/// 20.3.2 too: protected-mode virtual interrupts give CLI and STI of ring 3 the same VIF.
#[test]
fn virtual_interrupts_of_protected_mode() {
    let run = |flags: u64, code: &[u8], steps| {
        let mut rig = Rig::user(0);
        rig.state.cr4 = Cr4::PVI.bits();
        rig.state.rflags |= flags;
        let ran = rig.run_with(code, steps, 0);
        (ran.end(), ran.cpu.rflags() & (IF | VIF | VIP))
    };
    assert_eq!(run(IF, &[0xfb], 1).1, IF | VIF);
    assert_eq!(run(IF | VIF, &[0xfa], 1).1, IF);
    assert_eq!(run(IF | VIP, &[0xfb], 2).0, End::Code(13, 0));
    assert_eq!(Rig::user(0).run(&[0xfa]).end(), End::Code(13, 0), "without them");
    assert_eq!(Rig::user(3).run_with(&[0xfb], 1, 0).cpu.rflags() & IF, IF, "with IOPL 3 it is IF");
}
