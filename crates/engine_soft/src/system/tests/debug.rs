//! Debug exceptions (SDM 3B 17.2, 17.3).

use super::rig::*;
use x86::{Cr4, Vector};

const TF: u64 = 1 << 8;
const RF: u32 = 1 << 16;
const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
const DB: End = End::Vector(Vector::Debug as u8);
/// What DR6 may tell: B0 to B3, BD, BS, BT.
const TELLS: u64 = 0xe00f;

/// The trap comes behind an instruction that began with TF: (code, EIP of the frame).
#[test]
fn single_steps() {
    for (code, at) in [
        // nop; nop
        (&[0x90, 0x90][..], 1),
        // mov ss, ax; nop; nop: no trap behind MOV SS
        (&[0x8e, 0xd0, 0x90, 0x90], 3),
        // jmp over a byte
        (&[0xeb, 1, 0x90, 0x90], 3),
        // sti; nop
        (&[0xfb, 0x90], 1),
        // pushf; pop eax
        (&[0x9c, 0x58], 1),
    ] {
        let mut rig = Rig::new();
        rig.state.rflags |= TF;
        rig.state.gprs[0] = DATA0.into();
        let ran = rig.run(code);
        assert_eq!((ran.end(), ran.frame()[0]), (DB, CODE as u32 + at), "{code:x?}");
        assert_eq!((ran.cpu.dr6 & TELLS, ran.cpu.rflags() & TF), (BS, 0));
        assert_eq!(ran.frame()[2] & RF, 0, "a trap");
    }
    // POPF sets TF: the next instruction is the first that traps.
    let rig = Rig::new();
    rig.put32(STACK, 0x102);
    let ran = rig.run(&[0x9d, 0x90, 0x90]);
    assert_eq!((ran.end(), ran.frame()[0]), (DB, CODE as u32 + 2));
    // POPF clears it: it still traps itself.
    let mut rig = Rig::new();
    rig.state.rflags |= TF;
    rig.put32(STACK, 2);
    let ran = rig.run(&[0x9d, 0x90, 0x90]);
    assert_eq!((ran.end(), ran.frame()[0]), (DB, CODE as u32 + 1));
    // INT n and faults deliver with TF in the frame and clear it; no trap comes on top.
    let mut rig = Rig::new();
    rig.state.rflags |= TF;
    let ran = rig.run(&[0xcd, 0x40]);
    assert_eq!((ran.end(), ran.frame()[2] as u64 & TF), (End::Vector(0x40), TF));
    let ran = rig.run(&[0x0f, 0x0b]);
    assert_eq!((ran.end(), ran.frame()[2] as u64 & TF), (End::Vector(6), TF));
    assert_eq!(ran.cpu.dr6 & TELLS, 0);
}

/// Each iteration of a repeated string instruction is a step; all but the last leave RF in the frame.
#[test]
fn steps_of_repeated_instructions() {
    let mut rig = Rig::new();
    rig.state.rflags |= TF;
    (rig.state.gprs[1], rig.state.gprs[6], rig.state.gprs[7]) = (2, 0xb000, 0xb100);
    let ran = rig.run(&[0xf3, 0xa4, 0x90]);
    assert_eq!((ran.end(), ran.frame()[0], ran.frame()[2] & RF), (DB, CODE as u32, RF));
    assert_eq!(ran.cpu.regs[1], 1);
    rig.state.gprs[1] = 1;
    let ran = rig.run(&[0xf3, 0xa4, 0x90]);
    assert_eq!((ran.end(), ran.frame()[0], ran.frame()[2] & RF), (DB, CODE as u32 + 2, 0));
}

/// INT1 is a trap without breakpoint bits, and no gate's DPL stops it.
#[test]
fn int1() {
    for rig in [Rig::new(), Rig::user(0)] {
        rig.put64(IDT + 8, gate(CODE0, HANDLERS + 16, 0x8e, 0));
        let ran = rig.run(&[0xf1, 0x90]);
        assert_eq!((ran.end(), ran.frame()[0], ran.cpu.dr6 & TELLS), (DB, CODE as u32 + 1, 0));
    }
    let user = Rig::user(0);
    user.put64(IDT + 24, gate(CODE0, HANDLERS + 48, 0x8e, 0));
    assert_eq!(user.run(&[0xcc]).end(), End::Code(13, 3 << 3 | 2), "but it stops INT3");
}

