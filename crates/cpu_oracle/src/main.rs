//! Runs random cases on silicon and on the interpreter and reports every disagreement.

use anyhow::{Result, bail};
use clap::Parser;
use cpu_oracle::{generate, run};
use std::time::Instant;

/// Compares Vireo's software CPU with the host's processor on random user-mode code.
#[derive(Parser)]
struct Options {
    /// How many cases.
    #[arg(long, default_value_t = 200_000)]
    cases: u64,
    /// Seed of the first case; case `n` has seed `SEED + n`.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Part of the instruction set.
    #[arg(long, value_enum, default_value = "all")]
    group: generate::Group,
    /// How many disagreements to print.
    #[arg(long, default_value_t = 10)]
    print: usize,
    /// Print every case's code, of few cases.
    #[arg(long)]
    show: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let started = Instant::now();
    let mut oracle = run::Oracle::new()?;
    let mut wrong = 0_u64;
    let mut printed = 0;
    let mut at = 0;
    while at < options.cases {
        let count = (options.cases - at).min(run::BATCH as u64);
        let seeds = options.seed + at..options.seed + at + count;
        let cases: Vec<_> = seeds.clone().map(|seed| generate::case(seed, options.group)).collect();
        for (seed, (case, difference)) in seeds.zip(cases.iter().zip(oracle.compare(&cases)?)) {
            if options.show {
                println!("seed {seed}\n{}", run::disassemble(case));
            }
            if difference.is_empty() {
                continue;
            }
            wrong += 1;
            if printed < options.print {
                printed += 1;
                println!("seed {seed}:\n{}{difference}", run::disassemble(case));
            }
        }
        at += count;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} cases, {wrong} disagreements, {seconds:.1} s ({:?} seeds from {})",
        at, options.group, options.seed
    );
    if wrong > 0 {
        bail!("Silicon and interpreter disagree");
    }
    Ok(())
}
