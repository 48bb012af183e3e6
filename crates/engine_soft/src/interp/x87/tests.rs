//! Tests of the x87. The oracle is the host, reached through FRSTOR and FNSAVE instead of FXRSTOR64 and
//! FXSAVE64, so that the environment formats are compared as well.

use crate::cpu::Cpu;
use crate::interp::simd::tests::native::Code as NativeCode;
use crate::interp::simd::tests::{DATA, Random, cpu, decode, faults, run};
use iced_x86::{Decoder, DecoderOptions};
use x86::{Cr0, RFlags, Vector};

/// Bytes that the 32-bit FNSAVE writes.
const SAVE: usize = 108;
/// Offset of the memory operand in [`Frame`].
const OPERAND: u8 = 112;

/// What the native frame works on.
#[derive(Clone)]
#[repr(C, align(64))]
struct Frame {
    bytes: [u8; 128],
    rflags: u64,
}

/// FRSTOR [RDI]; push [RDI+128]; POPFQ; LEA RDI,[RDI+112]; the bytes; LEA RDI,[RDI-112]; PUSHFQ;
/// pop [RDI+128]; FNSAVE [RDI]; RET
fn native(code: &mut NativeCode, bytes: &[u8], frame: &mut Frame) {
    let mut machine = vec![0xdd, 0x27, 0xff, 0xb7, 128, 0, 0, 0, 0x9d];
    machine.extend([0x48, 0x8d, 0x7f, OPERAND]);
    machine.extend(bytes);
    machine.extend([0x48, 0x8d, 0x7f, OPERAND.wrapping_neg()]);
    machine.extend([0x9c, 0x8f, 0x87, 128, 0, 0, 0, 0xdd, 0x37, 0xc3]);
    code.call(&machine, (&raw mut *frame).cast());
}

/// A value of one of the kinds that the FPU tells apart.
fn value(random: &mut Random) -> [u8; 10] {
    let mut value = [0; 10];
    value[..8].copy_from_slice(&random.next().to_le_bytes());
    let exponent: u16 = match random.below(10) {
        0 => 0,
        1 => 0x7fff,
        2 => 0x7ffe,
        3 => 1,
        4 => 0x3fff,
        5..=7 => 0x3fff - 40 + random.below(90) as u16,
        _ => random.next() as u16 & 0x7fff,
    };
    if exponent != 0 && random.below(12) != 0 {
        value[7] |= 0x80;
    }
    if random.below(6) == 0 {
        value[..8].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80]);
    }
    if exponent == 0 && random.below(2) == 0 {
        value[..8].fill(0);
    }
    let sign = (random.next() as u16) << 15;
    value[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
    value
}

/// A 32-bit protected-mode image for FRSTOR without pending unmasked exceptions.
fn image(random: &mut Random, masked: bool) -> [u8; SAVE] {
    let mut bytes = [0; SAVE];
    let rounding = (random.below(4) as u16) << 10;
    let precision = [0, 2, 3][random.below(3)] << 8;
    let masks = if masked { 0x3f } else { random.next() as u16 & 0x3f };
    let fcw = 0x40 | rounding | precision | masks;
    let fsw = random.next() as u16 & 0x7f40 | random.next() as u16 & masks;
    let tags = if random.below(3) == 0 { random.next() as u16 } else { 0 };
    bytes[0..2].copy_from_slice(&fcw.to_le_bytes());
    bytes[4..6].copy_from_slice(&fsw.to_le_bytes());
    bytes[8..10].copy_from_slice(&tags.to_le_bytes());
    for register in bytes[28..].chunks_exact_mut(10) {
        register.copy_from_slice(&value(random));
    }
    bytes
}

/// The guest loads and stores the same way as the native frame.
fn guest(cpu: &mut Cpu, bytes: &[u8], frame: &mut Frame) {
    for at in [0, 64] {
        let half: [u8; 64] = std::array::from_fn(|byte| frame.bytes[at + byte]);
        cpu.store(3, DATA + at as u64, half).expect("guest memory is there");
    }
    cpu.flags.set_bits(frame.rflags);
    cpu.regs[7] = DATA;
    assert_eq!(run(cpu, &[0xdd, 0x27]), Ok(()));
    cpu.regs[7] = DATA + u64::from(OPERAND);
    assert_eq!(run(cpu, bytes), Ok(()), "{bytes:02x?}");
    cpu.regs[7] = DATA;
    frame.rflags = cpu.flags.bits();
    assert_eq!(run(cpu, &[0xdd, 0x37]), Ok(()));
    for at in [0, 64] {
        let half: [u8; 64] = cpu.load(3, DATA + at as u64).expect("guest memory is there");
        frame.bytes[at..at + 64].copy_from_slice(&half);
    }
}

/// The pointers of both sides differ, as code and data are elsewhere.
fn without_pointers(mut bytes: [u8; 128]) -> [u8; 128] {
    bytes[12..26].fill(0);
    bytes
}

