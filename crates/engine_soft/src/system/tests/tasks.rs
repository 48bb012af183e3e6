//! Task switches (SDM 3A 7.3): tables 7-1 and 7-2, and figure 7-2.

use super::rig::*;
use crate::cpu::seg;
use x86::{Cr0, Cr4};

const TASK_B: u16 = FREE;
const TASK_GATE: u16 = 0x38;
const LDT: u16 = 0x40;
const BAD: u16 = 0x48;
const TSS_B: u64 = 0x3100;
const TARGET: u64 = 0x5000;
const NT: u32 = 1 << 14;
/// jmp to itself
const SPIN: [u8; 2] = [0xeb, 0xfe];

/// far JMP and CALL with a 32-bit offset
fn far(opcode: u8, selector: u16) -> Vec<u8> {
    [&[opcode, 0, 0, 0, 0][..], &selector.to_le_bytes(), &[0xf4]].concat()
}
fn jmp(selector: u16) -> Vec<u8> {
    far(0xea, selector)
}
fn call(selector: u16) -> Vec<u8> {
    far(0x9a, selector)
}

/// A rig with task B: ring 3, so that the handlers of faults in it have the stack of its TSS.
fn rig() -> Rig {
    let rig = Rig::new();
    rig.describe(TASK_B, descriptor(TSS_B, 0x67, 0x89, 0));
    rig.describe(TASK_GATE, gate(TASK_B, 0, 0x85, 0));
    rig.describe(LDT, descriptor(0x3400, 0xf, 0x82, 0));
    rig.put32(TSS_B, 0xdead_0000 | 0x77);
    for (offset, value) in [
        (4, 0xb000),
        (8, DATA0.into()),
        (0x1c, 0),
        (0x20, TARGET as u32),
        (0x24, 0x0000_0a97),
        (0x28, 0x1111_0001),
        (0x2c, 0x1111_0002),
        (0x30, 0x1111_0003),
        (0x34, 0x1111_0004),
        (0x38, 0xc000),
        (0x3c, 0x1111_0006),
        (0x40, 0x1111_0007),
        (0x44, 0x1111_0008),
        (0x48, DATA3.into()),
        (0x4c, CODE3.into()),
        (0x50, DATA3.into()),
        (0x54, DATA3.into()),
        (0x58, 0),
        (0x5c, DATA3.into()),
        (0x60, LDT.into()),
        (0x64, 0),
    ] {
        rig.put32(TSS_B + offset, value);
    }
    // A user program that says where it is: INT 40h.
    rig.put(TARGET, &[0xcd, 0x40]);
    rig
}

#[test]
fn a_switch_loads_and_saves_every_register() {
    let mut rig = rig();
    rig.state.gprs[..8].copy_from_slice(&[1, 2, 3, 4, STACK, 6, 7, 8]);
    rig.state.rflags = 0x0ad7;
    let ran = rig.run_with(&jmp(TASK_B), 1, 0);
    let cpu = &ran.cpu;
    assert_eq!(
        cpu.regs[..8],
        [0x1111_0001, 0x1111_0002, 0x1111_0003, 0x1111_0004, 0xc000, 0x1111_0006, 0x1111_0007, 0x1111_0008]
    );
    assert_eq!((cpu.rip(), cpu.rflags(), cpu.cpl), (TARGET, 0xa97, 3));
    let selectors = cpu.segments.map(|segment| segment.selector);
    assert_eq!(selectors, [DATA3, CODE3, DATA3, DATA3, 0, DATA3, LDT, TASK_B]);
    assert_eq!((cpu.segments[6].base, cpu.segments[6].limit), (0x3400, 0xf));
    assert_eq!((cpu.segments[7].base, cpu.segments[7].attributes.0), (TSS_B, 0x8b));
    assert!(!cpu.segments[usize::from(seg::FS)].attributes.present());
    assert!(cpu.cr0.contains(Cr0::TS));
    let saved: [u32; 10] = std::array::from_fn(|at| rig.get32(TSS + 0x20 + 4 * at as u64));
    assert_eq!(saved, [CODE as u32 + 7, 0xad7, 1, 2, 3, 4, STACK as u32, 6, 7, 8]);
    let selectors: [u32; 6] = std::array::from_fn(|at| rig.get32(TSS + 0x48 + 4 * at as u64));
    assert_eq!(selectors, [DATA0, CODE0, DATA0, DATA0, DATA0, DATA0].map(u32::from));
    assert_eq!((rig.get32(TSS + 4), rig.get32(TSS + 0x60)), (STACK0 as u32, 0), "static fields stay");
}

