//! Loads and stores, in and out of the caches and the TLB.

use std::arch::asm;
use std::hint::black_box;

use crate::random::Random;
use crate::{Row, Work};

/// The rows of this group.
pub fn rows() -> Vec<Row> {
    let row = |name, prepare| Row { name, group: "memory", prepare };
    vec![
        row("chase-64M", || Some(chase(64 << 20, 4_000_000))),
        row("chase-32K", || Some(chase(32 << 10, 100_000_000))),
        row("memcpy", || Some(copy(24))),
        row("rep-movsb", || Some(rep_movsb(24))),
        row("random-256M", || Some(random_access())),
        row("stream", || Some(stream())),
    ]
}

/// Follows a random cycle through `bytes` of memory.
fn chase(bytes: usize, steps: u64) -> Work {
    let length = bytes / 8;
    let mut next: Vec<usize> = (0..length).collect();
    let mut random = Random::new(3);
    // Sattolo's shuffle leaves one cycle.
    for i in (1..length).rev() {
        next.swap(i, random.below(i as u64) as usize);
    }
    Box::new(move || {
        let mut at = 0;
        for _ in 0..steps {
            at = next[at];
        }
        at as u64
    })
}

fn buffers() -> (Vec<u8>, Vec<u8>) {
    let mut random = Random::new(11);
    let from = (0..2 << 20).flat_map(|_| random.next().to_le_bytes()).collect::<Vec<u8>>();
    let to = vec![1; from.len()];
    (from, to)
}

fn sample(bytes: &[u8]) -> u64 {
    bytes.iter().step_by(4099).fold(0, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte))
}

fn copy(rounds: usize) -> Work {
    let (from, mut to) = buffers();
    Box::new(move || {
        for round in 0..rounds {
            let skew = round * 64;
            let length = from.len() - skew;
            to[..length].copy_from_slice(black_box(&from[skew..]));
        }
        sample(&to)
    })
}

fn rep_movsb(rounds: usize) -> Work {
    let (from, mut to) = buffers();
    Box::new(move || {
        for round in 0..rounds {
            let skew = round * 64;
            // SAFETY: copies what is left of `from` behind `skew` to the front of `to`, which is as long as `from`.
            unsafe {
                asm!("rep movsb", inout("rcx") from.len() - skew => _, inout("rsi") from.as_ptr().add(skew) => _,
                    inout("rdi") to.as_mut_ptr() => _, options(nostack));
            }
        }
        sample(&to)
    })
}

fn random_access() -> Work {
    const WORDS: usize = (256 << 20) / 8;
    let mut memory = vec![1_u64; WORDS];
    Box::new(move || {
        let (mut random, mut sum) = (Random::new(9), 0_u64);
        for _ in 0..6_000_000 {
            let place = random.below(WORDS as u64) as usize;
            sum = sum.wrapping_add(memory[place]);
            memory[place] = sum | 1;
        }
        sum
    })
}

fn stream() -> Work {
    const LENGTH: usize = 2 << 20;
    let (mut a, b, c) = (vec![0.0_f64; LENGTH], vec![1.5_f64; LENGTH], vec![0.25_f64; LENGTH]);
    Box::new(move || {
        for round in 0..12 {
            let factor = black_box(f64::from(round));
            for ((a, b), c) in a.iter_mut().zip(&b).zip(&c) {
                *a = *b + factor * *c;
            }
        }
        a.iter().step_by(1021).sum::<f64>().to_bits()
    })
}