fn compare(cpu: &mut Cpu, code: &mut NativeCode, bytes: &[u8], random: &mut Random, masked: bool) {
    let mut frame = Frame { bytes: [0; 128], rflags: random.next() & RFlags::ARITHMETIC.bits() | 2 };
    frame.bytes[..SAVE].copy_from_slice(&image(random, masked));
    let mut operand = [0; 16];
    operand[..10].copy_from_slice(&value(random));
    if random.below(2) == 0 {
        random.fill(&mut operand);
    }
    frame.bytes[usize::from(OPERAND)..].copy_from_slice(&operand);
    let before = frame.clone();
    let mut expected = frame.clone();
    native(code, bytes, &mut expected);
    guest(cpu, bytes, &mut frame);
    assert_eq!(
        without_pointers(expected.bytes),
        without_pointers(frame.bytes),
        "{bytes:02x?} {:?} before {:02x?}",
        decode(bytes).code(),
        before.bytes
    );
    let arithmetic = RFlags::ARITHMETIC.bits();
    assert_eq!(expected.rflags & arithmetic, frame.rflags & arithmetic, "{bytes:02x?}");
}

/// Whether it is an instruction, and not one that replaces the environment.
fn is_arithmetic(bytes: &[u8]) -> bool {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let environment =
        matches!((bytes[0], bytes[1] >> 3 & 7), (0xd9, 4 | 6) | (0xdd, 4 | 6)) && bytes[1] < 0xc0;
    !instruction.is_invalid() && !environment && bytes != [0xdf, 0xe0]
}

#[test]
fn every_instruction_does_what_the_host_does() {
    let mut random = Random(7);
    let mut code = NativeCode::new();
    let mut cpu = cpu();
    let mut compared = 0;
    for opcode in 0xd8..=0xdf_u8 {
        let memory = (0..8).map(|reg| reg << 3 | 7);
        for modrm in memory.chain(0xc0..=0xff) {
            let bytes = [opcode, modrm];
            if !is_arithmetic(&bytes) {
                continue;
            }
            compared += 1;
            for round in 0..60 {
                compare(&mut cpu, &mut code, &bytes, &mut random, round % 2 == 0);
            }
        }
    }
    assert!(compared > 400, "{compared}");
}

#[test]
fn pending_exceptions_stop_waiting_instructions_only() {
    let mut cpu = cpu();
    cpu.regs[7] = DATA;
    cpu.store(3, DATA, 0x037b_u16).expect("guest memory is there");
    assert_eq!(run(&mut cpu, &[0xd9, 0x2f]), Ok(())); // FLDCW: unmask #Z
    assert_eq!(run(&mut cpu, &[0xd9, 0xe8]), Ok(())); // FLD1
    assert_eq!(run(&mut cpu, &[0xd9, 0xee]), Ok(())); // FLDZ
    cpu.regs[17] = 0x1234;
    assert_eq!(run(&mut cpu, &[0xde, 0xf9]), Ok(())); // FDIVP raises #Z, pending
    assert_eq!(cpu.fpu.fsw() & 0x8084, 0x8084);
    assert_eq!(cpu.fpu.fip(), 0x1234);
    assert_eq!(cpu.fpu.fop(), 0x6f9);
    assert_eq!(cpu.fpu.top(), 6);
    faults(&mut cpu, &[0xd9, 0xe8], Vector::X87);
    faults(&mut cpu, &[0x9b], Vector::X87);
    faults(&mut cpu, &[0x0f, 0x6f, 0xc1], Vector::X87); // MOVQ MM0, MM1
    assert_eq!(run(&mut cpu, &[0xdf, 0xe0]), Ok(())); // FNSTSW AX
    assert_eq!(cpu.regs[0] & 0xffff, u64::from(cpu.fpu.fsw()));
    assert_eq!(run(&mut cpu, &[0xdb, 0xe2]), Ok(())); // FNCLEX
    assert_eq!(cpu.fpu.fsw() & 0x80ff, 0);
    assert_eq!(run(&mut cpu, &[0x9b]), Ok(()));
}

