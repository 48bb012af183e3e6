//! Scalar integer code.

use std::hint::black_box;

use crate::random::Random;
use crate::{Row, Work, sha256};

/// The rows of this group.
pub fn rows() -> Vec<Row> {
    let row = |name, prepare| Row { name, group: "integer", prepare };
    vec![
        row("coremark", || Some(Box::new(core_mark()))),
        row("sha256", || Some(Box::new(|| sha256::digest(7, 400_000)))),
        row("sieve", || Some(Box::new(sieve))),
        row("bytecode", || Some(bytecode())),
        row("calls", || Some(Box::new(|| (0..3).map(|add| fib(black_box(31) + add / 3)).sum()))),
        row("quicksort", || Some(quick_sort_row())),
        row("indirect", || Some(indirect())),
    ]
}

/// What CoreMark is made of, written anew: a linked list, a small matrix, a state machine over text, a CRC.
fn core_mark() -> impl FnMut() -> u64 {
    let text: Vec<u8> = (0..400)
        .flat_map(|i| format!("{},{:.2}e{},-0x{:x};", i, f64::from(i) / 7.0, i % 9, i).into_bytes())
        .collect();
    move || {
        let mut crc = 0_u16;
        for round in 0..1500_u32 {
            crc = crc16(crc, u64::from(list(round)));
            crc = crc16(crc, matrix(round as i16));
            crc = crc16(crc, states(&text));
        }
        u64::from(crc)
    }
}

/// Reverses and searches a list held as indices.
fn list(seed: u32) -> u32 {
    const LENGTH: usize = 512;
    let mut next: [u16; LENGTH] = std::array::from_fn(|i| ((i + 1) % LENGTH) as u16);
    let values: [u32; LENGTH] = std::array::from_fn(|i| (i as u32).wrapping_mul(seed | 1) & 0xff);
    let mut found = 0;
    for wanted in 0..16 {
        let (mut at, mut before) = (0_u16, (LENGTH - 1) as u16);
        for _ in 0..LENGTH {
            let after = next[usize::from(at)];
            next[usize::from(at)] = before;
            found += u32::from(values[usize::from(at)] == wanted);
            (before, at) = (at, after);
        }
    }
    found
}

fn matrix(seed: i16) -> u64 {
    const SIDE: usize = 24;
    let a: [[i16; SIDE]; SIDE] = std::array::from_fn(|i| std::array::from_fn(|j| seed ^ (i * j) as i16));
    let mut sum = 0_i64;
    for i in 0..SIDE {
        for j in 0..SIDE {
            let mut cell = 0_i32;
            for (k, row) in a.iter().enumerate() {
                cell = cell.wrapping_add(i32::from(black_box(a[i][k])) * i32::from(row[j]));
            }
            sum += i64::from(cell >> 2 & 0x7f);
        }
    }
    sum as u64
}

/// Counts the kinds of numbers in a text.
fn states(text: &[u8]) -> u64 {
    let (mut state, mut counts) = (0_usize, [0_u64; 6]);
    for &byte in text {
        state = match (state, byte) {
            (_, b',' | b';') => {
                counts[state] += 1;
                0
            }
            (0, b'+' | b'-') => 1,
            (0 | 1, b'0'..=b'9') => 2,
            (2, b'0'..=b'9') => 2,
            (2, b'.') => 3,
            (3, b'0'..=b'9') => 3,
            (2 | 3, b'e') => 4,
            (4, b'0'..=b'9') => 4,
            _ => 5,
        };
    }
    counts.iter().enumerate().map(|(i, count)| count << (8 * i)).sum()
}

fn crc16(mut crc: u16, value: u64) -> u16 {
    for byte in value.to_le_bytes() {
        crc ^= u16::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ 0xa001 } else { crc >> 1 };
        }
    }
    crc
}

