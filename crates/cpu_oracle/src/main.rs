//! Runs random cases on silicon and on an engine and reports every disagreement.

use anyhow::{Result, bail, ensure};
use clap::Parser;
use cpu_oracle::executor::Candidate;
use cpu_oracle::generate::{self, Group};
use cpu_oracle::minimise::{minimise, signature};
use cpu_oracle::processor;
use cpu_oracle::regression::{self, Regression};
use cpu_oracle::run::{BATCH, Oracle, disassemble};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
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
    group: Group,
    /// What is compared with silicon.
    #[arg(long, value_enum, default_value = "interpreter")]
    executor: Candidate,
    /// How many disagreements to print.
    #[arg(long, default_value_t = 10)]
    print: usize,
    /// Threads; each has its own child process and its own software CPU.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Make disagreeing cases small, and tell how many there are of each kind.
    #[arg(long)]
    minimise: bool,
    /// Append disagreeing cases, made small, to a file of kept cases: one of each kind.
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// Print every case's code, of few cases.
    #[arg(long)]
    show: bool,
    /// Run the cases of a file of kept cases, written by hand or by --keep, and tell how each ends on silicon.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cases", "seed", "group", "minimise", "keep", "show"])]
    replay: Option<PathBuf>,
}

/// Cases and disagreements of a group.
#[derive(Clone, Copy, Default)]
struct Count {
    cases: u64,
    wrong: u64,
}

#[derive(Default)]
struct Report {
    groups: BTreeMap<Group, Count>,
    printed: usize,
    /// How many of each kind.
    kinds: BTreeMap<String, u64>,
    /// The first of each kind.
    kept: Vec<Regression>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.threads > 0, "--threads 0 would never end; one or more are needed");
    if let Some(path) = &options.replay {
        return replay(path, options.executor);
    }
    let started = Instant::now();
    let report = Mutex::new(Report::default());
    let next = AtomicU64::new(0);
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..options.threads).map(|_| scope.spawn(|| work(&options, &next, &report))).collect();
        let joined = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(|result| result.unwrap_or_else(|_| bail!("A worker panicked"))).collect()
    });
    results.into_iter().collect::<Result<Vec<()>>>()?;
    let report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = &options.keep {
        regression::append(path, &report.kept)?;
    }
    conclude(&options, &report, started.elapsed().as_secs_f64())
}

fn work(options: &Options, next: &AtomicU64, report: &Mutex<Report>) -> Result<()> {
    let mut oracle = Oracle::against(options.executor.executor()?)?;
    loop {
        let at = next.fetch_add(BATCH as u64, Ordering::Relaxed);
        if at >= options.cases {
            return Ok(());
        }
        let count = (options.cases - at).min(BATCH as u64);
        let seeds = options.seed + at..options.seed + at + count;
        let (cases, groups): (Vec<_>, Vec<_>) =
            seeds.clone().map(|seed| generate::case(seed, options.group)).unzip();
        let differences = oracle.compare(&cases)?;
        let mut minimised = Vec::new();
        for (case, difference) in cases.iter().zip(&differences) {
            let small = (options.minimise || options.keep.is_some()) && !difference.is_empty();
            minimised.push(if small { Some(minimise(&mut oracle, case, difference)?) } else { None });
        }
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, seed) in seeds.enumerate() {
            let (case, difference) = (&cases[index], &differences[index]);
            let count = report.groups.entry(groups[index]).or_default();
            count.cases += 1;
            if options.show {
                println!("seed {seed}\n{}", disassemble(case));
            }
            if difference.is_empty() {
                continue;
            }
            count.wrong += 1;
            let (case, difference) = minimised[index].as_ref().map_or((case, difference), |(a, b)| (a, b));
            if options.minimise || options.keep.is_some() {
                let seen = report.kinds.entry(signature(case, difference)).or_default();
                *seen += 1;
                if *seen > 1 {
                    continue;
                }
                let told = difference.split_whitespace().collect::<Vec<_>>().join(" ");
                report.kept.push(Regression::new(case, &told));
            }
            if report.printed < options.print {
                report.printed += 1;
                println!("seed {seed} ({:?}):\n{}{difference}", groups[index], disassemble(case));
            }
        }
    }
}

/// Runs kept cases one by one: what a file says, what silicon makes of it, and what the engine does otherwise.
fn replay(path: &Path, executor: Candidate) -> Result<()> {
    let mut oracle = Oracle::against(executor.executor()?)?;
    let (mut cases, mut wrong) = (0_u64, 0_u64);
    for kept in regression::read(path)? {
        let case = kept.case()?;
        let told = match oracle.silicon(&case)? {
            Ok(outcome) => outcome.summary(),
            Err(error) => format!("{error:#}"),
        };
        let difference = oracle.compare_one(&case)?;
        cases += 1;
        wrong += u64::from(!difference.is_empty());
        println!("{}:\n{}  silicon: {told}\n{difference}", kept.wrong, disassemble(&case));
    }
    println!("{cases} cases, {wrong} disagreements, on {}", processor::described());
    ensure!(wrong == 0, "Silicon and {executor:?} disagree");
    Ok(())
}

fn conclude(options: &Options, report: &Report, seconds: f64) -> Result<()> {
    let mut total = Count::default();
    for (group, count) in &report.groups {
        println!("{group:?}: {} cases, {} disagreements", count.cases, count.wrong);
        total.cases += count.cases;
        total.wrong += count.wrong;
    }
    let mut kinds: Vec<_> = report.kinds.iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (kind, count) in kinds {
        println!("{count:8} {kind}");
    }
    println!(
        "{:?}: {} cases, {} disagreements, {seconds:.1} s, seeds from {}, on {}",
        options.executor,
        total.cases,
        total.wrong,
        options.seed,
        processor::described()
    );
    if total.wrong > 0 {
        bail!("Silicon and {:?} disagree", options.executor);
    }
    Ok(())
}
