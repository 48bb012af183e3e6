//! IA-32e mode: gates with an interrupt-stack table, call gates, returns, fast calls (SDM 3A 5.8, 6.14; SDM 2B).

use super::rig::*;
use crate::interp::harness::flat;
use x86::{Cr4, Efer, msr};

const TARGET: u64 = 0x5000;
/// A call gate or code segment that tests fill in.
const SLOT: u16 = 0x40;
const SECOND: u16 = 0x50;
const TABLES: u64 = 0x20_0000;
const FAR: u64 = 0x8000_0000_0000;

/// 64-bit mode in ring 0 or 3, two MiB mapped for everybody.
fn long_rig(ring: u16) -> Rig {
    let mut rig = Rig::new();
    rig.put64(TABLES, TABLES + 0x1007);
    rig.put64(TABLES + 0x1000, TABLES + 0x2007);
    rig.put64(TABLES + 0x2000, 0x87);
    rig.describe(CODE0, descriptor(0, 0, 0x9b, 2));
    rig.describe(CODE3, descriptor(0, 0, 0xfb, 2));
    rig.put64(GDT + 0x30, 0);
    for vector in 0..=0xff_u64 {
        let [low, high] = gate64(CODE0, HANDLERS + 16 * vector, 0xee, 0);
        rig.put64(IDT + 16 * vector, low);
        rig.put64(IDT + 16 * vector + 8, high);
    }
    rig.state.idtr.limit = 0xfff;
    rig.put64(TSS + 4, STACK0);
    rig.put64(TSS + 12, 0xb000);
    rig.put64(TSS + 0x24, 0xc008);
    rig.state.cr3 = TABLES;
    rig.state.cr4 = Cr4::PAE.bits();
    rig.state.cr0 |= x86::Cr0::PG.bits();
    rig.state.efer = (Efer::LME | Efer::LMA | Efer::SCE).bits();
    let (cs, ss) = if ring == 3 { (CODE3, DATA3) } else { (CODE0, DATA0) };
    rig.state.segments.cs = flat(cs, if ring == 3 { 0xa0fb } else { 0xa09b });
    rig.state.segments.ss = flat(ss, if ring == 3 { 0xc0f3 } else { 0xc093 });
    rig
}

fn quads<const N: usize>(ran: &Ran) -> [u64; N] {
    std::array::from_fn(|at| {
        u64::from(ran.word(2 * at as u64)) | u64::from(ran.word(2 * at as u64 + 1)) << 32
    })
}

fn set_gate(rig: &Rig, vector: u64, [low, high]: [u64; 2]) {
    rig.put64(IDT + 16 * vector, low);
    rig.put64(IDT + 16 * vector + 8, high);
}

/// 6.14.4 and 6.14.5: which stack a handler gets, aligned, with SS:RSP in every frame.
#[test]
fn stacks_of_handlers() {
    // Ring, IST, RSP before, top of the handler's stack.
    for (ring, ist, rsp, top) in [
        (0, 0, STACK, STACK),
        (0, 0, STACK - 3, STACK - 16),
        (0, 1, STACK, 0xc000),
        (3, 0, STACK, STACK0),
        (3, 1, STACK, 0xc000),
    ] {
        let mut rig = long_rig(ring);
        rig.state.gprs[4] = rsp;
        set_gate(&rig, 0x50, gate64(CODE0, HANDLERS + 16 * 0x50, 0xee, ist));
        let ran = rig.run(&[0xcd, 0x50]);
        assert_eq!((ran.end(), ran.cpu.gpr(4)), (End::Vector(0x50), top - 40), "ring {ring}, IST {ist}");
        let (cs, ss) = if ring == 3 { (CODE3, DATA3) } else { (CODE0, DATA0) };
        assert_eq!(quads(&ran), [CODE + 2, cs.into(), 2, rsp, ss.into()]);
        // A change of the level loads a null SS, else SS stays.
        assert_eq!(ran.cpu.segments[2].selector, if ring == 3 { 0 } else { DATA0 });
    }
}