/// Table 7-2: busy flags, NT flags, link fields and TS, for each way of switching.
#[test]
fn busy_nested_and_link() {
    #[derive(Clone, Copy, Debug)]
    enum Way {
        Jump,
        Call,
        Interrupt,
        Return,
    }
    for way in [Way::Jump, Way::Call, Way::Interrupt, Way::Return] {
        let mut rig = rig();
        rig.put64(IDT + 8 * 0x50, gate(TASK_B, 0, 0xe5, 0));
        let code = match way {
            Way::Jump => jmp(TASK_GATE),
            Way::Call => call(TASK_GATE),
            Way::Interrupt => vec![0xcd, 0x50],
            Way::Return => vec![0xcf],
        };
        if let Way::Return = way {
            rig.state.rflags |= u64::from(NT);
            rig.describe(TASK_B, descriptor(TSS_B, 0x67, 0x8b, 0));
            rig.put32(TSS, 0xabcd_0000 | u32::from(TASK_B));
        }
        let link_before = rig.get32(TSS_B);
        let ran = rig.run_with(&code, 1, 0);
        let nests = matches!(way, Way::Call | Way::Interrupt);
        assert_eq!(ran.cpu.segments[7].selector, TASK_B, "{way:?}");
        assert_eq!(rig.access(TASK_B), 0x8b, "{way:?}: the new task is busy");
        assert_eq!(rig.access(TASK_A), if nests { 0x8b } else { 0x89 }, "{way:?}: the old task");
        assert_eq!(ran.cpu.rflags() as u32 & NT != 0, nests, "{way:?}: NT of the new task");
        assert_eq!(rig.get32(TSS + 0x24) & NT, 0, "{way:?}: NT of the old task");
        let link = if nests { link_before & 0xffff_0000 | u32::from(TASK_A) } else { link_before };
        assert_eq!(rig.get32(TSS_B), link, "{way:?}: link field");
        assert!(ran.cpu.cr0.contains(Cr0::TS), "{way:?}");
    }
}

#[test]
fn a_called_task_returns_behind_the_call() {
    let rig = rig();
    // The task is of ring 0 and returns at once; called again, it goes on behind its IRET.
    for (offset, value) in [(0x4c, CODE0), (0x50, DATA0), (0x48, DATA0), (0x54, DATA0), (0x5c, DATA0)] {
        rig.put32(TSS_B + offset, value.into());
    }
    rig.put(TARGET, &[0x43, 0xcf, 0x43, 0xcd, 0x41]);
    let call = &call(TASK_B)[..7];
    let ran = rig.run(&[call, &[0x43], call].concat());
    assert_eq!(ran.end(), End::Vector(0x41));
    assert_eq!((ran.cpu.regs[3], rig.get32(TSS + 0x34)), (0x1111_0006, 1), "EBX of both tasks");
    assert_eq!(rig.get32(TSS + 0x20), CODE as u32 + 15);
}

