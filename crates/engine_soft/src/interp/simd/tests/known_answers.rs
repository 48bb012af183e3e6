//! Answers that standards publish.

use super::{cpu, run};
use crate::cpu::Cpu;
use crate::interp::simd::host_has;
use iced_x86::CpuidFeature;

fn set(cpu: &mut Cpu, register: usize, value: [u8; 16]) {
    cpu.vector.ymm[register][..16].copy_from_slice(&value);
}

fn get(cpu: &Cpu, register: usize) -> [u8; 16] {
    super::super::state::field(&cpu.vector.ymm[register], 0)
}

fn exec(cpu: &mut Cpu, bytes: &[u8]) {
    assert_eq!(run(cpu, bytes), Ok(()), "{bytes:02x?}");
}

/// FIPS 197, appendix B, with the round keys of its appendix A.1.
#[test]
fn aes_128_example() {
    if !host_has(CpuidFeature::AES) {
        eprintln!("skipped: the host has no AES");
        return;
    }
    let mut cpu = cpu();
    let mut key = 0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c_u128.to_be_bytes();
    set(&mut cpu, 0, 0x3243_f6a8_885a_308d_3131_98a2_e037_0734_u128.to_be_bytes());
    set(&mut cpu, 1, key);
    exec(&mut cpu, &[0x66, 0x0f, 0xef, 0xc1]); // PXOR XMM0, XMM1
    for (round, constant) in [1, 2, 4, 8, 16, 32, 64, 128, 0x1b, 0x36].into_iter().enumerate() {
        set(&mut cpu, 1, key);
        exec(&mut cpu, &[0x66, 0x0f, 0x3a, 0xdf, 0xd1, constant]); // AESKEYGENASSIST XMM2, XMM1
        let assist = get(&cpu, 2);
        let mut word: [u8; 4] = super::super::state::field(&assist, 12);
        for column in key.chunks_exact_mut(4) {
            column.iter_mut().zip(&mut word).for_each(|(k, w)| {
                *k ^= *w;
                *w = *k;
            });
        }
        set(&mut cpu, 1, key);
        let opcode = if round == 9 { 0xdd } else { 0xdc };
        exec(&mut cpu, &[0x66, 0x0f, 0x38, opcode, 0xc1]); // AESENC or AESENCLAST
    }
    assert_eq!(key, 0xd014_f9a8_c9ee_2589_e13f_0cc8_b663_0ca6_u128.to_be_bytes());
    assert_eq!(get(&cpu, 0), 0x3925_841d_02dc_09fb_dc11_8597_196a_0b32_u128.to_be_bytes());
}

/// The polynomial product of two numbers, bit by bit.
#[test]
fn carry_less_products() {
    if !host_has(CpuidFeature::PCLMULQDQ) {
        eprintln!("skipped: the host has no PCLMULQDQ");
        return;
    }
    let (a, b) = (0x7b5b_5465_7374_5665_u64, 0x4869_2853_6861_7929_u64);
    let product = (0..64).filter(|bit| b >> bit & 1 != 0).fold(0, |p, bit| p ^ u128::from(a) << bit);
    let mut cpu = cpu();
    set(&mut cpu, 0, u128::from(a).to_le_bytes());
    set(&mut cpu, 1, (u128::from(b) << 64).to_le_bytes());
    exec(&mut cpu, &[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0x10]);
    assert_eq!(u128::from_le_bytes(get(&cpu, 0)), product);
}