/// Breakpoints on instructions are faults; RF lets one pass and is not in the frame by itself.
#[test]
fn instruction_breakpoints() {
    for (number, enable) in [(0, 1), (0, 2), (3, 1 << 6), (2, 1 << 5)] {
        let mut rig = Rig::new();
        rig.state.dr[number] = CODE + 1;
        rig.state.dr7 = 0x400 | enable;
        let ran = rig.run(&[0x90, 0x40, 0xf4]);
        assert_eq!((ran.end(), ran.frame()[0]), (DB, CODE as u32 + 1), "DR{number}");
        assert_eq!((ran.cpu.dr6 & TELLS, ran.cpu.regs[0], ran.frame()[2] & RF), (1 << number, 0, 0));
        rig.state.dr7 = 0x400;
        assert_eq!(rig.run(&[0x90, 0x40, 0xf4]).end(), End::Ran, "disabled");
    }
    let mut rig = Rig::new();
    (rig.state.dr[0], rig.state.dr7) = (CODE, 0x401);
    rig.state.rflags |= u64::from(RF);
    let ran = rig.run(&[0x90, 0xf4]);
    assert_eq!((ran.end(), ran.cpu.rip(), ran.cpu.rflags() as u32 & RF), (End::Ran, CODE + 2, 0));
    // IRET loads RF for the instruction it returns to.
    let mut rig = Rig::new();
    (rig.state.dr[0], rig.state.dr7) = (0x5000, 0x401);
    for (at, word) in (0..).zip([0x5000, u32::from(CODE0), RF | 2]) {
        rig.put32(STACK + 4 * at, word);
    }
    rig.put(0x5000, &[0x40, 0xf4]);
    let ran = rig.run(&[0xcf]);
    assert_eq!((ran.end(), ran.cpu.regs[0], ran.cpu.rip()), (End::Ran, 1, 0x5002));
    rig.put32(STACK + 8, 2);
    assert_eq!(rig.run(&[0xcf]).end(), DB);
    // The shadow of MOV SS hides one.
    let mut rig = Rig::new();
    (rig.state.dr[0], rig.state.dr7) = (CODE + 2, 0x401);
    rig.state.gprs[0] = DATA0.into();
    assert_eq!(rig.run(&[0x8e, 0xd0, 0x90, 0xf4]).end(), End::Ran);
    // Faults other than these push RF.
    assert_eq!(Rig::new().run(&[0x0f, 0x0b]).frame()[2] & RF, RF);
}

/// Breakpoints on data are traps: (R/W, LEN, address of DR0, instruction, address in EBX, hit).
#[test]
fn data_breakpoints() {
    const READ1: &[u8] = &[0x8a, 0x03]; // mov al, [ebx]
    const WRITE1: &[u8] = &[0x88, 0x03];
    const READ4: &[u8] = &[0x8b, 0x03];
    const WRITE4: &[u8] = &[0x89, 0x03];
    const PUSH: &[u8] = &[0xff, 0x33]; // push dword [ebx]
    let (write, access) = (1_u64, 3_u64);
    for (kind, len, at, code, address, hit) in [
        (write, 0, 0xb000_u64, WRITE1, 0xb000_u64, true),
        (write, 0, 0xb000, READ1, 0xb000, false),
        (access, 0, 0xb000, READ1, 0xb000, true),
        (access, 0, 0xb000, WRITE1, 0xb000, true),
        (write, 0, 0xb000, WRITE1, 0xb001, false),
        (write, 0, 0xb003, WRITE4, 0xb000, true),
        (write, 0, 0xb004, WRITE4, 0xb000, false),
        (write, 1, 0xb002, WRITE1, 0xb003, true),
        (write, 1, 0xb002, WRITE1, 0xb004, false),
        // Low bits of the address do not count.
        (write, 1, 0xb003, WRITE1, 0xb002, true),
        (write, 3, 0xb004, WRITE1, 0xb007, true),
        (write, 3, 0xb004, WRITE1, 0xb003, false),
        (write, 3, 0xb004, WRITE4, 0xb001, true),
        (write, 3, 0xb004, WRITE4, 0xb000, false),
        (access, 3, 0xb004, READ4, 0xb006, true),
        (write, 2, 0xb008, WRITE1, 0xb00f, true),
        (write, 2, 0xb008, WRITE1, 0xb010, false),
        (access, 3, 0xb004, PUSH, 0xb004, true),
        (write, 3, STACK - 4, PUSH, 0xb004, true),
    ] {
        let mut rig = Rig::new();
        rig.state.dr[1] = at;
        rig.state.dr7 = 0x400 | 1 << 2 | kind << 20 | len << 22;
        rig.state.gprs[3] = address;
        let ran = rig.run(&[code, &[0xf4]].concat());
        let row = format!("kind {kind}, length {len}, {at:#x}, {code:x?} at {address:#x}");
        assert_eq!(ran.end(), if hit { DB } else { End::Ran }, "{row}");
        if hit {
            assert_eq!((ran.frame()[0], ran.cpu.dr6 & TELLS), (CODE as u32 + code.len() as u32, 2), "{row}");
        }
    }
}

