//! A program for guests: it computes, and prints digests of what it computed.
//!
//! The same executable runs on the host. Everything below is deterministic, so every line it prints in a guest
//! must be the line it prints on the host: the host's processor is the oracle for the guest's. A line that
//! needs an instruction set the processor lacks says `absent` and is not compared.
//!
//! - `vireo_guest cpu`: one line for each kind of work.
//! - `vireo_guest work STEPS`: a digest a step, each built on the one before.
//! - `vireo_guest exit VALUE [PORT]`: writes VALUE to the debug-exit port (0xf4), which ends the machine.

use std::arch::{asm, x86_64::*};
use std::sync::atomic::{AtomicU64, Ordering};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |index: usize, default: u64| {
        arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    match arguments.get(1).map(String::as_str) {
        Some("cpu") => cpu(),
        Some("work") => work(number(2, 100)),
        Some("exit") => debug_exit(number(2, 0) as u8, number(3, 0xf4) as u16),
        _ => eprintln!("usage: vireo_guest cpu | work STEPS | exit VALUE [PORT]"),
    }
}

/// A digest that depends on every bit given to it and on their order (FNV-1a over 64-bit words, then mixed).
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    fn add_float(&mut self, value: f64) {
        self.add(value.to_bits());
    }
}

/// A small generator of test data (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn float(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64 * 2e3 - 1e3
    }
}

fn cpu() {
    say("integer", Some(integer()));
    say("memory", Some(memory()));
    say("double", Some(double()));
    say("x87", Some(x87()));
    say("threads", Some(threads()));
    // SAFETY: each function is called only when the processor says it has the instructions.
    unsafe {
        say("avx2", (is_x86_feature_detected!("avx2")).then(|| avx2()));
        say("fma", (is_x86_feature_detected!("fma")).then(|| fma()));
        let bmi = is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2");
        say("bmi", (bmi && is_x86_feature_detected!("lzcnt")).then(|| bits()));
        say("aes", (is_x86_feature_detected!("aes")).then(|| aes()));
        say("pclmul", (is_x86_feature_detected!("pclmulqdq")).then(|| carryless()));
        say("sha", (is_x86_feature_detected!("sha")).then(|| sha()));
        say("sse4.2", (is_x86_feature_detected!("sse4.2")).then(|| strings()));
    }
}

fn say(name: &str, digest: Option<u64>) {
    match digest {
        Some(digest) => println!("vireo-cpu {name} {digest:016x}"),
        None => println!("vireo-cpu {name} absent"),
    }
}

fn work(steps: u64) {
    let mut digest = Digest::new();
    for step in 0..steps {
        digest.add(integer());
        digest.add(double());
        digest.add(memory());
        digest.add(step);
        println!("vireo-work {step} {:016x}", digest.0);
    }
}

/// Multiplications, divisions, shifts and rotations of every width.
fn integer() -> u64 {
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut digest = Digest::new();
    for _ in 0..20_000 {
        let (a, b) = (random.next(), random.next());
        digest.add(a / (b | 1));
        digest.add((a as i64 % ((b as i64 >> 7) | 1)) as u64);
        digest.add(((a as u128 * b as u128) >> 64) as u64);
        digest.add(((a as u128 + ((b as u128) << 64)) / (u128::from(b) | 1 << 70)) as u64);
        digest.add(u64::from((a as u32).wrapping_mul(b as u32).rotate_left(b as u32 & 31)));
        digest.add((a as i16 as i64 >> (b & 63)) as u64);
        digest.add(u64::from((a as u8).wrapping_sub(b as u8)) << 3);
        digest.add(u64::from(a.count_ones()) + u64::from(b.trailing_zeros()) * 64 + u64::from(a.leading_zeros()));
    }
    digest.0
}

/// Sorting, copying and comparing, across page boundaries and unaligned.
fn memory() -> u64 {
    let mut random = Random(77);
    let mut words: Vec<u64> = (0..20_000).map(|_| random.next()).collect();
    words.sort_unstable();
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for length in [1_usize, 7, 64, 333, 4096, 70_001] {
        bytes.copy_within(13..13 + length, 5_003);
        bytes.copy_within(5_003..5_003 + length, 5_001);
    }
    let mut digest = Digest::new();
    for chunk in bytes.chunks(9) {
        digest.add(chunk.iter().fold(0, |sum, byte| sum << 7 ^ u64::from(*byte)));
    }
    digest.0
}

