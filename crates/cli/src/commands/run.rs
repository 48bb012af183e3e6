//! `vireo run`.

use anyhow::Result;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use vm_config::{
    ByteSize, DEFAULT_DEBUG_EXIT_PORT, DiskConfig, EngineChoice, EntryChoice, SerialConfig, SoftwareTier,
    TraceConfig, VmConfig,
};
use vmm::gdb::GdbOptions;
use vmm::{Outcome, RunOptions, VmmError};

const AFTER_HELP: &str = "\
Examples:
  vireo run --kernel vmlinuz --initrd initrd.img --append console=ttyS0
  vireo run --kernel vmlinuz --initrd initrd.img --append console=hvc0 --serial none --console stdio
  vireo run --kernel vmlinuz --append 'console=ttyS0 root=/dev/vda' --disk root.raw --memory 1G --cpus 2
  vireo run machine.toml --memory 4G
  vireo run machine.toml --serial unix:/tmp/web.tty --control /tmp/web.ctl

A machine file has the options' names as keys; paths in it start at its folder:
  kernel = \"vmlinuz\"
  memory = \"2G\"
  [[disks]]
  path = \"root.raw\"

Leaving:
  On a terminal, Ctrl-] ends the machine at once; every other key goes to the guest. SIGTERM presses the
  power button, a second one ends the machine; SIGINT, SIGHUP and SIGQUIT end it. SIGUSR1 prints the
  counters; SIGTSTP stops guest and process until SIGCONT. The terminal is restored at every end but SIGKILL.

Exit status:
  0     the guest powered itself off
  odd   (value << 1) | 1 after the guest wrote a value to the debug-exit port
  2     an option, the machine file, or a file they name is not usable
  4     the host failed: memory, threads, terminals
  6     the CPU engine is not usable or failed
  8     the guest crashed: a triple fault
  10    somebody ended the machine: Ctrl-], the second SIGTERM, another signal, `vireo ctl PATH stop`
  12    the guest asked for a reset, with --no-reboot
  14    the guest's kernel panicked, and said so through its pvpanic driver";

/// Options override the machine file.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct RunArgs {
    /// Machine file, TOML or JSON
    #[arg(value_name = "FILE", conflicts_with = "config")]
    machine: Option<PathBuf>,
    /// Machine file, TOML or JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the machine
    #[arg(long)]
    name: Option<String>,
    /// Kernel: bzImage, ELF with a PVH note, or multiboot image
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// How the kernel is entered: auto, linux64, linux32, pvh or multiboot [default: auto]
    #[arg(long)]
    entry: Option<EntryChoice>,
    /// Memory [default: 512M]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    memory: Option<ByteSize>,
    /// Number of processors [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cpus: Option<u32>,
    /// CPU model, see `vireo cpu list` [default: max]
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// auto, kvm or software; `vireo doctor` says what auto takes [default: auto]
    #[arg(long)]
    engine: Option<EngineChoice>,
    /// How the software CPU runs code: auto, interpreter or translate [default: auto]
    #[arg(long, value_name = "TIER")]
    software_tier: Option<SoftwareTier>,
    /// Memory for translated code, for each processor, 1M to 1G [default: 12M]
    #[arg(long, value_name = "SIZE")]
    translation_cache_size: Option<ByteSize>,
    /// Compare every N-th translated block with the interpreter, for finding errors of the translator
    #[arg(long, value_name = "N")]
    verify: Option<u32>,
    /// Write names of translated code for Linux perf to /tmp/perf-PID.map
    #[arg(long)]
    perf_map: bool,
    /// Keep translations in this directory from run to run; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    translation_store: Option<PathBuf>,
    /// Disk: `PATH[,format=raw|qcow2|luks|vdi|vmdk|vpc|vhdx|dmg|pool][,key-file=FILE][,backing=DIR][,cache=writeback|writethrough|none|directsync|unsafe][,aio=auto|threads|io_uring][,discard=on|off]
    /// [,readonly=on][,serial=TEXT][,queues=N][,packed=on][,iops|iops-rd|iops-wr=N[/BURST]]
    /// [,rerror=report|ignore|stop|enospc][,werror=…][,commit=on][,inject=RULE][,bps|bps-rd|bps-wr=SIZE[/BURST]][,burst=SECONDS][,group=NAME]`; may be repeated. PATH may be lvm:GROUP/VOLUME, an NBD URI, `iscsi://[USER[%SECRET]@]HOST[:PORT]/TARGET/LUN`, or http://… or https://… for reading only; an .iso and a dmg are read-only. Limits are a second's average and
    /// the rate of a burst, which lasts `burst` seconds; the disks of a group share them
    #[arg(long = "disk", value_name = "DISK")]
    disks: Vec<DiskConfig>,
    /// Serial port: stdio, pty, unix:PATH, file:PATH (appends) or none [default: stdio]
    #[arg(long)]
    serial: Option<SerialConfig>,
    /// Add a virtio console (hvc0): stdio, pty, unix:PATH, file:PATH or none
    #[arg(long)]
    console: Option<SerialConfig>,
    /// Add a debug-exit device [default port: 0xf4]
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, value_parser = parse_port)]
    #[expect(clippy::option_option, reason = "the option without a value means the default port")]
    debug_exit: Option<Option<u16>>,
    /// A reset ends the machine
    #[arg(long)]
    no_reboot: bool,
    /// Write what the software CPU executes into a new file: `FILE[,from=0xADDRESS|COUNT][,count=N]`
    #[arg(long, value_name = "FILE,…")]
    trace: Option<TraceConfig>,
    /// Print exits, instructions, engine switches and MIPS at the end; with =detail, also count what translated code
    /// executes, which makes it slower
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "plain")]
    stats: Option<StatsWish>,
    /// Listen for `vireo ctl` at this Unix socket
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Listen for gdb: unix:PATH or tcp:HOST:PORT; `,wait` holds the guest before its first instruction
    #[arg(long, value_name = "SOCKET")]
    gdb: Option<GdbOptions>,
}