/// 6.14.1: gates and targets that IA-32e mode refuses.
#[test]
fn checks_of_gates() {
    let slot = u32::from(SLOT);
    for (gate_of, code, wanted) in [
        (gate64(SLOT, 0x6500, 0xee, 0), descriptor(0, 0, 0x9b, 2), End::Vector(0x50)),
        (gate64(SLOT, 0x6500, 0xef, 0), descriptor(0, 0, 0x9b, 2), End::Vector(0x50)),
        // 16-bit and task gates.
        (gate64(SLOT, 0x6500, 0xe6, 0), descriptor(0, 0, 0x9b, 2), End::Code(13, 0x282)),
        (gate64(SLOT, 0x6500, 0xe5, 0), descriptor(0, 0, 0x9b, 2), End::Code(13, 0x282)),
        // Code of compatibility mode, and L with D.
        (gate64(SLOT, 0x6500, 0xee, 0), descriptor(0, 0xf_ffff, 0x9b, 0xc), End::Code(13, slot)),
        (gate64(SLOT, 0x6500, 0xee, 0), descriptor(0, 0, 0x9b, 6), End::Code(13, slot)),
        // An offset that is not canonical.
        (gate64(SLOT, FAR, 0xee, 0), descriptor(0, 0, 0x9b, 2), End::Code(13, 0)),
    ] {
        let rig = long_rig(0);
        rig.describe(SLOT, code);
        set_gate(&rig, 0x50, gate_of);
        assert_eq!(rig.run(&[0xcd, 0x50]).end(), wanted, "{gate_of:x?}, {code:#x}");
    }
}

/// Stacks of the TSS that are not canonical are #SS; a TSS that is too short is #TS.
#[test]
fn checks_of_stacks() {
    let mut bad = long_rig(3);
    bad.put64(TSS + 4, FAR);
    // Every handler would use that stack, but #SS has one of its own.
    set_gate(&bad, 12, gate64(CODE0, HANDLERS + 16 * 12, 0x8e, 1));
    set_gate(&bad, 10, gate64(CODE0, HANDLERS + 16 * 10, 0x8e, 1));
    assert_eq!(bad.run(&[0xcd, 0x50]).end(), End::Code(12, 0));
    bad.put64(TSS + 4, STACK0);
    set_gate(&bad, 0x50, gate64(CODE0, HANDLERS, 0xee, 7));
    bad.state.segments.tr.limit = 0x58;
    assert_eq!(bad.run(&[0xcd, 0x50]).end(), End::Code(10, TASK_A.into()));
}

/// Call gates of 16 bytes (5.8.3.1): no parameters, a null SS inside.
#[test]
fn call_gates() {
    let call = [0xff, 0x1c, 0x25, 0, 0x58, 0, 0, 0xcd, 0x40];
    let with = |ring, access, selector, code, upper| {
        let rig = long_rig(ring);
        let [low, high] = gate64(selector, TARGET, access, 2);
        rig.put64(GDT + u64::from(SLOT), low);
        rig.put64(GDT + u64::from(SLOT) + 8, high | upper);
        rig.describe(SECOND, code);
        // The far pointer of CALL: 32-bit offset, selector.
        rig.put32(0x5800, 0xffff_ffff);
        rig.put16(0x5804, SLOT | ring);
        rig.put(TARGET, &[0xf4]);
        rig
    };
    let long = descriptor(0, 0, 0x9b, 2);
    let ran = with(3, 0xec, SECOND, long, 0).run(&call);
    assert_eq!((ran.cpu.rip(), ran.cpu.cpl, ran.cpu.gpr(4)), (TARGET + 1, 0, STACK0 - 32));
    assert_eq!(quads(&ran), [CODE + 7, CODE3.into(), STACK, DATA3.into()]);
    assert_eq!((ran.cpu.segments[1].selector, ran.cpu.segments[2].selector), (SECOND, 0));
    // And back with a 64-bit RET.
    let rig = with(3, 0xec, SECOND, long, 0);
    rig.put(TARGET, &[0x48, 0xcb]);
    let ran = rig.run(&call);
    assert_eq!((ran.end(), quads::<4>(&ran)[3]), (End::Vector(0x40), STACK));
    for (access, selector, code, upper, wanted) in [
        (0xe4, SECOND, long, 0, End::Code(13, SLOT.into())),
        (0xe5, SECOND, long, 0, End::Code(13, SLOT.into())),
        (0xec, SECOND, descriptor(0, 0xf_ffff, 0x9b, 0xc), 0, End::Code(13, SECOND.into())),
        // The upper half's type field must be zero.
        (0xec, SECOND, long, 1 << 40, End::Code(13, SLOT.into())),
        (0xec, 0, long, 0, End::Code(13, 0)),
        (0x6c, SECOND, long, 0, End::Code(11, SLOT.into())),
        (0xec, SECOND, long, FAR >> 32, End::Code(13, 0)),
    ] {
        let ran = with(3, access, selector, code, upper).run(&call);
        assert_eq!(ran.end(), wanted, "{access:#x} {selector:#x} {code:#x} {upper:#x}");
    }
    // A TSS is no target of a CALL here.
    let rig = long_rig(0);
    rig.put32(0x5800, 0);
    rig.put16(0x5804, TASK_A);
    assert_eq!(rig.run(&call).end(), End::Code(13, TASK_A.into()));
}

