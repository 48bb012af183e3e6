//! Fuzz targets: built once by cargo-fuzz, then run one after the other by libFuzzer.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{command, workspace};

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub struct FuzzOptions {
    /// Targets, as `--list` names them; all of them when there is none
    targets: Vec<String>,
    /// Print the names of all targets, and do nothing else
    #[arg(long)]
    list: bool,
    /// Executions of each target
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    runs: Option<u64>,
    /// Seconds for each target; 60 when executions are not given either
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// What is looked for beside panics: `none`, or `address` for errors of unsafe code, which takes several times longer
    #[arg(long, value_name = "NAME", default_value = "none", value_parser = ["none", "address"])]
    sanitizer: String,
    /// Options for libFuzzer
    #[arg(last = true)]
    options: Vec<String>,
}

/// Seconds after which one execution is taken for a loop.
const TIMEOUT: u64 = 30;

/// Builds and runs.
///
/// Inputs that reached something new stay in `fuzz/corpus`, findings in `fuzz/artifacts`; both are ignored by git. A
/// target that finds something ends, the others go on, and the chore fails.
pub fn run(options: &FuzzOptions) -> Result<()> {
    let all = targets()?;
    if options.list {
        all.iter().for_each(|target| println!("{target}"));
        return Ok(());
    }
    if let Some(unknown) = options.targets.iter().find(|target| !all.contains(target)) {
        bail!("{unknown:?} is no fuzz target; `cargo xtask fuzz --list` names them");
    }
    if !command::is_installed("cargo-fuzz") {
        bail!(
            "cargo-fuzz is not installed: `cargo install cargo-fuzz --locked`, `rustup toolchain install nightly`"
        );
    }
    let chosen = if options.targets.is_empty() { &all } else { &options.targets };
    // One target, or all: cargo-fuzz knows nothing between.
    let builds: Vec<&[String]> =
        if chosen.len() == all.len() { vec![&[]] } else { chosen.chunks(1).collect() };
    for names in builds {
        command::run(fuzz().args(["build", "--sanitizer", &options.sanitizer]).args(names))?;
    }
    let mut failed = Vec::new();
    for target in chosen {
        let start = Instant::now();
        let result = run_one(target, options);
        println!("fuzz: {target}: {} after {:.0?}", outcome(&result), start.elapsed());
        failed.extend(result.err().map(|_| target.as_str()));
    }
    if !failed.is_empty() {
        bail!("Something was found by {}; its inputs are in fuzz/artifacts", failed.join(", "));
    }
    Ok(())
}

fn outcome(result: &Result<()>) -> String {
    result.as_ref().map_or_else(ToString::to_string, |()| "nothing found".to_owned())
}

fn run_one(target: &str, options: &FuzzOptions) -> Result<()> {
    let root = workspace::root().join("fuzz");
    let (corpus, artifacts) = (root.join("corpus").join(target), root.join("artifacts").join(target));
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    }
    let limit = match (options.runs, options.seconds) {
        (Some(runs), _) => format!("-runs={runs}"),
        (None, seconds) => format!("-max_total_time={}", seconds.unwrap_or(60)),
    };
    let mut command = Command::new(binary(target)?);
    command.current_dir(&root).arg(&corpus).arg(limit).args([
        format!("-artifact_prefix={}/", artifacts.display()),
        format!("-timeout={TIMEOUT}"),
        "-print_final_stats=1".to_owned(),
    ]);
    command::run(command.args(&options.options))
}

/// The program cargo-fuzz has built.
fn binary(target: &str) -> Result<std::path::PathBuf> {
    let version = command::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let folder = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace::root().join("fuzz/target"), |folder| workspace::root().join(folder));
    Ok(folder.join(host).join("release").join(target))
}

/// `cargo fuzz` of the nightly toolchain, which knows the flags that libFuzzer needs.
fn fuzz() -> Command {
    let mut command = Command::new("cargo");
    // The variables of the toolchain that runs us would win over the one that is named here.
    command
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC")
        .env_remove("CARGO")
        .arg("+nightly")
        .arg("fuzz");
    command.current_dir(workspace::root().join("fuzz"));
    command
}

/// The names of all targets, in order.
fn targets() -> Result<Vec<String>> {
    let folder = workspace::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("Cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
