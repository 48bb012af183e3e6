//! Events between instructions (SDM 3A 6.7 to 6.9), and faults in the delivery of faults (6.15).

use super::rig::*;
use crate::system::event;
use x86::{Cr0, Cr4};

const IF: u64 = 1 << 9;
const TF: u64 = 1 << 8;
/// A maskable interrupt of the PIC, which answers vector 0.
const INTERRUPT: u32 = event::EXT_INT;
const HARDWARE: End = End::Vector(0);

/// Where an interrupt that waits from the start gets in: (IF at first, code, EIP of the frame; none if never).
#[test]
fn shadows_hold_interrupts_back() {
    for (enabled, code, at) in [
        (true, &[0x90, 0xf4][..], Some(0)),
        (false, &[0x90, 0xfa, 0x90], None),
        // sti; nop; nop
        (false, &[0xfb, 0x90, 0x90], Some(2)),
        // sti; sti: the second one holds nothing back
        (false, &[0xfb, 0xfb, 0x90], Some(2)),
        // sti; cli
        (false, &[0xfb, 0xfa, 0x90], None),
        // sti; hlt wakes up behind HLT
        (false, &[0xfb, 0xf4, 0x90], Some(2)),
        // sti; mov ss, ax; nop: MOV SS has a shadow of its own
        (false, &[0xfb, 0x8e, 0xd0, 0x90, 0x90], Some(4)),
    ] {
        let mut rig = Rig::new();
        rig.state.rflags |= if enabled { IF } else { 0 };
        rig.state.gprs[0] = DATA0.into();
        let ran = rig.run_with(&[code, &[0xf4]].concat(), 20, INTERRUPT);
        let wanted = if at.is_some() { HARDWARE } else { End::Ran };
        assert_eq!(ran.end(), wanted, "{code:x?}");
        if let Some(at) = at {
            assert_eq!(ran.frame()[0], CODE as u32 + at, "{code:x?}");
            assert_eq!(ran.cpu.rflags() & IF, 0);
        }
    }
}

/// MOV SS and POP SS shadow one instruction from interrupts and NMIs alike.
#[test]
fn shadows_of_the_stack_segment() {
    for (code, len) in [(&[0x8e, 0xd0][..], 2), (&[0x17], 1)] {
        for events in [INTERRUPT, NMI] {
            let mut rig = Rig::new();
            rig.state.rflags |= IF;
            rig.state.gprs[0] = DATA0.into();
            rig.put32(STACK, DATA0.into());
            let mut ran = rig.run_with(&[code, &[0x90, 0x90, 0xf4]].concat(), 1, 0);
            assert_eq!(ran.cpu.rip(), CODE + len);
            ran.go_on(events, 5);
            assert_eq!(ran.frame()[0], CODE as u32 + len as u32 + 1, "{code:x?}, {events:#x}");
        }
    }
}

/// An NMI blocks others until an IRET, even one that is not its own.
#[test]
fn nmis_wait_for_iret() {
    let rig = Rig::new();
    // nop; nop; iret
    rig.put(HANDLERS + 32, &[0x90, 0x90, 0xcf]);
    let mut ran = rig.run_with(&[0x90; 16], 1, NMI);
    assert_eq!(ran.cpu.rip(), HANDLERS + 33);
    ran.go_on(NMI, 1);
    assert_eq!(ran.cpu.rip(), HANDLERS + 34, "the second one waits");
    ran.go_on(0, 1);
    assert_eq!((ran.cpu.rip(), ran.cpu.gpr(4)), (CODE, STACK));
    ran.go_on(0, 1);
    assert_eq!((ran.cpu.rip(), ran.frame_at(0)), (HANDLERS + 33, CODE as u32), "and comes right behind IRET");
    ran.go_on(0, 3);
    assert_eq!(ran.cpu.rip(), CODE + 1, "there were two");
}

impl Ran {
    fn frame_at(&self, at: u64) -> u32 {
        self.word(at)
    }
}

