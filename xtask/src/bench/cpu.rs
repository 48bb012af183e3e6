//! `cargo xtask bench cpu`: the rows of the guest's benchmark natively, in Vireo and in QEMU's software CPU.
//!
//! The same static executable runs all three times, and its digests must agree. In a machine the host's clock
//! decides: the time between the row's two lines on the serial port. Ratios are QEMU's time over ours, so more is
//! better for us.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::MARKER;
use crate::console::Console;
use crate::guests::{self, Guests};
use crate::{command, workspace};

/// Least geometric mean of the ratios of a group.
const BOUNDS: &[(&str, f64)] =
    &[("integer", 2.5), ("memory", 4.0), ("float", 10.0), ("simd", 40.0), ("system", 2.5), ("boot", 2.0)];
/// Least ratio of any row.
const ROW_BOUND: f64 = 1.0;
/// Least gain of two vCPUs on parallel work.
const PARALLEL_BOUND: f64 = 1.7;
/// The QEMU that is compared with if no other is named.
const QEMU: &str = "qemu-system-x86_64";
/// Longest a row may take in a machine.
const LIMIT: Duration = Duration::from_secs(900);

/// Options of `cargo xtask bench cpu`.
#[derive(Args)]
pub struct CpuOptions {
    /// Only these rows or groups, separated by commas
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// More options for `vireo run`, for example `--options "--software-tier interpreter"`
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    options: String,
    /// The QEMU to compare with: a path, or a name in PATH
    #[arg(long, value_name = "PROGRAM", default_value = QEMU)]
    qemu: String,
    /// How often everything is measured, in turn; the best of each row counts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// Leave QEMU out
    #[arg(long)]
    no_qemu: bool,
    /// Do not fail when a bound is not kept
    #[arg(long)]
    no_bounds: bool,
}

/// What a row gave somewhere.
#[derive(Clone)]
struct Taken {
    seconds: f64,
    digest: String,
}

/// Results by row.
type Results = BTreeMap<String, Taken>;

/// Measures and prints.
pub fn run(options: &CpuOptions) -> Result<()> {
    let vireo = workspace::build_vireo()?;
    let guests = guests::prepare(false)?;
    let rows = chosen(&guests, &options.rows)?;
    if !options.no_qemu {
        if options.qemu == QEMU {
            guests::need(QEMU, "qemu-system-x86")?;
        }
        let version = command::output(Command::new(&options.qemu).arg("--version"))?;
        println!("{}\n", version.lines().next().unwrap_or_default());
    }
    let [mut native, mut ours, mut theirs] = [(); 3].map(|()| Results::new());
    for _ in 0..options.turns {
        keep_best(&mut native, natively(&guests, &rows)?);
        let machine = |cpus, words: &str| vireo_run(&vireo, &options.options, &guests, cpus, words);
        keep_best(&mut ours, in_machines(&rows, machine)?);
        if !options.no_qemu {
            let machine = |cpus, words: &str| qemu(&options.qemu, &guests, cpus, words);
            keep_best(&mut theirs, in_machines(&rows, machine)?);
        }
    }
    let kept = report(&rows, &native, &ours, &theirs)?;
    if !kept && !options.no_bounds {
        bail!("A bound was not kept");
    }
    Ok(())
}

/// Keeps the less of two times of each row.
fn keep_best(best: &mut Results, new: Results) {
    for (name, taken) in new {
        if best.get(&name).is_none_or(|before| taken.seconds < before.seconds) {
            best.insert(name, taken);
        }
    }
}

fn vireo_run(vireo: &Path, options: &str, guests: &Guests, cpus: u32, words: &str) -> Command {
    let mut command = Command::new(vireo);
    command.args(["run", "--memory", "1G", "--cpus", &cpus.to_string(), "--engine", "software"]);
    command.args(options.split_whitespace());
    command.arg("--kernel").arg(&guests.kernel).arg("--initrd").arg(&guests.initramfs);
    command.args(["--append", words]);
    command
}

fn qemu(program: &str, guests: &Guests, cpus: u32, words: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1024", "-nographic", "-no-reboot"]);
    command.args(["-smp", &cpus.to_string(), "-append", words]);
    command.arg("-kernel").arg(&guests.kernel).arg("-initrd").arg(&guests.initramfs);
    command
}

/// Group and name of every row that was asked for, in the program's order.
fn chosen(guests: &Guests, wanted: &[String]) -> Result<Vec<(String, String)>> {
    let list = command::output(Command::new(guests.bench_program()).arg("list"))?;
    let rows: Vec<_> = list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(group, name)| {
            wanted.is_empty() || wanted.iter().any(|wanted| wanted == group || wanted == name)
        })
        .map(|(group, name)| (group.to_owned(), name.to_owned()))
        .collect();
    if rows.is_empty() {
        bail!("No row or group is called {}; the rows are:\n{list}", wanted.join(", "));
    }
    Ok(rows)
}

fn natively(guests: &Guests, rows: &[(String, String)]) -> Result<Results> {
    let mut command = Command::new(guests.bench_program());
    command.arg("native").args(rows.iter().map(|(_, name)| name));
    command.env("VIREO_BUSYBOX", guests.folder.join("busybox"));
    let output = command::output(&mut command)?;
    Ok(output.lines().filter_map(end_line).collect())
}

