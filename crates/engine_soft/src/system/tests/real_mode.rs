//! Real-address mode (SDM 3A 20.1): frames of three words, the vector table's limit, 64 KiB segments.

use super::rig::*;
use x86::{CpuState, DescriptorTable, Segment};

/// Real mode at 0000:4000 with a vector table at 0 whose handlers halt as the others do.
fn real() -> Rig {
    let mut rig = Rig::new();
    let reset = CpuState::reset(true);
    rig.state.segments = reset.segments;
    rig.state.segments.cs = Segment { selector: 0, base: 0, ..reset.segments.cs };
    rig.state.cr0 = 0x10;
    rig.state.idtr = DescriptorTable { base: 0, limit: 0x3ff };
    for vector in 0..=0xff {
        rig.put32(4 * vector, (HANDLERS + 16 * vector) as u32);
    }
    rig
}

fn vector(ran: &Ran) -> Option<u64> {
    let at = ran.cpu.rip().wrapping_sub(HANDLERS + 1);
    (ran.exit == engine::VmExit::Halted && at.is_multiple_of(16) && at / 16 < 0x100).then_some(at / 16)
}

fn words<const N: usize>(rig: &Rig, ran: &Ran) -> [u16; N] {
    std::array::from_fn(|at| u16::from_le_bytes(rig.get(ran.cpu.gpr(4) + 2 * at as u64)))
}

/// Exceptions have no error codes here; IF, TF and AC are clear in the handler.
#[test]
fn frames() {
    for (code, number, at) in [
        (&[0xcd, 0x50][..], 0x50, 2_u16),
        (&[0xcc], 3, 1),
        (&[0xf1], 1, 1),
        (&[0x0f, 0x0b], 6, 0),
        // mov ax, [ffffh]: a word across the segment's end
        (&[0xa1, 0xff, 0xff], 13, 0),
        // ltr, lldt, lar, verr are not recognized
        (&[0x0f, 0x00, 0xd8], 6, 0),
        (&[0x0f, 0x00, 0xd0], 6, 0),
        (&[0x0f, 0x02, 0xc0], 6, 0),
        (&[0x0f, 0x00, 0xe0], 6, 0),
        // xor cx, cx; div cx
        (&[0x31, 0xc9, 0xf7, 0xf1], 0, 2),
    ] {
        let mut rig = real();
        rig.state.rflags = 0x202;
        let ran = rig.run(code);
        assert_eq!(vector(&ran), Some(number), "{code:x?}");
        let frame = words::<3>(&rig, &ran);
        assert_eq!((frame[0], frame[1], frame[2] & 0x200), (CODE as u16 + at, 0, 0x200), "{code:x?}");
        assert_eq!((ran.cpu.gpr(4), ran.cpu.rflags() & 0x300), (STACK - 6, 0), "{code:x?}");
    }
}

/// A vector beyond IDTR's limit is #GP; that one beyond it #DF; that one shutdown.
#[test]
fn the_vector_tables_limit() {
    for (limit, wanted) in [
        (0x50 * 4 + 3, Some(0x50)),
        (0x50 * 4 + 2, Some(13)),
        (13 * 4 + 3, Some(13)),
        (13 * 4 + 2, Some(8)),
        (8 * 4 + 3, Some(8)),
    ] {
        let mut rig = real();
        rig.state.idtr.limit = limit;
        let ran = rig.run(&[0xcd, 0x50]);
        assert_eq!(vector(&ran), wanted, "limit {limit:#x}");
    }
    let mut rig = real();
    rig.state.idtr.limit = 8 * 4 + 2;
    assert_eq!(rig.run(&[0xcd, 0x50]).end(), End::Triple);
}

/// A stack that wraps within 64 KiB is legal; a word across its end is #SS, for which there is no room either.
#[test]
fn the_stacks_end() {
    let mut rig = real();
    rig.state.gprs[4] = 0;
    rig.state.segments.ss = Segment { selector: 0x1000, base: 0x1_0000, ..rig.state.segments.ss };
    let ran = rig.run(&[0x50, 0xf4]);
    assert_eq!(ran.cpu.gpr(4), 0xfffe);
    rig.state.gprs[4] = 1;
    assert_eq!(rig.run(&[0x50, 0xf4]).end(), End::Triple);
}

/// Limits of protected mode stay in force in real mode until the segment's limit is loaded anew: what boot loaders
/// use to reach memory beyond 1 MiB.
#[test]
fn large_segments_stay() {
    let mut rig = real();
    rig.state.segments.ds.limit = u32::MAX;
    rig.put(0x20_0000, &[0x77]);
    // mov ax, 0; mov ds, ax; a32 mov al, [200000h]; hlt
    let ran = rig.run(&[0xb8, 0, 0, 0x8e, 0xd8, 0x67, 0xa0, 0, 0, 0x20, 0, 0xf4]);
    assert_eq!((ran.end(), ran.cpu.regs[0] & 0xff), (End::Ran, 0x77));
    let ran = real().run(&[0x67, 0xa0, 0, 0, 0x20, 0, 0xf4]);
    assert_eq!(vector(&ran), Some(13), "beyond 64 KiB");
}

/// Into protected mode and back: a far JMP loads CS by the new mode's rules, and the level is 0.
#[test]
fn to_protected_mode_and_back() {
    let rig = real();
    // lgdt [700h]; mov eax, cr0; or al, 1; mov cr0, eax; jmp 8:4100h
    rig.put16(0x700, 0xff);
    rig.put32(0x702, GDT as u32);
    let there = [
        0x0f, 0x01, 0x16, 0, 7, 0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0, 0x41, 0, 0, 8, 0,
    ];
    // 32-bit code: jmp 30h:4200h, a 16-bit segment
    rig.put(0x4100, &[0xea, 0, 0x42, 0, 0, 0x30, 0]);
    rig.describe(FREE, descriptor(0, 0xffff, 0x9b, 0));
    // 16-bit code: mov eax, cr0; and al, feh; mov cr0, eax; jmp 0:4300h
    rig.put(0x4200, &[0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0, 0xea, 0, 0x43, 0, 0]);
    rig.put(0x4300, &[0xcd, 0x50]);
    let ran = rig.run(&there);
    assert_eq!(vector(&ran), Some(0x50));
    assert_eq!((words::<2>(&rig, &ran), ran.cpu.cpl), ([0x4302, 0], 0));
    assert_eq!((ran.cpu.segments[1].base, ran.cpu.segments[1].limit), (0, 0xffff));
}