/// IRET pops SS:RSP always; NT is #GP; a null SS is legal below ring 3 (SDM 2A IRET).
#[test]
fn iret() {
    let rig = long_rig(0);
    rig.put(TARGET, &[0xcd, 0x40]);
    for (frame, rflags, wanted) in [
        ([TARGET, CODE0.into(), 2, 0xb000, DATA0.into()], 2, End::Vector(0x40)),
        ([TARGET, CODE0.into(), 2, 0xb000, 0], 2, End::Vector(0x40)),
        ([TARGET, CODE3.into(), 2, 0xb000, DATA3.into()], 2, End::Vector(0x40)),
        ([TARGET, CODE3.into(), 2, 0xb000, 3], 2, End::Code(13, 0)),
        ([FAR, CODE0.into(), 2, 0xb000, DATA0.into()], 2, End::Code(13, 0)),
        ([TARGET, CODE0.into(), 2, 0xb000, DATA0.into()], 0x4002, End::Code(13, 0)),
    ] {
        let mut rig = Rig { memory: rig.memory.clone(), state: rig.state.clone() };
        rig.state.rflags = rflags;
        for (at, word) in (0..).zip(frame) {
            rig.put64(STACK + 8 * at, word);
        }
        let ran = rig.run(&[0x48, 0xcf]);
        assert_eq!(ran.end(), wanted, "{frame:x?}");
        if wanted == End::Vector(0x40) {
            let frame = quads::<5>(&ran);
            assert_eq!((frame[0], frame[3]), (TARGET + 2, 0xb000));
        }
    }
}