/// Table 7-1, the checks that fault in the old task: (descriptor of B, selector that is jumped to, exception).
#[test]
fn checks_in_the_old_task() {
    let tss = |access, limit| descriptor(TSS_B, limit, access, 0);
    let b = u32::from(TASK_B);
    for (new, selector, wanted) in [
        (tss(0x89, 0x67), TASK_B, End::Vector(0x40)),
        (tss(0x8b, 0x67), TASK_B, End::Code(13, b)),
        (tss(0x09, 0x67), TASK_B, End::Code(11, b)),
        (tss(0x89, 0x66), TASK_B, End::Code(10, b)),
        (tss(0x81, 0x2a), TASK_B, End::Code(10, b)),
        // A requested privilege below the descriptor's.
        (tss(0x89, 0x67), TASK_B | 3, End::Code(13, b)),
        // In the LDT, and beyond the table.
        (tss(0x89, 0x67), 0x0c, End::Code(13, 0x0c)),
        (tss(0x89, 0x67), 0x100, End::Code(13, 0x100)),
        (tss(0x89, 0x67), 0, End::Code(13, 0)),
    ] {
        for opcode in [0xea, 0x9a] {
            let rig = rig();
            rig.describe(TASK_B, new);
            let ran = rig.run(&far(opcode, selector));
            assert_eq!(ran.end(), wanted, "{new:#x} by {selector:#x}");
            if wanted != End::Vector(0x40) {
                assert_eq!(ran.frame()[..2], [CODE as u32, CODE0.into()], "the fault is the old task's");
                assert_eq!(rig.access(TASK_A), 0x8b);
            }
        }
    }
}

/// The same through a task gate, and by IRET, which wants a busy task and raises `#TS`.
#[test]
fn checks_of_gates_and_links() {
    let gate_code = u32::from(TASK_GATE);
    for (entry, wanted) in [
        (gate(TASK_B, 0, 0x85, 0), End::Vector(0x40)),
        (gate(TASK_B, 0, 0x05, 0), End::Code(11, gate_code)),
        (gate(TASK_B | 4, 0, 0x85, 0), End::Code(13, u32::from(TASK_B | 4))),
        (gate(DATA0, 0, 0x85, 0), End::Code(13, DATA0.into())),
        (gate(TASK_A, 0, 0x85, 0), End::Code(13, TASK_A.into())),
        (gate(0, 0, 0x85, 0), End::Code(13, 0)),
    ] {
        let rig = rig();
        rig.describe(TASK_GATE, entry);
        assert_eq!(rig.run(&jmp(TASK_GATE)).end(), wanted, "{entry:#x}");
    }
    for (link, access, wanted) in [
        (TASK_B, 0x8b_u64, End::Vector(0x40)),
        (TASK_B, 0x89, End::Code(10, TASK_B.into())),
        (TASK_B, 0x0b, End::Code(11, TASK_B.into())),
        (TASK_B | 4, 0x8b, End::Code(10, u32::from(TASK_B | 4))),
        (0x100, 0x8b, End::Code(10, 0x100)),
        (DATA0, 0x8b, End::Code(10, DATA0.into())),
    ] {
        let mut rig = rig();
        rig.describe(TASK_B, descriptor(TSS_B, 0x67, access, 0));
        rig.put32(TSS, link.into());
        rig.state.rflags |= u64::from(NT);
        assert_eq!(rig.run(&[0xcf]).end(), wanted, "link {link:#x}, access {access:#x}");
    }
}

