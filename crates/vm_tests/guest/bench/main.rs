//! The guest side of `cargo xtask bench cpu`: rows of work, each with a digest of what it computed.
//!
//! The same static executable runs on the host, in Vireo and in QEMU. A row prepares itself, says
//! `BENCH-BEGIN name`, works, and says `BENCH-END name nanoseconds digest`. In a guest the harness takes the time
//! between the two lines with the host's clock, because a guest's clock is part of what is under test; the digests
//! must be the same everywhere.
//!
//! - `vireo_bench list`: a line `group name` for every row.
//! - `vireo_bench run ROW...`: once each.
//! - `vireo_bench native ROW...`: each again and again for 200 ms; the mean time.

mod code;
mod float;
mod integer;
mod memory;
mod random;
mod sha256;
mod simd;
mod smp;
mod sys;
mod system;

use std::io::Write;
use std::time::{Duration, Instant};

/// Prepared work: everything timed is in the call.
pub type Work = Box<dyn FnMut() -> u64>;

/// One row of the table.
pub struct Row {
    /// What the row is called on the command line and in the table.
    pub name: &'static str,
    /// Rows of one group share a geometric mean.
    pub group: &'static str,
    /// Prepares the work; `None` when this processor lacks an instruction set it needs.
    pub prepare: fn() -> Option<Work>,
}

/// Shortest time a native measurement may rest on.
const NATIVE: Duration = Duration::from_millis(200);

fn rows() -> Vec<Row> {
    [integer::rows(), memory::rows(), float::rows(), simd::rows(), system::rows(), smp::rows(), code::rows()]
        .into_iter()
        .flatten()
        .collect()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (verb, wanted) = match arguments.split_first() {
        Some((verb, wanted)) => (verb.as_str(), wanted),
        None => ("", &[][..]),
    };
    let rows = rows();
    let chosen = rows.iter().filter(|row| wanted.is_empty() || wanted.iter().any(|name| name == row.name));
    match verb {
        "list" => rows.iter().for_each(|row| println!("{} {}", row.group, row.name)),
        "run" => chosen.for_each(run_once),
        "native" => chosen.for_each(run_long),
        "exec-target" => {}
        _ => eprintln!("usage: vireo_bench list | run ROW... | native ROW..."),
    }
}

/// A line of its own, at once: the harness takes the time when it sees it.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

fn run_once(row: &Row) {
    let Some(mut work) = (row.prepare)() else {
        say(&format!("BENCH-ABSENT {}", row.name));
        return;
    };
    say(&format!("BENCH-BEGIN {}", row.name));
    let start = Instant::now();
    let digest = work();
    let taken = start.elapsed();
    say(&format!("BENCH-END {} {} {digest:016x}", row.name, taken.as_nanos()));
}

fn run_long(row: &Row) {
    let Some(mut work) = (row.prepare)() else {
        say(&format!("BENCH-ABSENT {}", row.name));
        return;
    };
    let digest = work();
    let start = Instant::now();
    let mut count = 0;
    while count < 3 || start.elapsed() < NATIVE {
        work();
        count += 1;
    }
    let mean = start.elapsed().as_nanos() / count;
    say(&format!("BENCH-END {} {mean} {digest:016x}", row.name));
}