/// What MOV SS and POP SS hit is told of behind the next instruction, even if that is in a handler (SDM 3A 6.8.3).
#[test]
fn breakpoints_in_the_shadow_of_the_stack_segment() {
    // mov ss, [ebx]; nop; nop and pop ss; nop; nop, then with INT 40h
    for (code, at) in [
        (&[0x8e, 0x13, 0x90, 0x90, 0xf4][..], CODE + 3),
        (&[0x17, 0x90, 0x90, 0xf4], CODE + 2),
        (&[0x8e, 0x13, 0xcd, 0x40], HANDLERS + 0x400),
    ] {
        let mut rig = Rig::new();
        rig.put32(STACK, DATA0.into());
        rig.state.gprs[3] = STACK;
        (rig.state.dr[0], rig.state.dr7) = (STACK, 0x401 | 3 << 16);
        let ran = rig.run(code);
        assert_eq!((ran.end(), ran.frame()[0]), (DB, at as u32), "{code:x?}");
        assert_eq!(ran.cpu.dr6 & TELLS, 1, "{code:x?}");
    }
}

/// Breakpoints on ports need CR4.DE: (LEN, DR0, instruction, hit).
#[test]
fn port_breakpoints() {
    const IN: &[u8] = &[0xe4, 0x43]; // in al, 43h
    const OUT: &[u8] = &[0xe6, 0x43];
    const IN4: &[u8] = &[0xe5, 0x40]; // in eax, 40h
    const INS: &[u8] = &[0x6c]; // insb, port 43h
    for (len, at, code, hit) in [
        (0, 0x43, IN, true),
        (0, 0x43, OUT, true),
        (0, 0x43, INS, true),
        (0, 0x42, IN, false),
        (1, 0x42, IN, true),
        (3, 0x40, IN, true),
        (0, 0x43, IN4, true),
        (0, 0x44, IN4, false),
    ] {
        for extension in [true, false] {
            let mut rig = Rig::new();
            rig.state.dr[0] = at;
            rig.state.dr7 = 0x401 | 2 << 16 | len << 18;
            rig.state.cr4 = if extension { Cr4::DE.bits() } else { 0 };
            (rig.state.gprs[2], rig.state.gprs[7]) = (0x43, 0xb000);
            let ran = rig.run(&[code, &[0xf4]].concat());
            let wanted = if hit && extension { DB } else { End::Ran };
            assert_eq!(ran.end(), wanted, "length {len}, {at:#x}, {code:x?}, CR4.DE {extension}");
        }
    }
}

/// General detect: MOV DR faults, and the handler may use the registers.
#[test]
fn general_detect() {
    let mut rig = Rig::new();
    rig.state.dr7 = 0x400 | 1 << 13;
    for code in [&[0x0f, 0x21, 0xc0][..], &[0x0f, 0x23, 0xc0], &[0x0f, 0x21, 0xf8]] {
        let ran = rig.run(code);
        assert_eq!((ran.end(), ran.frame()[0]), (DB, CODE as u32), "{code:x?}");
        assert_eq!((ran.cpu.dr6 & TELLS, ran.cpu.dr7), (BD, 0x400));
    }
}

/// DR4 and DR5 are DR6 and DR7 without CR4.DE and undefined with it; reserved bits read as the manual says.
#[test]
fn the_registers_themselves() {
    let rig = Rig::new();
    // mov eax, ffffffffh; mov dr6, eax; mov dr7, eax (but for GD); mov ecx, dr4; mov edx, dr5
    let code = [
        0xb8, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x23, 0xf0, 0xb8, 0xff, 0xdf, 0xff, 0xff, 0x0f, 0x23, 0xf8, 0x0f,
        0x21, 0xe1, 0x0f, 0x21, 0xea, 0xf4,
    ];
    let ran = rig.run(&code);
    assert_eq!((ran.end(), ran.cpu.regs[1], ran.cpu.regs[2]), (End::Ran, 0xffff_efff, 0xffff_0fff));
    let ran =
        rig.run(&[0x31, 0xc0, 0x0f, 0x23, 0xf0, 0x0f, 0x23, 0xf8, 0x0f, 0x21, 0xf1, 0x0f, 0x21, 0xfa, 0xf4]);
    assert_eq!((ran.cpu.regs[1], ran.cpu.regs[2]), (0xffff_0ff0, 0x400));
    let mut rig = Rig::new();
    rig.state.cr4 = Cr4::DE.bits();
    assert_eq!(rig.run(&[0x0f, 0x21, 0xe1]).end(), End::Vector(6));
    assert_eq!(Rig::user(3).run(&[0x0f, 0x21, 0xc1]).end(), End::Code(13, 0));
}