/// SSE2 arithmetic, rounding and conversions, special values among them.
fn double() -> u64 {
    let mut random = Random(99);
    let mut digest = Digest::new();
    let special = [0.0, -0.0, f64::MIN_POSITIVE / 8.0, f64::MAX, f64::INFINITY, 1.0];
    for index in 0..20_000 {
        let a = if index % 16 == 0 { special[index / 16 % special.len()] } else { random.float() };
        let b = random.float();
        for value in [a + b, a - b, a * b, a / b, a.abs().sqrt(), a.min(b), a.max(b)] {
            digest.add_float(value);
        }
        digest.add(a as i32 as u64);
        digest.add(a as i64 as u64);
        digest.add(u64::from((a as f32 * b as f32).to_bits()));
        digest.add(u64::from(a < b) + 2 * u64::from(a == b));
    }
    digest.0
}

/// The x87: eighty-bit arithmetic, constants, transcendental instructions.
fn x87() -> u64 {
    let mut random = Random(5);
    let mut digest = Digest::new();
    for _ in 0..2_000 {
        let (a, b) = (random.float(), random.float());
        let mut result = [0_u8; 10];
        let mut rounded = 0_i64;
        // SAFETY: the registers' stack is empty again at the end, and both results have room.
        unsafe {
            asm!(
                "fld qword ptr [{a}]", "fld qword ptr [{b}]", "fmul st(0), st(1)", "fldpi", "faddp",
                "fsqrt", "fld st(0)", "fistp qword ptr [{rounded}]", "fdivrp", "fstp tbyte ptr [{result}]",
                a = in(reg) &a, b = in(reg) &b, rounded = in(reg) &mut rounded, result = in(reg) &mut result,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            );
        }
        digest.add(rounded as u64);
        digest.add(result.iter().fold(0, |sum: u64, byte| sum.rotate_left(9) ^ u64::from(*byte)));
    }
    digest.0
}

/// Four threads that add with locked instructions and compare-and-exchange loops: no addition may be lost.
fn threads() -> u64 {
    let added = AtomicU64::new(0);
    let exchanged = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    added.fetch_add(3, Ordering::Relaxed);
                    let step = |value: u64| Some(value.wrapping_mul(3));
                    let _ = exchanged.fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
                }
            });
        }
    });
    let mut digest = Digest::new();
    digest.add(added.into_inner());
    digest.add(exchanged.into_inner());
    digest.0
}

/// 256-bit integer work: shuffles, shifts by vectors, gathers, permutes.
#[target_feature(enable = "avx2")]
fn avx2() -> u64 {
    let mut random = Random(31);
    let table: Vec<i64> = (0..256).map(|_| random.next() as i64).collect();
    let mut sum = _mm256_set1_epi64x(7);
    for _ in 0..5_000 {
        let value = _mm256_set_epi64x(
            random.next() as i64,
            random.next() as i64,
            random.next() as i64,
            random.next() as i64,
        );
        let shuffled = _mm256_shuffle_epi8(value, sum);
        let shifted = _mm256_srlv_epi32(shuffled, _mm256_and_si256(value, _mm256_set1_epi32(31)));
        let multiplied = _mm256_maddubs_epi16(shifted, value);
        let places = _mm256_and_si256(value, _mm256_set1_epi64x(255));
        // SAFETY: every index is below the table's 256 entries.
        let gathered = unsafe { _mm256_i64gather_epi64::<8>(table.as_ptr(), places) };
        let permuted = _mm256_permutevar8x32_epi32(gathered, value);
        sum = _mm256_xor_si256(_mm256_add_epi64(sum, permuted), multiplied);
    }
    let mut words = [0_u64; 4];
    // SAFETY: the array has the 32 bytes that are stored.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), sum) };
    digest_of(&words)
}

/// Fused multiplications and additions, which round once.
#[target_feature(enable = "fma,avx")]
fn fma() -> u64 {
    let mut random = Random(41);
    let mut digest = Digest::new();
    for _ in 0..5_000 {
        let (a, b, c) = (random.float(), random.float(), random.float());
        let sum = _mm256_fmaddsub_pd(_mm256_set_pd(a, b, c, 1.5), _mm256_set1_pd(b), _mm256_set1_pd(c));
        let mut values = [0_f64; 4];
        // SAFETY: the array has the 32 bytes that are stored.
        unsafe { _mm256_storeu_pd(values.as_mut_ptr(), sum) };
        values.iter().for_each(|value| digest.add_float(*value));
        digest.add_float(a.mul_add(b, -c));
    }
    digest.0
}