/// `BENCH-END name nanoseconds digest`.
fn end_line(line: &str) -> Option<(String, Taken)> {
    let mut words = line.trim().strip_prefix("BENCH-END ")?.split(' ');
    let (name, nanoseconds, digest) = (words.next()?, words.next()?, words.next()?);
    let seconds = nanoseconds.parse::<f64>().ok()? / 1e9;
    Some((name.to_owned(), Taken { seconds, digest: digest.to_owned() }))
}

/// Boots one machine with one vCPU for most rows, another with two for the `smp` rows.
fn in_machines(rows: &[(String, String)], machine: impl Fn(u32, &str) -> Command) -> Result<Results> {
    let (pairs, singles): (Vec<_>, Vec<_>) = rows.iter().partition(|(group, _)| group == "smp");
    let mut results = Results::new();
    for (rows, cpus) in [(singles, 1), (pairs, 2)] {
        if !rows.is_empty() {
            let names: Vec<&str> = rows.iter().map(|(_, name)| name.as_str()).collect();
            let words = format!("console=ttyS0 quiet vireo.test=bench,{}", names.join(","));
            in_machine(&names, machine(cpus, &words), cpus, &mut results)
                .with_context(|| format!("With {cpus} vCPUs"))?;
        }
    }
    Ok(results)
}

fn in_machine(names: &[&str], mut command: Command, cpus: u32, results: &mut Results) -> Result<()> {
    let mut console = Console::start(&mut command, false)?;
    let boot = console.wait_for(MARKER, LIMIT)?;
    if cpus == 1 {
        let digest = String::new();
        results.insert("boot".to_owned(), Taken { seconds: boot.as_secs_f64(), digest });
    }
    for name in names {
        let start = console.wait_for(&format!("BENCH-BEGIN {name}\r"), LIMIT)?;
        let end = console.wait_for(&format!("BENCH-END {name} "), LIMIT)?;
        console.wait_for_line()?;
        let text = console.text();
        let line = text.lines().find(|line| line.starts_with(&format!("BENCH-END {name} ")));
        let (_, taken) = line.and_then(end_line).context("The guest's line is not whole")?;
        results.insert((*name).to_owned(), Taken { seconds: (end - start).as_secs_f64(), ..taken });
        eprintln!("bench: {name}: {:.3} s", (end - start).as_secs_f64());
    }
    console.kill();
    Ok(())
}

/// Prints the table; false when a bound was not kept.
fn report(rows: &[(String, String)], native: &Results, ours: &Results, theirs: &Results) -> Result<bool> {
    println!("| group | row | native ms | Vireo ms | QEMU ms | Vireo / native | QEMU / Vireo |");
    println!("|---|---|---|---|---|---|---|");
    let mut kept = true;
    let mut ratios: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let boot = [("boot".to_owned(), "boot".to_owned())];
    for (group, name) in rows.iter().chain(&boot) {
        let Some(own) = ours.get(name) else { continue };
        let (host, other) = (native.get(name), theirs.get(name));
        if let Some(wrong) = [host, other].into_iter().flatten().find(|taken| taken.digest != own.digest) {
            bail!("{name}: the digest in Vireo is {}, elsewhere {}", own.digest, wrong.digest);
        }
        let show =
            |value: Option<f64>, unit: f64| value.map_or("-".to_owned(), |v| format!("{:.2}", v * unit));
        let ratio = other.map(|other| other.seconds / own.seconds);
        println!(
            "| {group} | {name} | {} | {} | {} | {} | {} |",
            show(host.map(|taken| taken.seconds), 1e3),
            show(Some(own.seconds), 1e3),
            show(other.map(|taken| taken.seconds), 1e3),
            show(host.map(|taken| own.seconds / taken.seconds), 1.0),
            show(ratio, 1.0),
        );
        if let Some(ratio) = ratio {
            kept &= ratio >= ROW_BOUND;
            ratios.entry(group).or_default().push(ratio);
        }
    }
    println!();
    for (group, values) in &ratios {
        let mean = geometric_mean(values);
        let bound = BOUNDS.iter().find(|(name, _)| name == group).map(|(_, bound)| *bound);
        kept &= bound.is_none_or(|bound| mean >= bound);
        let wanted = bound.map_or(String::new(), |bound| format!(" (bound {bound})"));
        println!("{group}: geometric mean of QEMU / Vireo over {} rows: {mean:.2}{wanted}", values.len());
    }
    let all: Vec<f64> = ratios.values().flatten().copied().collect();
    if !all.is_empty() {
        println!("all: geometric mean of QEMU / Vireo over {} rows: {:.2}", all.len(), geometric_mean(&all));
    }
    if let (Some(one), Some(two)) = (ours.get("parallel-1"), ours.get("parallel-2")) {
        let gain = one.seconds / two.seconds;
        println!("two vCPUs against one on parallel work: {gain:.2} (bound {PARALLEL_BOUND})");
        kept &= gain >= PARALLEL_BOUND;
    }
    Ok(kept)
}

fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}