/// Table 6-2: what comes first of what is there at the same boundary. The later one's frame points to the handler of
/// the former.
#[test]
fn priorities_between_instructions() {
    // A single step's trap before an NMI, an NMI before an interrupt.
    let mut rig = Rig::new();
    rig.state.rflags |= TF;
    let mut ran = rig.run_with(&[0x8e, 0xd0, 0x90, 0x90], 0, 0);
    ran.cpu.regs[0] = DATA0.into();
    ran.go_on(0, 1);
    // In the shadow of MOV SS both wait for the next instruction's end.
    ran.go_on(NMI, 3);
    assert_eq!((ran.end(), ran.frame()[0]), (End::Vector(2), HANDLERS as u32 + 16));

    let mut rig = Rig::new();
    rig.state.rflags |= IF;
    rig.put(HANDLERS + 32, &[0xcf]);
    let ran = rig.run_with(&[0x90, 0x90], 5, NMI | INTERRUPT);
    assert_eq!((ran.end(), ran.frame()[0]), (HARDWARE, CODE as u32), "the NMI was first, and returned");

    // An interrupt before an instruction breakpoint, which is a fault of the next instruction.
    let mut rig = Rig::new();
    rig.state.rflags |= IF;
    (rig.state.dr[0], rig.state.dr7) = (CODE, 0x401);
    assert_eq!(rig.run_with(&[0x90], 5, INTERRUPT).end(), HARDWARE);
    // A breakpoint before what the instruction itself would raise.
    let mut rig = Rig::new();
    (rig.state.dr[0], rig.state.dr7) = (CODE, 0x401);
    assert_eq!(rig.run(&[0x0f, 0x0b]).end(), End::Vector(1));
}

/// An interrupt between two iterations leaves RF in its frame; the instruction goes on where it was.
#[test]
fn repeated_instructions_are_interrupted() {
    let mut rig = Rig::new();
    rig.state.rflags |= IF;
    (rig.state.gprs[1], rig.state.gprs[6], rig.state.gprs[7]) = (5, 0xb000, 0xb100);
    rig.put(0xb000, b"abcde");
    let mut ran = rig.run_with(&[0xf3, 0xa4, 0xf4], 1, 0);
    assert_eq!((ran.cpu.rip(), ran.cpu.regs[1]), (CODE + 2, 0), "iterations are no instructions");
    // A breakpoint makes the loop look around after each.
    rig.put(0xb100, &[0; 5]);
    (rig.state.dr[0], rig.state.dr7) = (0xb102, 0x401 | 1 << 16);
    ran = rig.run(&[0xf3, 0xa4, 0xf4]);
    assert_eq!((ran.end(), ran.frame()[0], ran.cpu.regs[1]), (End::Vector(1), CODE as u32, 2));
    assert_ne!(ran.frame()[2] & 1 << 16, 0, "RF");
    assert_eq!(rig.get::<5>(0xb100), *b"abc\0\0");
}

/// Faults in delivery, end to end: what is missing in the IDT, what is raised, what comes of it.
#[test]
fn double_and_triple_faults() {
    let gone = |vectors: &[u64]| {
        let rig = Rig::new();
        vectors.iter().for_each(|vector| rig.put64(IDT + 8 * vector, 0x8e00 << 32));
        rig
    };
    let ud: &[u8] = &[0x0f, 0x0b];
    // mov ds, [a selector beyond the table]
    let gp: &[u8] = &[0xb8, 0, 1, 0, 0, 0x8e, 0xd8];
    let de: &[u8] = &[0x31, 0xc9, 0xf7, 0xf1];
    for (missing, code, wanted) in [
        (&[6_u64][..], ud, End::Code(13, 6 << 3 | 3)),
        (&[13], gp, End::Code(8, 0)),
        (&[0], de, End::Code(8, 0)),
        (&[6, 13], ud, End::Code(8, 0)),
        (&[13, 8], gp, End::Triple),
    ] {
        let rig = gone(&[]);
        // A present gate to a selector that is null is #GP; here the type is wrong, which names the entry.
        missing.iter().for_each(|vector| rig.put64(IDT + 8 * vector, 0x8c00 << 32));
        assert_eq!(rig.run(code).end(), wanted, "{missing:?}");
    }
}