#[test]
fn without_native_errors_a_pending_exception_is_ignored() {
    let mut cpu = cpu();
    cpu.cr0.remove(Cr0::NE);
    cpu.fpu.set_fcw(0x37b);
    cpu.fpu.set_fsw(0x8084);
    assert_eq!(run(&mut cpu, &[0xd9, 0xe8]), Ok(()));
    assert_eq!(cpu.fpu.st(0), [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    assert!(cpu.fpu.error_pending());
}

#[test]
fn control_register_0_makes_it_unavailable() {
    for (bits, fld1, fwait) in [
        (Cr0::EM, true, false),
        (Cr0::TS, true, false),
        (Cr0::TS | Cr0::MP, true, true),
        (Cr0::MP, false, false),
    ] {
        let mut cpu = cpu();
        cpu.cr0.remove(Cr0::EM | Cr0::TS | Cr0::MP);
        cpu.cr0.insert(bits);
        for (bytes, refused) in [(&[0xd9, 0xe8][..], fld1), (&[0xdb, 0xe3], fld1), (&[0x9b], fwait)] {
            if refused {
                faults(&mut cpu, bytes, Vector::DeviceNotAvailable);
            } else {
                assert_eq!(run(&mut cpu, bytes), Ok(()));
            }
        }
    }
}

#[test]
fn a_memory_fault_changes_nothing() {
    let mut cpu = cpu();
    assert_eq!(run(&mut cpu, &[0xd9, 0xe8]), Ok(()));
    let before = cpu.fpu.clone();
    cpu.regs[7] = crate::interp::harness::UNMAPPED;
    for bytes in [[0xd9, 0x1f], [0xdb, 0x3f], [0xd8, 0x07], [0xdd, 0x37], [0xd9, 0x37], [0xdf, 0x37]] {
        faults(&mut cpu, &bytes, Vector::PageFault);
        assert_eq!(cpu.fpu, before);
    }
}

#[test]
fn environments_have_the_layouts_of_the_manual() {
    let mut cpu = cpu();
    cpu.regs[7] = DATA;
    assert_eq!(run(&mut cpu, &[0xd9, 0xe8]), Ok(())); // FLD1
    cpu.fpu.set_fip(0x1_2345_6789);
    cpu.fpu.set_fdp(0x9abc_def0);
    cpu.fpu.set_fop(0x3a5);
    let fsw = cpu.fpu.fsw();
    let image = cpu.fpu.clone();
    for (wide, protected, words) in [
        (true, true, [0x2345_6789, 0x03a5_0000, 0x9abc_def0_u32, 0xffff_0000]),
        (true, false, [0xffff_6789, 0x0234_53a5, 0xffff_def0, 0x09ab_c000]),
        (false, true, [0x6789, 0, 0xdef0, 0]),
        (false, false, [0x6789, 0x53a5, 0xdef0, 0xc000]),
    ] {
        let layout = super::environment::Layout { wide, protected };
        let mut bytes = [0; 108];
        layout.encode(&image, &mut bytes);
        let word = |index: usize| {
            if wide {
                u32::from_le_bytes([0, 1, 2, 3].map(|at| bytes[4 * index + at]))
            } else {
                u32::from(u16::from_le_bytes([0, 1].map(|at| bytes[2 * index + at])))
            }
        };
        assert_eq!(word(0) as u16, 0x37f);
        assert_eq!(word(1) as u16, fsw);
        assert_eq!(word(2) as u16, 0x3fff);
        assert_eq!([word(3), word(4), word(5), word(6)], words, "{layout:?}");
        let mut back = super::FpuState::default();
        layout.decode(&bytes, &mut back);
        assert_eq!((back.fcw(), back.fsw(), back.abridged_tags()), (0x37f, fsw, 0x80));
        if !protected {
            assert_eq!(back.fop(), 0x3a5);
            assert_eq!(back.fip() as u32, if wide { 0x2345_6789 } else { 0x5_6789 });
        }
    }
}

#[test]
fn mmx_takes_the_registers_over() {
    let mut cpu = cpu();
    for _ in 0..3 {
        assert_eq!(run(&mut cpu, &[0xd9, 0xe8]), Ok(())); // FLD1: TOP is 5, R5 to R7 hold one
    }
    assert_eq!(run(&mut cpu, &[0x0f, 0x6f, 0xcd]), Ok(())); // MOVQ MM1, MM5
    assert_eq!(cpu.fpu.top(), 0);
    assert_eq!(cpu.fpu.abridged_tags(), 0xff);
    assert_eq!(cpu.fpu.st(1), [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff]);
    assert_eq!(cpu.fpu.st(5), [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    assert_eq!(run(&mut cpu, &[0x0f, 0x77]), Ok(())); // EMMS
    assert_eq!(cpu.fpu.abridged_tags(), 0);
}

/// Nothing that a guest puts into an image may make the host fault.
#[test]
fn any_image_can_be_loaded() {
    let mut random = Random(99);
    let mut image = super::FpuState::default();
    for _ in 0..20_000 {
        let (mut head, mut registers) = ([0; 24], [0; 128]);
        head.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.next().to_le_bytes()));
        registers.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.next().to_le_bytes()));
        image.load(&head, &registers);
        let mut cpu = cpu();
        cpu.cr0.remove(Cr0::NE);
        cpu.fpu = image.clone();
        assert_eq!(run(&mut cpu, &[0xd8, 0xc1]), Ok(()));
        assert_eq!(run(&mut cpu, &[0x0f, 0xfc, 0xc1]), Ok(()));
    }
}