/// Table 7-1, the checks that fault in the new task: (field of B, selector, descriptor at [`BAD`], exception).
#[test]
fn checks_in_the_new_task() {
    const CS: u64 = 0x4c;
    const SS: u64 = 0x50;
    const DS: u64 = 0x54;
    const LDTR: u64 = 0x60;
    let entry = |access| descriptor(0, 0xf_ffff, access, 0xc);
    let bad = u32::from(BAD);
    for (field, selector, descriptor, wanted) in [
        (LDTR, BAD, entry(0xf3), End::Code(10, bad)),
        (LDTR, BAD, entry(0x02), End::Code(10, bad)),
        (LDTR, BAD | 4, entry(0x82), End::Code(10, bad | 4)),
        (LDTR, 0x100, entry(0x82), End::Code(10, 0x100)),
        (LDTR, 0, 0, End::Vector(0x40)),
        (CS, 3, 0, End::Code(10, 0)),
        (CS, 0x103, 0, End::Code(10, 0x100)),
        (CS, BAD | 3, entry(0xf3), End::Code(10, bad)),
        (CS, BAD | 3, entry(0x9b), End::Code(10, bad)),
        (CS, BAD | 3, entry(0x7b), End::Code(11, bad)),
        (CS, BAD | 3, entry(0xff), End::Vector(0x40)),
        (SS, 3, 0, End::Code(10, 0)),
        (SS, 0x103, 0, End::Code(10, 0x100)),
        (SS, BAD | 3, entry(0xf1), End::Code(10, bad)),
        (SS, BAD | 3, entry(0xfb), End::Code(10, bad)),
        (SS, BAD | 3, entry(0x93), End::Code(10, bad)),
        (SS, BAD, entry(0xf3), End::Code(10, bad)),
        (SS, BAD | 3, entry(0x73), End::Code(12, bad)),
        (DS, 0x103, 0, End::Code(10, 0x100)),
        (DS, BAD | 3, entry(0xf9), End::Code(10, bad)),
        (DS, BAD | 3, entry(0x93), End::Code(10, bad)),
        (DS, BAD | 3, entry(0x82), End::Code(10, bad)),
        (DS, BAD | 3, entry(0x73), End::Code(11, bad)),
        (DS, BAD | 3, entry(0x9f), End::Vector(0x40)),
        (DS, 0, 0, End::Vector(0x40)),
    ] {
        let rig = rig();
        rig.describe(BAD, descriptor);
        rig.put32(TSS_B + field, selector.into());
        let ran = rig.run(&jmp(TASK_B));
        assert_eq!(ran.end(), wanted, "field {field:#x}, selector {selector:#x}, {descriptor:#x}");
        if let End::Code(..) = wanted {
            assert_eq!(ran.frame()[0], TARGET as u32, "the fault is the new task's");
            assert_eq!(ran.cpu.segments[7].selector, TASK_B);
            assert_eq!(rig.access(TASK_A), 0x89);
        }
    }
}

/// A null selector is null whatever the GDT's first entry holds.
#[test]
fn the_first_entry_of_the_gdt_is_never_used() {
    let rig = rig();
    rig.describe(0, descriptor(0, 0xf_ffff, 0xf3, 0xc));
    rig.put32(TSS_B + 0x50, 3);
    assert_eq!(rig.run(&jmp(TASK_B)).end(), End::Code(10, 0));
}

/// An EIP outside of the code segment faults in the new task (SDM 2A JMP).
#[test]
fn the_new_instruction_pointer_is_checked() {
    let rig = rig();
    rig.describe(BAD, descriptor(0, 0x4fff, 0xfb, 0x4));
    rig.put32(TSS_B + 0x4c, u32::from(BAD | 3));
    assert_eq!(rig.run(&jmp(TASK_B)).end(), End::Code(13, 0));
}

/// An exception with an error code through a task gate pushes it in the new task; the gate's own faults say EXT.
#[test]
fn exceptions_through_task_gates() {
    let rig = rig();
    rig.put64(IDT + 8 * 13, gate(TASK_B, 0, 0x85, 0));
    rig.put(TARGET, &SPIN);
    // mov ds, [the selector of a missing descriptor]
    let ran = rig.run(&[0xb8, 0x40, 0x01, 0, 0, 0x8e, 0xd8]);
    assert_eq!((ran.cpu.segments[7].selector, ran.cpu.gpr(4), ran.word(0)), (TASK_B, 0xc000 - 4, 0x140));
    assert_eq!(rig.get32(TSS + 0x20), CODE as u32 + 5, "EIP of the faulting instruction");
    assert_ne!(rig.get32(TSS + 0x24) & 1 << 16, 0, "RF in the saved flags of a fault");

    let busy = self::rig();
    busy.put64(IDT + 8 * 6, gate(TASK_A, 0, 0x85, 0));
    assert_eq!(busy.run(&[0x0f, 0x0b]).end(), End::Code(13, u32::from(TASK_A) | 1));
    busy.put64(IDT + 8 * 0x50, gate(TASK_A, 0, 0xe5, 0));
    assert_eq!(busy.run(&[0xcd, 0x50]).end(), End::Code(13, TASK_A.into()), "INT n is not external");
}