/// SYSCALL and SYSRET (SDM 2B), and what makes them #UD and #GP.
#[test]
fn fast_calls() {
    let user = || {
        let mut rig = long_rig(3);
        // STAR: kernel CS 8; user base 0x10, so that 64-bit CS is 0x20 + 3 and SS 0x18 + 3 by the instruction's rule.
        rig.state.set_msr(msr::STAR, 0x0010 << 48 | u64::from(CODE0) << 32);
        rig.state.set_msr(msr::LSTAR, TARGET);
        rig.state.set_msr(msr::FMASK, 0x200);
        rig.state.rflags = 0x3202;
        rig.put(TARGET, &[0xf4]);
        rig
    };
    let ran = user().run(&[0x0f, 0x05]);
    assert_eq!((ran.cpu.rip(), ran.cpu.cpl), (TARGET + 1, 0));
    assert_eq!((ran.cpu.regs[1], ran.cpu.regs[11], ran.cpu.rflags()), (CODE + 2, 0x3202, 0x3002));
    assert_eq!(ran.cpu.segments[1].selector, CODE0);
    assert_eq!((ran.cpu.segments[2].selector, ran.cpu.gpr(4)), (DATA0, STACK));
    let mut off = user();
    off.state.efer &= !Efer::SCE.bits();
    assert_eq!(off.run(&[0x0f, 0x05]).end(), End::Vector(6));
    // SYSRET to 64-bit code, from ring 0 only, to canonical addresses only.
    let mut back = user();
    back.put(TARGET, &[0x48, 0x0f, 0x07]);
    let ran = back.run_with(&[0x0f, 0x05], 2, 0);
    assert_eq!((ran.cpu.rip(), ran.cpu.cpl, ran.cpu.rflags()), (CODE + 2, 3, 0x3202));
    assert_eq!((ran.cpu.segments[1].selector, ran.cpu.segments[2].selector), (0x23, 0x1b));
    assert_eq!(back.run(&[0x48, 0x0f, 0x07]).end(), End::Code(13, 0), "SYSRET in ring 3");
    back.put(TARGET, &[&[0x48, 0xb9][..], &FAR.to_le_bytes(), &[0x48, 0x0f, 0x07]].concat());
    let ran = back.run(&[0x0f, 0x05]);
    assert_eq!((ran.end(), quads::<3>(&ran)[1]), (End::Code(13, 0), TARGET + 10), "still in ring 0");
    back.state.rflags = 2;
}

/// Writes of control registers and MSRs that the manual forbids (SDM 2B MOV CRn; SDM 3A 2.5, 4.1.2, 9.8.5).
#[test]
fn forbidden_control_registers() {
    use x86::Cr0;
    const OK: End = End::Ran;
    const GP: End = End::Code(13, 0);
    let mov = |register: u8, value: u64| {
        [&[0x48, 0xb8][..], &value.to_le_bytes(), &[0x0f, 0x22, 0xc0 | register << 3, 0xf4]].concat()
    };
    let cr0 = long_rig(0).state.cr0;
    let pae = Cr4::PAE.bits();
    for (register, value, wanted) in [
        (0, cr0 | Cr0::WP.bits(), OK),
        (0, cr0 | 1 << 32, GP),
        (0, cr0 & !Cr0::PE.bits(), GP),
        (0, cr0 | Cr0::NW.bits(), GP),
        (0, cr0 | (Cr0::NW | Cr0::CD).bits(), OK),
        // Paging cannot be left in 64-bit mode.
        (0, cr0 & !Cr0::PG.bits(), GP),
        (3, TABLES | 0x18, OK),
        (3, TABLES | 1 << 63, GP),
        (3, TABLES | 1 << 46, GP),
        (4, pae | Cr4::PGE.bits(), OK),
        (4, 0, GP),
        (4, pae | 1 << 31, GP),
        (4, pae | 1 << 63, GP),
        (4, pae | Cr4::LA57.bits(), GP),
        (4, pae | Cr4::PCIDE.bits(), OK),
        (8, 15, OK),
        (8, 16, GP),
    ] {
        if register == 8 && wanted == OK {
            // The local APIC, which keeps it, has tests of its own.
            continue;
        }
        let code = if register == 8 {
            [&[0x48, 0xb8][..], &value.to_le_bytes(), &[0x44, 0x0f, 0x22, 0xc0, 0xf4]].concat()
        } else {
            mov(register, value)
        };
        assert_eq!(long_rig(0).run(&code).end(), wanted, "CR{register} = {value:#x}");
    }
    // PCIDE needs a CR3 without PCID bits; once on, paging mode and bits 63 follow its rules.
    let mut with = long_rig(0);
    with.state.cr3 |= 0x18;
    assert_eq!(with.run(&mov(4, pae | Cr4::PCIDE.bits())).end(), GP);
    let mut with = long_rig(0);
    with.state.cr4 |= Cr4::PCIDE.bits();
    let ran = with.run(&mov(3, TABLES | 1 << 63 | 5));
    assert_eq!((ran.end(), ran.cpu.cr3), (OK, TABLES | 5), "bit 63 is not kept");
    assert_eq!(long_rig(0).run(&[0x0f, 0x22, 0xc8]).end(), End::Vector(6), "there is no CR1");
    // EFER: LME is fixed while paging is on, LMA is read-only, others are reserved.
    let efer = long_rig(0).state.efer;
    for (value, wanted) in [
        (efer & !Efer::LME.bits(), GP),
        (efer | 1 << 1, GP),
        (efer | 1 << 63, GP),
        (efer & !Efer::SCE.bits(), OK),
    ] {
        let code =
            [&[0xb8][..], &(value as u32).to_le_bytes(), &[0xba], &((value >> 32) as u32).to_le_bytes()];
        let code = [&code.concat()[..], &[0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x30, 0xf4]].concat();
        assert_eq!(long_rig(0).run(&code).end(), wanted, "EFER {value:#x}");
    }
}

