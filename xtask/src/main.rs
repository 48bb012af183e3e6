//! Every chore of the repository, as `cargo xtask CHORE`.
//!
//! A chore is one module with a `run` function. Chores that need a guest (demo, test, bench) get it from
//! [`guests`], which makes and caches a kernel, an initramfs and a Debian disk. Nothing here is used by the
//! product itself.

mod bench;
mod chores;
mod command;
mod console;
mod demo;
mod fuzz;
mod guests;
mod lint;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Chores of the Vireo repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Options {
    #[command(subcommand)]
    chore: Chore,
}

/// One chore.
#[derive(Subcommand)]
enum Chore {
    /// Boot Debian to its login prompt and say which engine ran it and how long it took
    Demo(demo::DemoOptions),
    /// Run every test: the workspace's own and the guests'
    Test(chores::TestOptions),
    /// Run what continuous integration runs: formatting, lints, clippy, tests, documentation
    Ci,
    /// Check layers, sizes, dependencies, licences, wording and the paths named in the book
    Lint,
    /// Format the code
    Fmt {
        /// Only say what would change
        #[arg(long)]
        check: bool,
    },
    /// Make the guest kernel, initramfs and Debian disk in `.cache/guests`
    Guests {
        /// Look for a newer kernel package and make everything again
        #[arg(long)]
        refresh: bool,
    },
    /// Run fuzz targets: a number of executions, or a time (needs cargo-fuzz and a nightly toolchain)
    Fuzz(fuzz::FuzzOptions),
    /// Measure, beside QEMU's software CPU where that makes sense
    Bench(bench::BenchOptions),
}

fn main() -> Result<()> {
    match Options::parse().chore {
        Chore::Demo(options) => demo::run(&options),
        Chore::Test(options) => chores::test(&options),
        Chore::Ci => chores::ci(),
        Chore::Lint => lint::run(),
        Chore::Fmt { check } => chores::fmt(check),
        Chore::Guests { refresh } => guests::prepare(refresh).map(|guests| guests.describe()),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Bench(options) => bench::run(&options),
    }
}