fn sieve() -> u64 {
    const LIMIT: usize = 4_000_000;
    let mut total = 0;
    for _ in 0..4 {
        let mut composite = vec![false; LIMIT];
        let mut i = 2;
        while i * i < LIMIT {
            if !composite[i] {
                composite[i * i..].iter_mut().step_by(i).for_each(|cell| *cell = true);
            }
            i += 1;
        }
        total += composite[2..].iter().filter(|cell| !**cell).count() as u64;
    }
    total
}

/// An interpreter of a small stack-less bytecode; the program is a loop of eight operations.
fn bytecode() -> Work {
    let program: Vec<[u8; 4]> = vec![
        [0, 0, 1, 0],  // r0 += r1
        [1, 2, 0, 0],  // r2 ^= r0
        [2, 3, 2, 13], // r3 = r2 <<< 13
        [3, 4, 3, 0],  // r4 = r3 * odd
        [4, 1, 4, 0],  // r1 -= r4
        [5, 5, 0, 0],  // r5 = memory[r0]
        [6, 2, 5, 0],  // memory[r2] = r5
        [7, 0, 0, 0],  // again, unless done
    ];
    let program = black_box(program);
    Box::new(move || {
        let (mut registers, mut memory) = ([1_u64, 3, 5, 7, 11, 13, 17, 19], [0_u64; 256]);
        let (mut at, mut left) = (0, 2_500_000_u32);
        loop {
            let [operation, a, b, c] = program[at];
            let (a, b) = (usize::from(a & 7), usize::from(b & 7));
            at += 1;
            match operation {
                0 => registers[a] = registers[a].wrapping_add(registers[b]),
                1 => registers[a] ^= registers[b],
                2 => registers[a] = registers[b].rotate_left(u32::from(c)),
                3 => registers[a] = registers[b].wrapping_mul(0x9e37_79b9),
                4 => registers[a] = registers[a].wrapping_sub(registers[b]),
                5 => registers[a] = memory[registers[b] as usize & 255],
                6 => memory[registers[a] as usize & 255] = registers[b],
                _ => {
                    at = 0;
                    left -= 1;
                    if left == 0 {
                        return registers.iter().fold(0, |sum, register| sum ^ register.rotate_left(9));
                    }
                }
            }
        }
    })
}

#[inline(never)]
fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
}

fn quick_sort_row() -> Work {
    let mut random = Random::new(5);
    let numbers: Vec<u32> = (0..1_000_000).map(|_| random.next() as u32).collect();
    Box::new(move || {
        let mut sorted = numbers.clone();
        quick_sort(&mut sorted);
        u64::from(sorted[1000]) << 32 | u64::from(sorted[999_000])
    })
}

fn quick_sort(mut numbers: &mut [u32]) {
    while numbers.len() > 12 {
        let pivot = numbers[numbers.len() / 2];
        let (mut i, mut j) = (0, numbers.len() - 1);
        loop {
            while numbers[i] < pivot {
                i += 1;
            }
            while numbers[j] > pivot {
                j -= 1;
            }
            if i >= j {
                break;
            }
            numbers.swap(i, j);
            i += 1;
            j -= 1;
        }
        let (left, right) = numbers.split_at_mut(i);
        quick_sort(left);
        numbers = right;
    }
    for i in 1..numbers.len() {
        let mut j = i;
        while j > 0 && numbers[j - 1] > numbers[j] {
            numbers.swap(j - 1, j);
            j -= 1;
        }
    }
}

/// Calls through a table, in an order no predictor knows.
fn indirect() -> Work {
    let table: [fn(u64) -> u64; 8] = [
        |x| x.wrapping_add(1),
        |x| x ^ 0x55,
        |x| x.rotate_left(3),
        |x| x.wrapping_mul(5),
        |x| x.wrapping_sub(9),
        |x| !x,
        |x| x.swap_bytes(),
        |x| x ^ x >> 7,
    ];
    let table = black_box(table);
    Box::new(move || {
        let (mut value, mut state) = (1_u64, 0x1234_5678_u32);
        for _ in 0..12_000_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            value = table[(state >> 29) as usize](value);
        }
        value
    })
}