/// BMI1, BMI2 and LZCNT.
#[target_feature(enable = "bmi1,bmi2,lzcnt")]
fn bits() -> u64 {
    let mut random = Random(51);
    let mut digest = Digest::new();
    for _ in 0..10_000 {
        let (a, b) = (random.next(), random.next());
        digest.add(_pdep_u64(a, b));
        digest.add(_pext_u64(a, b));
        digest.add(_bzhi_u64(a, b as u32 & 0xff));
        digest.add(_andn_u64(a, b) ^ _blsi_u64(a) ^ _blsr_u64(b) ^ _blsmsk_u64(a));
        digest.add(_lzcnt_u64(a >> (b & 63)) + _tzcnt_u64(a << (b & 63)));
        digest.add(_bextr_u64(a, b as u32 & 63, 17));
    }
    digest.0
}

/// AES rounds in both directions.
#[target_feature(enable = "aes,sse2")]
fn aes() -> u64 {
    let mut state = _mm_set_epi64x(0x0123_4567_89ab_cdef, 0x1122_3344_5566_7788);
    let mut key = _mm_set_epi64x(3, 5);
    for _ in 0..3_000 {
        key = _mm_xor_si128(_mm_aeskeygenassist_si128::<0x1b>(key), _mm_add_epi64(key, state));
        state = _mm_aesenc_si128(state, key);
        state = _mm_aesdec_si128(_mm_aesimc_si128(state), key);
        state = _mm_aesenclast_si128(_mm_aesdeclast_si128(state, key), key);
    }
    digest_of(&words_of(state))
}

/// Products without carries.
#[target_feature(enable = "pclmulqdq,sse2")]
fn carryless() -> u64 {
    let mut random = Random(61);
    let mut sum = _mm_setzero_si128();
    for _ in 0..5_000 {
        let a = _mm_set_epi64x(random.next() as i64, random.next() as i64);
        let low = _mm_clmulepi64_si128::<0x00>(a, sum);
        let high = _mm_clmulepi64_si128::<0x11>(a, a);
        sum = _mm_xor_si128(_mm_xor_si128(low, high), a);
    }
    digest_of(&words_of(sum))
}

/// SHA-1 and SHA-256 rounds.
#[target_feature(enable = "sha,sse2")]
fn sha() -> u64 {
    let mut a = _mm_set_epi32(1, 2, 3, 4);
    let mut b = _mm_set_epi32(5, 6, 7, 8);
    for _ in 0..3_000 {
        let message = _mm_sha256msg2_epu32(_mm_sha256msg1_epu32(a, b), b);
        let next = _mm_sha256rnds2_epu32(a, b, message);
        b = _mm_sha1msg2_epu32(_mm_sha1msg1_epu32(b, next), a);
        a = _mm_sha1rnds4_epu32::<2>(next, _mm_sha1nexte_epu32(b, message));
    }
    digest_of(&[words_of(a), words_of(b)].concat())
}

/// CRC32 and the string comparisons of SSE4.2.
#[target_feature(enable = "sse4.2")]
fn strings() -> u64 {
    let mut random = Random(71);
    let mut digest = Digest::new();
    let mut crc = 0;
    for _ in 0..5_000 {
        let a = _mm_set_epi64x(random.next() as i64, random.next() as i64);
        let b = _mm_set_epi64x(random.next() as i64 & 0x0f0f_0f0f_0f0f_0f0f, random.next() as i64);
        crc = _mm_crc32_u64(crc, words_of(a)[0]);
        digest.add(_mm_cmpestri::<0x0c>(a, 11, b, 13) as u64);
        digest.add(_mm_cmpistri::<0x18>(a, b) as u64);
        digest.add(words_of(_mm_cmpistrm::<0x44>(b, a))[0]);
    }
    digest.add(crc);
    digest.0
}

fn words_of(value: __m128i) -> [u64; 2] {
    // SAFETY: both types are 16 bytes without padding, and any bits are a valid u64.
    unsafe { std::mem::transmute(value) }
}

fn digest_of(words: &[u64]) -> u64 {
    let mut digest = Digest::new();
    words.iter().for_each(|word| digest.add(*word));
    digest.0
}

/// Gets the right to the port from the kernel (ioperm, system call 173) and writes to it.
fn debug_exit(value: u8, port: u16) {
    // SAFETY: ioperm only changes which ports this thread may use; the write goes to a port that the machine
    // reserves for exactly this.
    unsafe {
        let answer: i64;
        asm!("syscall", inlateout("rax") 173_i64 => answer, in("rdi") u64::from(port), in("rsi") 1_u64,
            in("rdx") 1_u64, out("rcx") _, out("r11") _);
        if answer != 0 {
            eprintln!("vireo_guest: ioperm answered {answer}");
            return;
        }
        asm!("out dx, al", in("dx") port, in("al") value);
    }
}
