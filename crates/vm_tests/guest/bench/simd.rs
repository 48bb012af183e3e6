//! Vector and other special instructions.

use std::arch::x86_64::*;
use std::hint::black_box;

use crate::{Row, Work};

/// The rows of this group.
pub fn rows() -> Vec<Row> {
    let row = |name, prepare| Row { name, group: "simd", prepare };
    vec![
        row("saxpy-sse", || Some(saxpy_sse())),
        row("saxpy-avx2", || {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then(saxpy_avx2)
        }),
        row("popcount-avx2", || is_x86_feature_detected!("avx2").then(popcount_avx2)),
        row("popcount", || is_x86_feature_detected!("popcnt").then(popcount)),
        row("aes-ni", || is_x86_feature_detected!("aes").then(aes)),
        row("crc32", || is_x86_feature_detected!("sse4.2").then(crc32)),
    ]
}

/// Numbers that fit the first-level cache.
const SMALL: usize = 2048;

fn floats() -> (Vec<f32>, Vec<f32>) {
    ((0..SMALL).map(|i| i as f32 * 0.25).collect(), vec![1.0; SMALL])
}

fn sum(values: &[f32]) -> u64 {
    values.iter().fold(0, |sum, value| sum.rotate_left(3) ^ u64::from(value.to_bits()))
}

fn saxpy_sse() -> Work {
    let (x, y) = floats();
    Box::new(move || {
        let mut y = y.clone();
        // SAFETY: SSE is part of x86-64.
        unsafe { multiply_and_add(&x, &mut y) };
        sum(&y)
    })
}

#[target_feature(enable = "sse")]
fn multiply_and_add(x: &[f32], y: &mut [f32]) {
    for round in 0..30_000 {
        let factor = _mm_set1_ps(black_box(round as f32 * 1e-6));
        for (y, x) in y.chunks_exact_mut(4).zip(x.chunks_exact(4)) {
            // SAFETY: both slices have four numbers.
            unsafe {
                let sum = _mm_add_ps(_mm_loadu_ps(y.as_ptr()), _mm_mul_ps(factor, _mm_loadu_ps(x.as_ptr())));
                _mm_storeu_ps(y.as_mut_ptr(), sum);
            }
        }
    }
}

fn saxpy_avx2() -> Work {
    let (x, y) = floats();
    Box::new(move || {
        let mut y = y.clone();
        // SAFETY: the row is prepared only where AVX2 and FMA are.
        unsafe { fused(&x, &mut y) };
        sum(&y)
    })
}

#[target_feature(enable = "avx2,fma")]
fn fused(x: &[f32], y: &mut [f32]) {
    for round in 0..30_000 {
        let factor = _mm256_set1_ps(black_box(round as f32 * 1e-6));
        for (y, x) in y.chunks_exact_mut(8).zip(x.chunks_exact(8)) {
            // SAFETY: both slices have eight numbers.
            unsafe {
                let sum = _mm256_fmadd_ps(factor, _mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(y.as_ptr()));
                _mm256_storeu_ps(y.as_mut_ptr(), sum);
            }
        }
    }
}

fn popcount_avx2() -> Work {
    let words: Vec<u64> = (0..SMALL as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    Box::new(move || {
        // SAFETY: the row is prepared only where AVX2 is.
        (0..6000).map(|_| unsafe { count_bits(black_box(&words)) }).sum()
    })
}

/// Counts bits by table look-up of nibbles.
#[target_feature(enable = "avx2")]
fn count_bits(words: &[u64]) -> u64 {
    let table = _mm256_setr_epi8(
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
    );
    let low = _mm256_set1_epi8(15);
    let mut sums = _mm256_setzero_si256();
    for four in words.chunks_exact(4) {
        // SAFETY: the slice has four words.
        let value = unsafe { _mm256_loadu_si256(four.as_ptr().cast()) };
        let nibbles = _mm256_and_si256(value, low);
        let others = _mm256_and_si256(_mm256_srli_epi16::<4>(value), low);
        let counts = _mm256_add_epi8(_mm256_shuffle_epi8(table, nibbles), _mm256_shuffle_epi8(table, others));
        sums = _mm256_add_epi64(sums, _mm256_sad_epu8(counts, _mm256_setzero_si256()));
    }
    let mut out = [0_u64; 4];
    // SAFETY: `out` has 32 bytes.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
    out.iter().sum()
}

fn popcount() -> Work {
    let words: Vec<u64> = (0..SMALL as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    // SAFETY: the row is prepared only where POPCNT is.
    Box::new(move || (0..12_000).map(|_| unsafe { count_words(black_box(&words)) }).sum())
}

#[target_feature(enable = "popcnt")]
fn count_words(words: &[u64]) -> u64 {
    words.iter().map(|word| _popcnt64(*word as i64) as u64).sum()
}

fn aes() -> Work {
    // SAFETY: the row is prepared only where AES-NI is.
    Box::new(|| unsafe { encrypt(3_000_000) })
}

/// Ten rounds a block, each block fed with the last.
#[target_feature(enable = "aes")]
fn encrypt(blocks: u32) -> u64 {
    let keys: [__m128i; 11] = std::array::from_fn(|i| _mm_set1_epi32(i as i32 * 0x0101_4577));
    let mut state = _mm_set_epi32(1, 2, 3, 4);
    for _ in 0..blocks {
        state = _mm_xor_si128(state, keys[0]);
        for key in &keys[1..10] {
            state = _mm_aesenc_si128(state, *key);
        }
        state = _mm_aesenclast_si128(state, keys[10]);
    }
    _mm_cvtsi128_si64(state) as u64
}

fn crc32() -> Work {
    // SAFETY: the row is prepared only where SSE4.2 is.
    Box::new(|| unsafe { check_sums(30_000_000) })
}

#[target_feature(enable = "sse4.2")]
fn check_sums(count: u64) -> u64 {
    let (mut a, mut b) = (1, 2);
    for i in 0..count {
        a = _mm_crc32_u64(a, i);
        b = _mm_crc32_u64(b, a ^ i);
    }
    a << 32 ^ b
}
