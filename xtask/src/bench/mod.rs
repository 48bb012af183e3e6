//! `cargo xtask bench WHAT`: a figure, what it was compared with, and the bound it must keep.
//!
//! Every figure is measured now, and so is what it is compared with. A figure past its bound makes the chore
//! fail.

mod cpu;
mod disk;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use vm_tests::TinyGuest;

use crate::console::Console;
use crate::guests::{self, Guests};
use crate::{command, demo, workspace};

/// The interpreter may take this many times QEMU's time to boot, and the translator.
const BOOT_RATIO: [f64; 2] = [12.0, 0.5];
/// Most resident memory beyond the guest's own, of the interpreter and of the translator.
const OVERHEAD_MIB: [f64; 2] = [24.0, 64.0];
/// Longest from the start of the process to the guest's first instruction.
const STARTUP: Duration = Duration::from_millis(30);
/// What the guest of `startup` ends its machine with.
const STARTUP_VALUE: u32 = 0x15;
/// What a guest says when its first program runs.
const MARKER: &str = "VIREO-INIT-OK";

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub struct BenchOptions {
    /// What to measure
    #[command(subcommand)]
    what: Measure,
    /// Which engine: software, kvm or auto; software if not given, and auto beside it for startup
    #[arg(long, global = true)]
    engine: Option<String>,
    /// How the software CPU runs code: auto, interpreter or translate; each has its own bounds
    #[arg(long, default_value = "auto", global = true)]
    software_tier: String,
}

impl BenchOptions {
    fn engine(&self) -> &str {
        self.engine.as_deref().unwrap_or("software")
    }

    /// What `vireo run` is told.
    fn cpu(&self) -> [&str; 4] {
        ["--engine", self.engine(), "--software-tier", &self.software_tier]
    }

    /// The bound for the tier.
    fn bound(&self, bounds: [f64; 2]) -> f64 {
        bounds[usize::from(self.software_tier != "interpreter")]
    }
}

/// What can be measured.
#[derive(Subcommand)]
enum Measure {
    /// Kernel and busybox initramfs to the first program, 1 vCPU, beside QEMU's software CPU
    Boot,
    /// Millions of instructions a second of the interpreter
    Mips,
    /// Interrupts and kicks of a vCPU that loops in translated code, and what one that halts uses
    Kick,
    /// Resident memory beyond the guest's own after Debian has booted
    Rss,
    /// From the start of the process to the guest's first instruction
    Startup,
    /// The software CPU row by row: integer, memory, floating point, SIMD, system, two vCPUs, changing code
    Cpu(cpu::CpuOptions),
    /// Conversion of images beside qemu-img, and random requests over NBD beside qemu-nbd
    Disk(disk::DiskOptions),
}

/// Measures.
pub fn run(options: &BenchOptions) -> Result<()> {
    match &options.what {
        Measure::Boot => boot(options),
        Measure::Mips => mips(),
        Measure::Kick => kick(),
        Measure::Rss => resident(options),
        Measure::Startup => match &options.engine {
            Some(engine) => startup(engine),
            None => startup("software").and_then(|()| startup("auto")),
        },
        Measure::Cpu(options) => cpu::run(options),
        Measure::Disk(options) => disk::run(options),
    }
}

/// Both boots take the same kernel, initramfs, command line, memory and number of vCPUs.
fn boot(options: &BenchOptions) -> Result<()> {
    guests::need("qemu-system-x86_64", "qemu-system-x86")?;
    let vireo = workspace::build_vireo()?;
    let guests = guests::prepare(false)?;
    let limit = Duration::from_secs(600);
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512", "-nographic", "-no-reboot"])
        .args(["-append", "console=ttyS0"])
        .arg("-kernel")
        .arg(&guests.kernel)
        .arg("-initrd")
        .arg(&guests.initramfs);
    let theirs = time_to_marker(&mut qemu, limit)?;
    let ours = time_to_marker(&mut busybox_guest(&vireo, &guests, options), limit)?;
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!("boot: Debian cloud kernel and busybox initramfs to the first program, 1 vCPU, 512 MiB");
    let bound = options.bound(BOOT_RATIO);
    println!("boot: vireo {}: {:.2} s", options.cpu().join(" "), ours.as_secs_f64());
    println!("boot: qemu-system-x86_64 -accel tcg -cpu max: {:.2} s", theirs.as_secs_f64());
    println!("boot: ratio {ratio:.2} (bound {bound})");
    keep(ratio <= bound, "boot ratio")
}

fn time_to_marker(command: &mut Command, limit: Duration) -> Result<Duration> {
    Console::start(command, false)?.wait_for(MARKER, limit)
}

