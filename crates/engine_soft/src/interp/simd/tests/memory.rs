//! Alignment, masked moves and gathers.

use super::{DATA, cpu, faults, run};
use crate::cpu::{Cpu, Stop};
use crate::interp::harness::UNMAPPED;
use x86::Vector;

/// An address so close to the unmapped page that only eight bytes fit.
const EDGE: u64 = UNMAPPED - 8;

fn at(offset: u64) -> Cpu {
    let mut cpu = cpu();
    cpu.regs[7] = DATA + offset;
    cpu
}

fn has_avx2() -> bool {
    let there = super::super::host_has(iced_x86::CpuidFeature::AVX2);
    if !there {
        eprintln!("skipped: the host has no AVX2");
    }
    there
}

#[test]
fn legacy_operands_must_be_aligned_and_vex_operands_need_not() {
    let misaligned: [&[u8]; 6] = [
        &[0x0f, 0x28, 0x07],             // MOVAPS XMM0, [RDI]
        &[0x0f, 0x29, 0x07],             // MOVAPS [RDI], XMM0
        &[0x66, 0x0f, 0xfe, 0x07],       // PADDD XMM0, [RDI]
        &[0x0f, 0x58, 0x07],             // ADDPS XMM0, [RDI]
        &[0x66, 0x0f, 0xe7, 0x07],       // MOVNTDQ [RDI], XMM0
        &[0x66, 0x0f, 0x38, 0x2a, 0x07], // MOVNTDQA XMM0, [RDI]
    ];
    let free: [&[u8]; 7] = [
        &[0x0f, 0x10, 0x07],                   // MOVUPS XMM0, [RDI]
        &[0xf3, 0x0f, 0x7f, 0x07],             // MOVDQU [RDI], XMM0
        &[0xf2, 0x0f, 0xf0, 0x07],             // LDDQU XMM0, [RDI]
        &[0xf3, 0x0f, 0x58, 0x07],             // ADDSS XMM0, [RDI]
        &[0x66, 0x0f, 0x13, 0x07],             // MOVLPD [RDI], XMM0
        &[0x66, 0x0f, 0x3a, 0x63, 0x07, 0x0c], // PCMPISTRI XMM0, [RDI], 12
        &[0x0f, 0xfc, 0x07],                   // PADDB MM0, [RDI]
    ];
    for bytes in misaligned {
        assert_eq!(run(&mut at(16), bytes), Ok(()));
        faults(&mut at(8), bytes, Vector::GeneralProtection);
    }
    for bytes in free {
        assert_eq!(run(&mut at(1), bytes), Ok(()), "{bytes:02x?}");
    }
    if !has_avx2() {
        return;
    }
    assert_eq!(run(&mut at(1), &[0xc5, 0xfc, 0x58, 0x07]), Ok(())); // VADDPS YMM0, YMM0, [RDI]
    assert_eq!(run(&mut at(1), &[0xc5, 0xfc, 0x10, 0x07]), Ok(())); // VMOVUPS YMM0, [RDI]
    faults(&mut at(16), &[0xc5, 0xfc, 0x28, 0x07], Vector::GeneralProtection); // VMOVAPS YMM0, [RDI]
    faults(&mut at(16), &[0xc5, 0xfd, 0xe7, 0x07], Vector::GeneralProtection); // VMOVNTDQ [RDI], YMM0
    assert_eq!(run(&mut at(16), &[0xc5, 0xf8, 0x28, 0x07]), Ok(())); // VMOVAPS XMM0, [RDI]
}

#[test]
fn byte_masks_choose_what_is_written_and_what_can_fault() {
    let mut cpu = cpu();
    cpu.regs[7] = EDGE - 8;
    cpu.store(3, EDGE - 8, [0x11_u8; 16]).expect("guest memory is there");
    for at in 0..16 {
        cpu.vector.ymm[1][at] = at as u8;
        cpu.vector.ymm[2][at] = if at < 8 && at % 2 == 0 { 0x80 } else { 0x7f };
    }
    let maskmovdqu = [0x66, 0x0f, 0xf7, 0xca]; // MASKMOVDQU XMM1, XMM2
    assert_eq!(run(&mut cpu, &maskmovdqu), Ok(()));
    assert_eq!(cpu.load::<[u8; 8]>(3, EDGE - 8).ok(), Some([0, 0x11, 2, 0x11, 4, 0x11, 6, 0x11]));
    assert_eq!(cpu.load::<[u8; 8]>(3, EDGE).ok(), Some([0x11; 8]));
    // Silicon faults for the half that the mask leaves out as well (seen on Sapphire Rapids; the SDM allows both).
    cpu.regs[7] = EDGE;
    cpu.vector.ymm[1][0] = 0x99;
    faults(&mut cpu, &maskmovdqu, Vector::PageFault);
    assert_eq!(cpu.load::<u8>(3, EDGE).ok(), Some(0x11), "nothing is written before the fault");
}