/// A double fault reaches a task of its own with a good stack when the old one has none: what 32-bit kernels do.
#[test]
fn a_double_fault_finds_its_task() {
    let mut rig = rig();
    rig.put64(IDT + 8 * 8, gate(TASK_B, 0, 0x85, 0));
    rig.state.segments.ss.limit = 0xfff;
    rig.put(TARGET, &SPIN);
    let ran = rig.run(&[0x50]);
    assert_eq!((ran.cpu.segments[7].selector, ran.cpu.rip(), ran.word(0)), (TASK_B, TARGET, 0));
    assert_eq!(rig.get32(TSS + 0x20), CODE as u32);
}

/// The debug trap flag: #DB before the new task's first instruction, after everything else.
#[test]
fn the_debug_trap_flag() {
    let rig = rig();
    rig.put32(TSS_B + 0x64, 1);
    let ran = rig.run(&jmp(TASK_B));
    assert_eq!((ran.end(), ran.frame()[0]), (End::Vector(1), TARGET as u32));
    assert_eq!(ran.cpu.dr6 & 0xe00f, 1 << 15);
    // By an exception with an error code: the code is on the new task's stack when the trap comes.
    rig.describe(TASK_B, descriptor(TSS_B, 0x67, 0x89, 0));
    rig.put64(IDT + 8 * 13, gate(TASK_B, 0, 0x85, 0));
    let ran = rig.run(&[0xb8, 0x40, 0x01, 0, 0, 0x8e, 0xd8]);
    assert_eq!((ran.end(), ran.frame()[0], ran.word(3)), (End::Vector(1), TARGET as u32, 0xc000 - 4));
    assert_eq!(rig.get32(0xc000 - 4), 0x140);
}

/// Local breakpoints belong to a task; global ones stay (SDM 3B 17.2.4).
#[test]
fn local_breakpoints_end_with_the_task() {
    let mut rig = rig();
    (rig.state.dr, rig.state.dr7) = ([0xffff_0000; 4], 0x7ff);
    assert_eq!(rig.run_with(&jmp(TASK_B), 1, 0).cpu.dr7, 0x6aa);
}

/// With paging on, CR3 changes with the task, before anything of the new task is looked up.
#[test]
fn the_page_directory_changes_with_the_task() {
    let mut rig = rig();
    let (old, new) = (0x10_0000_u64, 0x11_0000_u64);
    rig.put32(old, 0x83);
    // The new directory has the first 4 MiB for users, too.
    rig.put32(new, 0x87);
    (rig.state.cr3, rig.state.cr4) = (old, Cr4::PSE.bits());
    rig.state.cr0 |= Cr0::PG.bits();
    rig.put32(TSS_B + 0x1c, new as u32);
    let ran = rig.run(&jmp(TASK_B));
    assert_eq!((ran.end(), ran.cpu.cr3), (End::Vector(0x40), new));
    assert_eq!(rig.get32(TSS + 0x1c), 0, "CR3 is not saved");
}