/// Page faults make a double fault while a page fault is delivered; while a benign or contributory exception is, they are
/// delivered in its place (table 6-5).
#[test]
fn page_faults_in_delivery() {
    const FAR: u64 = 0x80_0000;
    let paged = || {
        let mut rig = Rig::new();
        rig.put32(0x10_0000, 0x83);
        (rig.state.cr3, rig.state.cr4) = (0x10_0000, Cr4::PSE.bits());
        rig.state.cr0 |= Cr0::PG.bits();
        rig
    };
    // The handler's code segment descriptor is on a missing page: a page fault in delivery. #PF and #DF have a good one.
    let far_gate = gate(FREE, HANDLERS, 0x8e, 0);
    let cases: [(u64, &[u8], End); 3] = [
        (6, &[0x0f, 0x0b], End::Code(14, 0)),
        (13, &[0xb8, 0xf0, 7, 0, 0, 0x8e, 0xd8], End::Code(14, 0)),
        (14, &[0xa1, 0, 0, 0x90, 0], End::Code(8, 0)),
    ];
    for (vector, code, wanted) in cases {
        let mut rig = paged();
        // The table lies across the end of the mapped memory: its second half is missing.
        let table = 0x40_0000 - u64::from(FREE);
        for at in 0..u64::from(FREE) / 8 {
            let entry = u64::from_le_bytes(rig.get(GDT + 8 * at));
            rig.put64(table + 8 * at, entry);
        }
        rig.state.gdtr.base = table;
        rig.put64(IDT + 8 * vector, far_gate);
        // #GP is raised by a selector beyond the limit, not by the page.
        let ran = rig.run(code);
        assert_eq!(ran.end(), wanted, "vector {vector}");
        assert_eq!(ran.cpu.cr2, 0x40_0000, "vector {vector}");
    }
    let mut rig = paged();
    rig.state.idtr.base = FAR;
    assert_eq!(rig.run(&[0x0f, 0x0b]).end(), End::Triple, "without any table");
}

/// The order of checks within an instruction: (code, what is raised although something else is wrong, too).
#[test]
fn priorities_within_an_instruction() {
    // The instruction is too long, and its opcode undefined: #GP.
    let long = [&[0x66; 15][..], &[0x0f, 0x0b]].concat();
    assert_eq!(Rig::new().run(&long).end(), End::Code(13, 0));
    // LOCK where it is undefined, in ring 3 with a privileged instruction: #UD.
    assert_eq!(Rig::user(0).run(&[0xf0, 0xf4]).end(), End::Vector(6));
    // Privilege before operands: LGDT from an address beyond a limit.
    let mut rig = Rig::user(0);
    rig.state.segments.ss.limit = 0xffff;
    assert_eq!(rig.run(&[0x36, 0x0f, 0x01, 0x15, 0, 0, 0x80, 0]).end(), End::Code(13, 0));
    // The device is not available before memory is looked at: FLD with CR0.TS.
    let mut rig = Rig::new();
    rig.state.cr0 |= Cr0::TS.bits();
    rig.state.segments.ds.limit = 0xfff;
    assert_eq!(rig.run(&[0xd9, 0x05, 0, 0, 0x80, 0]).end(), End::Vector(7));
    // The stack's limit is #SS, others' #GP.
    let mut rig = Rig::new();
    rig.state.segments.ds.limit = 0xfff;
    assert_eq!(rig.run(&[0xa1, 0, 0x10, 0, 0]).end(), End::Code(13, 0));
    let mut rig = Rig::new();
    rig.state.segments.ss.limit = 0xffff;
    assert_eq!(rig.run(&[0x36, 0xa1, 0, 0, 1, 0]).end(), End::Code(12, 0));
}