#[test]
fn masked_elements_are_not_accessed() {
    if !has_avx2() {
        return;
    }
    let mut cpu = cpu();
    cpu.regs[7] = EDGE;
    cpu.store(3, EDGE, [1_u32, 2]).expect("guest memory is there");
    cpu.vector.ymm[1] = [0; 32];
    cpu.vector.ymm[1][3] = 0x80; // element 0
    cpu.vector.ymm[0] = [0xff; 32];
    let load = [0xc4, 0xe2, 0x75, 0x2c, 0x07]; // VMASKMOVPS YMM0, YMM1, [RDI]
    assert_eq!(run(&mut cpu, &load), Ok(()));
    let mut expected = [0; 32];
    expected[0] = 1;
    assert_eq!(cpu.vector.ymm[0], expected);
    cpu.vector.ymm[1][11] = 0x80; // element 2 is unmapped
    faults(&mut cpu, &load, Vector::PageFault);
    assert_eq!(cpu.vector.ymm[0], expected);
    cpu.vector.ymm[1] = [0; 32];
    cpu.vector.ymm[1][7] = 0x80; // element 1
    cpu.vector.ymm[0] = [0x5a; 32];
    assert_eq!(run(&mut cpu, &[0xc4, 0xe2, 0x75, 0x8e, 0x07]), Ok(())); // VPMASKMOVD [RDI], YMM1, YMM0
    assert_eq!(cpu.load::<[u32; 2]>(3, EDGE).ok(), Some([1, 0x5a5a_5a5a]));
}

fn dwords(values: [u32; 8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (at, value) in values.into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

#[test]
fn a_gather_goes_on_after_a_fault() {
    if !has_avx2() {
        return;
    }
    let mut cpu = cpu();
    cpu.regs[7] = DATA;
    cpu.store(3, DATA, [10_u32, 11, 12, 13, 14, 15, 16, 17]).expect("guest memory is there");
    let away = ((UNMAPPED - DATA) / 4) as u32;
    cpu.vector.ymm[0] = dwords([99; 8]);
    cpu.vector.ymm[1] = dwords([7, 6, away, 4, 3, 2, 1, 0]);
    cpu.vector.ymm[2] = dwords([u32::MAX, 0, u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX]);
    let gather = [0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x8f]; // VPGATHERDD YMM0, [RDI + YMM1*4], YMM2
    assert_eq!(run(&mut cpu, &gather), Err(Stop::Fault));
    assert_eq!(cpu.exception.payload, UNMAPPED);
    assert_eq!(cpu.vector.ymm[0], dwords([17, 99, 99, 99, 99, 99, 99, 99]));
    let left = [0, 0, u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX];
    assert_eq!(cpu.vector.ymm[2], dwords(left));
    cpu.vector.ymm[1] = dwords([7, 6, 5, 4, 3, 2, 1, 0]);
    assert_eq!(run(&mut cpu, &gather), Ok(()));
    assert_eq!(cpu.vector.ymm[0], dwords([17, 99, 15, 14, 13, 12, 11, 10]));
    assert_eq!(cpu.vector.ymm[2], [0; 32]);
}

/// All eight gathers, both lengths, against the host.
#[test]
fn gathers_do_what_the_host_does() {
    if !has_avx2() {
        return;
    }
    let mut random = super::Random(3);
    let mut native = super::native::Code::new();
    for round in 0..400_u32 {
        let opcode = 0x90 + (round & 3) as u8;
        let wide = if round & 4 != 0 { 0x80 } else { 0 };
        let long = if round & 8 != 0 { 4 } else { 0 };
        let bytes = [0xc4, 0xe2, 0x69 & !0x84 | wide | long, opcode, 0x04, 0x4f];
        let mut memory = [0_u8; 64];
        random.fill(&mut memory);
        let mut cpu = cpu();
        cpu.regs[7] = DATA;
        cpu.store(3, DATA, memory).expect("guest memory is there");
        random.fill(&mut cpu.vector.ymm[0]);
        random.fill(&mut cpu.vector.ymm[2]);
        let index_size = if opcode & 1 != 0 { 8 } else { 4 };
        let mut index = [0; 32];
        for lane in index.chunks_exact_mut(index_size) {
            lane[0] = random.below(24) as u8;
        }
        cpu.vector.ymm[1] = index;
        let mut block = super::native::Block {
            ymm: cpu.vector.ymm,
            mm: [[0; 8]; 8],
            gprs: [0; 4],
            memory: memory.as_ptr() as u64,
            rflags: 2,
            mxcsr: 0x1f80,
            host_mxcsr: 0,
        };
        native.run(&bytes, &mut block);
        assert_eq!(run(&mut cpu, &bytes), Ok(()));
        assert_eq!(cpu.vector.ymm, block.ymm, "{bytes:02x?} round {round}");
    }
}