/// A 16-bit TSS (figure 7-10): no CR3, no FS and GS, half registers.
#[test]
fn sixteen_bit_tasks() {
    let mut rig = rig();
    rig.describe(TASK_B, descriptor(TSS_B, 0x2b, 0x81, 0));
    let halves = [
        0x77,
        0xb000,
        DATA0,
        0,
        0,
        0,
        0,
        TARGET as u16,
        0x0a97,
        1,
        2,
        3,
        4,
        0xc000,
        6,
        7,
        8,
        DATA3,
        CODE3,
        DATA3,
        DATA3,
        LDT,
    ];
    for (offset, half) in (0..).zip(halves) {
        rig.put16(TSS_B + 2 * offset, half);
    }
    rig.state.gprs[..8].copy_from_slice(&[0, 0, 0, 0, STACK, 0, 0, 0]);
    let ran = rig.run_with(&call(TASK_B), 1, 0);
    let low: Vec<u64> = ran.cpu.regs[..8].iter().map(|value| value & 0xffff).collect();
    assert_eq!(low, [1, 2, 3, 4, 0xc000, 6, 7, 8]);
    assert_eq!((ran.cpu.rip(), ran.cpu.rflags()), (TARGET, 0x4a97));
    assert_eq!(ran.cpu.segments[7].attributes.0 & 0x8f, 0x83);
    assert_eq!(rig.get::<2>(TSS_B), TASK_A.to_le_bytes());
    for number in [seg::FS, seg::GS] {
        assert!(!ran.cpu.segments[usize::from(number)].attributes.present());
    }
    // Back from there into the 32-bit task: what a 16-bit TSS saves are halves.
    rig.put16(TSS_B + 0x22, DATA0);
    rig.put16(TSS_B + 0x24, CODE0);
    rig.put16(TSS_B + 0x26, DATA0);
    rig.put16(TSS_B + 0x28, DATA0);
    rig.describe(TASK_B, descriptor(TSS_B, 0x2b, 0x81, 0));
    rig.put(TARGET, &[0xcf]);
    let ran = rig.run_with(&[&call(TASK_B)[..7], &[0xcd, 0x42]].concat(), 10, 0);
    assert_eq!(ran.end(), End::Vector(0x42));
    assert_eq!(rig.get::<2>(TSS_B + 0x0e), (TARGET as u16 + 1).to_le_bytes());
    assert_eq!(rig.access(TASK_B), 0x81);
}

/// A task whose saved flags have VM runs in virtual-8086 mode.
#[test]
fn virtual_8086_tasks() {
    let rig = rig();
    for (offset, value) in [
        (0x20, 0x10),
        (0x24, 0x2_3002),
        (0x38, 0x100),
        (0x48, 0x1111),
        (0x4c, 0x4ff),
        (0x50, 0x0c00),
        (0x54, 0x2222),
        (0x58, 0x3333),
        (0x5c, 0x4444),
    ] {
        rig.put32(TSS_B + offset, value);
    }
    let ran = rig.run_with(&jmp(TASK_B), 1, 0);
    assert!(ran.cpu.is_v86());
    assert_eq!(ran.cpu.cpl, 3);
    let segments = ran.cpu.segments.map(|segment| (segment.selector, segment.base, segment.limit));
    let wanted = [0x1111_u16, 0x4ff, 0xc00, 0x2222, 0x3333, 0x4444];
    assert_eq!(segments[..6], wanted.map(|selector| (selector, u64::from(selector) << 4, 0xffff)));
    // 04ff:0010 is TARGET, in 16-bit code: INT 40h, through ring 0 of the new task's TSS.
    let ran = rig_again(&rig);
    assert_eq!(ran.end(), End::Vector(0x40));
    assert_eq!(ran.words::<9>(), [0x12, 0x4ff, 0x2_3002, 0x100, 0xc00, 0x1111, 0x2222, 0x3333, 0x4444]);
}

fn rig_again(rig: &Rig) -> Ran {
    rig.describe(TASK_B, descriptor(TSS_B, 0x67, 0x89, 0));
    rig.run(&jmp(TASK_B))
}