/// How much `--stats` is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StatsWish {
    /// What costs nothing
    Plain,
    /// Executed instructions, how blocks were reached, TLB hits, time by tier
    Detail,
}

fn parse_port(text: &str) -> Result<u16, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a port number like 0xf4 is needed".to_owned())
}

impl RunArgs {
    fn config(&self) -> Result<VmConfig, VmmError> {
        let file = self.machine.as_ref().or(self.config.as_ref());
        let mut config = file.map_or(Ok(VmConfig::default()), |path| VmConfig::from_file(path))?;
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                to.clone_from(value);
            }
        }
        set(&mut config.name, &self.name);
        set(&mut config.append, &self.append);
        set(&mut config.memory, &self.memory);
        set(&mut config.cpus, &self.cpus);
        set(&mut config.cpu, &self.cpu);
        set(&mut config.engine, &self.engine);
        set(&mut config.software_tier, &self.software_tier);
        set(&mut config.translation_cache_size, &self.translation_cache_size);
        set(&mut config.verify, &self.verify);
        set(&mut config.entry, &self.entry);
        set(&mut config.serial, &self.serial);
        config.console = self.console.clone().or(config.console);
        config.kernel = self.kernel.clone().or(config.kernel);
        config.initrd = self.initrd.clone().or(config.initrd);
        if !self.disks.is_empty() {
            config.disks.clone_from(&self.disks);
        }
        if let Some(port) = self.debug_exit {
            config.debug_exit = Some(port.unwrap_or(DEFAULT_DEBUG_EXIT_PORT));
        }
        config.trace = self.trace.clone().or(config.trace);
        config.perf_map |= self.perf_map;
        config.translation_store = self.translation_store.clone().or(config.translation_store);
        config.count_executed |= self.stats == Some(StatsWish::Detail);
        config.no_reboot |= self.no_reboot;
        Ok(config)
    }
}

pub fn run(arguments: &RunArgs) -> Result<u8> {
    let config = arguments.config()?;
    let options = RunOptions {
        stats: arguments.stats.is_some(),
        control: arguments.control.clone(),
        gdb: arguments.gdb.clone(),
    };
    let outcome = vmm::run(&config, &options)?;
    match &outcome {
        Outcome::GuestPanic | Outcome::TripleFault { .. } | Outcome::Reset => {
            eprintln!("vireo: {}: {outcome}", config.name);
        }
        Outcome::Failed { .. } => eprintln!("vireo: error: {}: {outcome}", config.name),
        Outcome::PowerOff | Outcome::DebugExit(_) | Outcome::Ended => {}
    }
    Ok(outcome.exit_code())
}