/// Entering IA-32e mode (9.8.5): what CR0.PG needs with EFER.LME set.
#[test]
fn entering() {
    let set_paging = [0x0f, 0x20, 0xc0, 0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0, 0xf4];
    type Change = fn(&mut Rig);
    let cases: [(Change, End); 4] = [
        (|_| {}, End::Ran),
        (|rig| rig.state.cr4 = 0, End::Code(13, 0)),
        (|rig| rig.state.segments.cs.attributes.0 |= 1 << 13, End::Code(13, 0)),
        (|rig| rig.state.segments.tr.attributes.0 = 0x83, End::Code(13, 0)),
    ];
    for (number, (change, wanted)) in cases.into_iter().enumerate() {
        let mut rig = long_rig(0);
        rig.state.cr0 &= !x86::Cr0::PG.bits();
        rig.state.efer = Efer::LME.bits();
        rig.state.segments.cs = flat(CODE0, 0xc09b);
        change(&mut rig);
        // Legacy handlers, for the faults.
        for vector in 0..=0x1f_u64 {
            rig.put64(IDT + 8 * vector, gate(SLOT, HANDLERS + 16 * vector, 0x8e, 0));
        }
        rig.describe(SLOT, descriptor(0, 0xf_ffff, 0x9b, 0xc));
        let ran = rig.run(&set_paging);
        assert_eq!(ran.end(), wanted, "case {number}");
        assert_eq!(ran.cpu.efer.contains(Efer::LMA), wanted == End::Ran, "case {number}");
    }
}

/// INVPCID's operands (SDM 2A): (CR4.PCIDE, type, descriptor's low half, linear address, result).
#[test]
fn operands_of_invpcid() {
    const OK: End = End::Ran;
    const GP: End = End::Code(13, 0);
    for (pcide, kind, low, linear, wanted) in [
        (true, 0, 5_u64, 0x5000_u64, OK),
        (true, 0, 5, FAR, GP),
        (true, 1, 5, FAR, OK),
        (true, 2, 5, FAR, OK),
        (true, 3, 5, FAR, OK),
        (true, 4, 0, 0, GP),
        (true, 1 << 32, 0, 0, GP),
        (true, 0, 1 << 12, 0, GP),
        (true, 1, 1 << 63, 0, GP),
        (false, 0, 0, 0x5000, OK),
        (false, 0, 1, 0x5000, GP),
        (false, 1, 1, 0, GP),
        (false, 2, 1, 0, OK),
    ] {
        let mut rig = long_rig(0);
        rig.state.cr4 |= if pcide { Cr4::PCIDE.bits() } else { 0 };
        rig.put64(0x5800, low);
        rig.put64(0x5808, linear);
        rig.state.gprs[0] = kind;
        let ran = rig.run(&[0x66, 0x0f, 0x38, 0x82, 0x04, 0x25, 0, 0x58, 0, 0, 0xf4]);
        assert_eq!(ran.end(), wanted, "PCIDE {pcide}, type {kind:#x}, {low:#x}, {linear:#x}");
    }
    assert_eq!(long_rig(3).run(&[0x66, 0x0f, 0x38, 0x82, 0x04, 0x25, 0, 0x58, 0, 0]).end(), GP, "in ring 3");
}
