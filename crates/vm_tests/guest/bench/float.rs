//! Floating point.

use std::arch::asm;
use std::hint::black_box;

use crate::{Row, Work};

/// The rows of this group.
pub fn rows() -> Vec<Row> {
    let row = |name, prepare| Row { name, group: "float", prepare };
    vec![
        row("n-body", || Some(Box::new(n_body))),
        row("mandelbrot", || Some(Box::new(mandelbrot))),
        row("dgemm", || Some(dgemm())),
        row("libm", || Some(Box::new(libm))),
        row("x87", || Some(Box::new(x87))),
    ]
}

#[derive(Clone, Copy)]
struct Body {
    place: [f64; 3],
    speed: [f64; 3],
    mass: f64,
}

/// Five bodies under gravity, the symplectic Euler method.
fn n_body() -> u64 {
    let mut bodies: [Body; 5] = std::array::from_fn(|i| {
        let i = i as f64;
        Body {
            place: [i * 3.1, i * i * 0.7, -i],
            speed: [0.3 - i * 0.1, 0.2 * i, 0.05 * i],
            mass: if i == 0.0 { 39.4 } else { 0.03 / i },
        }
    });
    for _ in 0..400_000 {
        for i in 0..5 {
            for j in i + 1..5 {
                let apart: [f64; 3] = std::array::from_fn(|k| bodies[i].place[k] - bodies[j].place[k]);
                let square = apart.iter().map(|d| d * d).sum::<f64>() + 0.01;
                let pull = 0.001 / (square * square.sqrt());
                for k in 0..3 {
                    let (mass_i, mass_j) = (bodies[i].mass, bodies[j].mass);
                    bodies[i].speed[k] -= apart[k] * mass_j * pull;
                    bodies[j].speed[k] += apart[k] * mass_i * pull;
                }
            }
        }
        for body in &mut bodies {
            for k in 0..3 {
                body.place[k] += 0.001 * body.speed[k];
            }
        }
    }
    bodies.iter().fold(0, |sum, body| sum ^ body.place[0].to_bits().rotate_left(7))
}

fn mandelbrot() -> u64 {
    let mut inside = 0;
    for row in 0..400 {
        for column in 0..400 {
            let (cx, cy) = (f64::from(column) / 160.0 - 2.0, f64::from(row) / 160.0 - 1.25);
            let (mut x, mut y, mut count) = (0.0, 0.0, 0);
            while count < 200 && x * x + y * y <= 4.0 {
                (x, y) = (x * x - y * y + cx, 2.0 * x * y + cy);
                count += 1;
            }
            inside += u64::from(count == 200) + u64::from(count as u32) * 3;
        }
    }
    inside
}

fn dgemm() -> Work {
    const SIDE: usize = 320;
    let a: Vec<f64> = (0..SIDE * SIDE).map(|i| (i % 31) as f64 * 0.5).collect();
    let b: Vec<f64> = (0..SIDE * SIDE).map(|i| (i % 29) as f64 * 0.25).collect();
    Box::new(move || {
        let mut c = vec![0.0_f64; SIDE * SIDE];
        for _ in 0..4 {
            for (i, row) in c.chunks_exact_mut(SIDE).enumerate() {
                for (k, other) in b.chunks_exact(SIDE).enumerate() {
                    let factor = a[i * SIDE + k];
                    row.iter_mut().zip(other).for_each(|(cell, value)| *cell += factor * value);
                }
            }
        }
        c.iter().step_by(641).sum::<f64>().to_bits()
    })
}

fn libm() -> u64 {
    let mut sum = 0.0;
    for i in 1..600_000 {
        let x = black_box(f64::from(i) * 0.001);
        sum += x.sin() + (x * 0.01).exp() + x.ln() + x.powf(0.3) + x.atan();
    }
    f64::to_bits(sum)
}

/// A dependent chain with the x87's own precision.
fn x87() -> u64 {
    let mut out = [0_u8; 16];
    let (seed, factor) = (1.000_000_3_f64, 0.999_999_1_f64);
    // SAFETY: leaves the x87 stack empty as it was; writes the ten bytes of `out`.
    unsafe {
        asm!(
            "fld qword ptr [{factor}]",
            "fld qword ptr [{seed}]",
            "2:",
            "fmul st, st(1)",
            "fld1",
            "faddp st(1), st",
            "fsqrt",
            "fld st",
            "fmul st, st(2)",
            "fsubp st(1), st",
            "fabs",
            "fld1",
            "faddp st(1), st",
            "dec {count:e}",
            "jnz 2b",
            "fstp tbyte ptr [{out}]",
            "fstp st(0)",
            count = inout(reg) 3_000_000_u32 => _,
            factor = in(reg) &raw const factor,
            seed = in(reg) &raw const seed,
            out = in(reg) out.as_mut_ptr(),
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    u64::from_le_bytes(std::array::from_fn(|i| out[i]))
}
