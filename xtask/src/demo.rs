//! `cargo xtask demo`: an unmodified Debian, from nothing to its login prompt.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use rustix::process::Signal;

use crate::console::Console;
use crate::guests::{self, Guests};
use crate::{command, workspace};

/// Longest a boot may take, on the slowest engine of a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(900);
/// Longest an orderly shutdown may take.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(240);

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub struct DemoOptions {
    /// Leave the console to you (root has no password; Ctrl-] leaves)
    #[arg(long)]
    interactive: bool,
    /// Which engine: auto, kvm or software
    #[arg(long, default_value = "auto")]
    engine: String,
    /// How many vCPUs
    #[arg(long, default_value_t = 2)]
    cpus: u32,
}

/// Boots Debian.
pub fn run(options: &DemoOptions) -> Result<()> {
    let vireo = workspace::build_vireo()?;
    let guests = guests::prepare(false)?;
    let disk = guests.disk_copy("demo")?;
    let mut machine = debian(&vireo, &guests, &disk, &options.engine, options.cpus);
    if options.interactive {
        return command::run(&mut machine);
    }
    machine.arg("--stats");
    let mut console = Console::start(&mut machine, true)?;
    let boot = console.wait_for("login:", BOOT_LIMIT)?;
    println!("\n\ndemo: the login prompt came after {:.1} s; pressing the power button", boot.as_secs_f64());
    console.signal(Signal::TERM)?;
    let status = console.wait(SHUTDOWN_LIMIT)?;
    std::fs::remove_file(&disk)?;
    println!("\ndemo: engine: {}", chosen_engine(&vireo, &options.engine)?);
    println!("demo: power on to login prompt: {:.1} s with {} vCPUs", boot.as_secs_f64(), options.cpus);
    if !status.success() {
        bail!("The machine did not power off in order: {status}");
    }
    println!("demo: the guest powered itself off; exit status 0");
    Ok(())
}

/// The command line that boots the Debian disk.
pub fn debian(vireo: &Path, guests: &Guests, disk: &Path, engine: &str, cpus: u32) -> Command {
    let mut command = Command::new(vireo);
    command
        .args(["run", "--name", "debian", "--memory", "512M"])
        .args(["--engine", engine, "--cpus", &cpus.to_string()])
        .arg("--kernel")
        .arg(&guests.kernel)
        .arg("--initrd")
        .arg(&guests.initramfs)
        .args(["--append", "console=ttyS0 root=/dev/vda rw"])
        .arg("--disk")
        .arg(disk);
    command
}

/// The engine a machine gets: the one asked for, or what `vireo doctor` says `auto` chooses.
fn chosen_engine(vireo: &PathBuf, asked: &str) -> Result<String> {
    if asked != "auto" {
        return Ok(asked.to_owned());
    }
    let report = command::output(Command::new(vireo).args(["doctor", "--json"]))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let text = |key: &str| report.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let engine = text("chosen").or_else(|| text("engine")).unwrap_or_else(|| "see `vireo doctor`".to_owned());
    Ok(match text("reason") {
        Some(reason) => format!("{engine} ({reason})"),
        None => engine,
    })
}