/// SHA-256 of "abc" (FIPS 180-4 example), with the message schedule in Rust and the rounds in SHA256RNDS2.
#[test]
fn sha_256_of_abc() {
    if !host_has(CpuidFeature::SHA) {
        eprintln!("skipped: the host has no SHA");
        return;
    }
    let primes: Vec<u32> = (2..).filter(|&n: &u32| (2..n).all(|d| n % d != 0)).take(64).collect();
    let fraction = |root: f64| ((root - root.floor()) * 4_294_967_296.0) as u32;
    let constants: Vec<u32> = primes.iter().map(|&p| fraction(f64::from(p).cbrt())).collect();
    let initial: Vec<u32> = primes.iter().take(8).map(|&p| fraction(f64::from(p).sqrt())).collect();
    let mut w = vec![0_u32; 64];
    (w[0], w[15]) = (0x6162_6380, 24);
    for t in 16..64 {
        let s0 = w[t - 15].rotate_right(7) ^ w[t - 15].rotate_right(18) ^ w[t - 15] >> 3;
        let s1 = w[t - 2].rotate_right(17) ^ w[t - 2].rotate_right(19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16].wrapping_add(s0).wrapping_add(w[t - 7]).wrapping_add(s1);
    }
    let pack = |words: [u32; 4]| {
        words.iter().rev().fold(0_u128, |value, &word| value << 32 | u128::from(word)).to_le_bytes()
    };
    let mut cpu = cpu();
    // The state is (F, E, B, A) and (H, G, D, C), from the lowest element.
    set(&mut cpu, 1, pack([initial[5], initial[4], initial[1], initial[0]]));
    set(&mut cpu, 2, pack([initial[7], initial[6], initial[3], initial[2]]));
    for t in (0..64).step_by(2) {
        set(
            &mut cpu,
            0,
            pack([w[t].wrapping_add(constants[t]), w[t + 1].wrapping_add(constants[t + 1]), 0, 0]),
        );
        let old = get(&cpu, 1);
        exec(&mut cpu, &[0x0f, 0x38, 0xcb, 0xd1]); // SHA256RNDS2 XMM2, XMM1
        let new = get(&cpu, 2);
        set(&mut cpu, 1, new);
        set(&mut cpu, 2, old);
    }
    let element = |register: usize, at: usize| {
        u32::from_le_bytes(super::super::state::field(&cpu.vector.ymm[register], 4 * at))
    };
    let digest = [
        element(1, 3),
        element(1, 2),
        element(2, 3),
        element(2, 2),
        element(1, 1),
        element(1, 0),
        element(2, 1),
        element(2, 0),
    ];
    let digest: Vec<u32> = digest.iter().zip(&initial).map(|(&d, &i)| d.wrapping_add(i)).collect();
    assert_eq!(
        digest,
        [
            0xba78_16bf,
            0x8f01_cfea,
            0x4141_40de,
            0x5dae_2223,
            0xb003_61a3,
            0x9617_7a9c,
            0xb410_ff61,
            0xf200_15ad
        ]
    );
}

/// SDM 2B 4.1 (PCMPISTRI): the position of the first of a set of characters, and the flags.
#[test]
fn string_compares() {
    let mut cpu = cpu();
    let text = |text: &[u8]| {
        let mut bytes = [0; 16];
        bytes[..text.len()].copy_from_slice(text);
        bytes
    };
    set(&mut cpu, 0, text(b"xyz"));
    set(&mut cpu, 1, text(b"find the yak"));
    exec(&mut cpu, &[0x66, 0x0f, 0x3a, 0x63, 0xc1, 0x00]); // PCMPISTRI XMM0, XMM1, equal any
    assert_eq!(cpu.regs[1], 9);
    assert!(cpu.flags.cf() && cpu.flags.zf() && cpu.flags.sf());
    set(&mut cpu, 1, text(b"0123456789abcdef"));
    exec(&mut cpu, &[0x66, 0x0f, 0x3a, 0x63, 0xc1, 0x00]);
    assert_eq!(cpu.regs[1], 16);
    assert!(!cpu.flags.cf() && !cpu.flags.zf() && cpu.flags.sf());
    (cpu.regs[0], cpu.regs[2]) = (2, 5);
    set(&mut cpu, 0, text(b"ae"));
    set(&mut cpu, 1, text(b"xbyCd"));
    exec(&mut cpu, &[0x66, 0x0f, 0x3a, 0x60, 0xc1, 0x44]); // PCMPESTRM XMM0, XMM1, ranges, byte mask
    assert_eq!(get(&cpu, 0), text(&[0, 0xff, 0, 0, 0xff]));
}