/// A machine with the kernel and the busybox initramfs only.
fn busybox_guest(vireo: &Path, guests: &Guests, options: &BenchOptions) -> Command {
    let mut command = Command::new(vireo);
    command
        .args(["run", "--memory", "512M", "--cpus", "1"])
        .args(options.cpu())
        .arg("--kernel")
        .arg(&guests.kernel)
        .arg("--initrd")
        .arg(&guests.initramfs)
        .args(["--append", "console=ttyS0"]);
    command
}

/// The engine's own example measures and judges; it knows which loops it runs.
/// The example prints its bound beside its figures. A busy host is late at times, so none of them makes the chore fail.
fn kick() -> Result<()> {
    command::run(workspace::cargo().args(["run", "--release", "-p", "engine_soft", "--example", "kick"]))
}

fn mips() -> Result<()> {
    command::run(workspace::cargo().args(["run", "--release", "-p", "engine_soft", "--example", "mips"]))
}

/// After the login prompt: the process's resident memory less what is resident of the guest's memory.
fn resident(options: &BenchOptions) -> Result<()> {
    let vireo = workspace::build_vireo()?;
    let guests = guests::prepare(false)?;
    let disk = guests.disk_copy("rss")?;
    let mut console = Console::start(
        demo::debian(&vireo, &guests, &disk, options.engine(), 2)
            .args(["--software-tier", &options.software_tier]),
        false,
    )?;
    console.wait_for("login:", Duration::from_secs(900))?;
    let usage = MemoryUse::of(console.id(), 512 << 10)?;
    console.kill();
    std::fs::remove_file(disk)?;
    let overhead = (usage.resident - usage.guest) as f64 / 1024.0;
    let bound = options.bound(OVERHEAD_MIB);
    println!("rss: Debian at its login prompt, 512 MiB, 2 vCPUs, {}", options.cpu().join(" "));
    println!("rss: resident {:.1} MiB, of it guest memory {:.1} MiB", mib(usage.resident), mib(usage.guest));
    println!(
        "rss: of the rest, program and libraries {:.1} MiB, heap and stacks {:.1} MiB",
        mib(usage.files),
        mib(usage.resident - usage.guest - usage.files)
    );
    println!("rss: beyond guest memory {overhead:.1} MiB (bound {bound})");
    keep(overhead <= bound, "resident memory")
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Resident memory of a process, in KiB.
struct MemoryUse {
    resident: u64,
    guest: u64,
    /// Mapped from files: the program and its libraries.
    files: u64,
}

impl MemoryUse {
    /// Reads `/proc/PID/smaps`. Mappings of shared memory files are the guest's, at most `guest_kib` in all, but for
    /// translated code.
    fn of(pid: u32, guest_kib: u64) -> Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).context("Cannot read smaps")?;
        let (mut resident, mut guest, mut files) = (0, 0, 0);
        let (mut is_guest, mut is_file) = (false, false);
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if first.contains('-') && !first.ends_with(':') {
                is_guest = line.contains("/memfd:") && !line.contains("/memfd:vireo-translations");
                is_file = !line.contains("/memfd:") && line.contains(" /");
            } else if first == "Rss:" {
                let kib: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                resident += kib;
                guest += if is_guest { kib } else { 0 };
                files += if is_file { kib } else { 0 };
            }
        }
        if guest == 0 || guest > guest_kib {
            bail!(
                "Cannot tell the guest's memory from the process's own: {guest} KiB in shared memory files"
            );
        }
        Ok(Self { resident, guest, files })
    }
}

/// Many short lives of a machine whose guest does nothing but end it.
fn startup(engine: &str) -> Result<()> {
    let vireo = workspace::build_vireo()?;
    let image = TinyGuest::DebugExit(STARTUP_VALUE).image(&guests::cache()?)?;
    let mut times: Vec<Duration> =
        (0..11).map(|_| one_start(&vireo, &image, engine)).collect::<Result<_>>()?;
    times.sort();
    let median = times[times.len() / 2];
    println!("startup: process start to the end of a guest whose first act is the debug exit, median of 11");
    println!(
        "startup: --engine {engine}: {:.1} ms (bound {} ms)",
        median.as_secs_f64() * 1e3,
        STARTUP.as_millis()
    );
    keep(median <= STARTUP, "startup")
}

/// One whole life of a machine with the tiny guest: an upper bound for the time to its first instruction.
fn one_start(vireo: &Path, image: &PathBuf, engine: &str) -> Result<Duration> {
    let started = Instant::now();
    let status = Command::new(vireo)
        .args(["run", "--memory", "512M", "--engine", engine, "--serial", "none", "--debug-exit", "--kernel"])
        .arg(image)
        .status()?;
    let taken = started.elapsed();
    if status.code() != Some((STARTUP_VALUE << 1 | 1) as i32) {
        bail!("The tiny guest ended with {status}");
    }
    Ok(taken)
}

/// Fails when a bound was not kept.
fn keep(kept: bool, what: &str) -> Result<()> {
    if !kept {
        bail!("The bound for {what} was not kept");
    }
    Ok(())
}
