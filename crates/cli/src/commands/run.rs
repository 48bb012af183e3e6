//! `vireo run`.

use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use vm_config::{ByteSize, DEFAULT_DEBUG_EXIT_PORT, DiskConfig, EngineChoice, SerialConfig, VmConfig};
use vmm::{Outcome, RunOptions, VmmError};

const AFTER_HELP: &str = "\
Examples:
  vireo run --kernel vmlinuz --initrd initrd.img --append console=ttyS0
  vireo run --kernel vmlinuz --append 'console=ttyS0 root=/dev/vda' --disk root.raw --memory 1G --cpus 2
  vireo run machine.toml --memory 4G

Ctrl-] leaves. SIGTERM presses the power button, a second one ends the machine; SIGUSR1 prints counters.

Exit status:
  0   the guest powered itself off
  N   (value << 1) | 1 after a write to the debug-exit port: the odd numbers
  2   an option, the machine file, or a file they name is not usable
  4   the host failed
  6   the CPU engine failed
  8   the guest crashed (triple fault)
  10  ended by Ctrl-], a second SIGTERM or another signal
  12  the guest asked for a reset, with --no-reboot";

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
    /// Memory [default: 512M]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Processors [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// CPU model, see `vireo cpu list` [default: max]
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// auto, kvm or software [default: auto]
    #[arg(long)]
    engine: Option<EngineChoice>,
    /// Disk: `PATH[,format=raw][,readonly=on][,serial=TEXT][,queues=N][,packed=on]`; may be repeated
    #[arg(long = "disk", value_name = "DISK")]
    disks: Vec<DiskConfig>,
    /// Serial port: stdio, pty, unix:PATH, file:PATH or none [default: stdio]
    #[arg(long)]
    serial: Option<SerialConfig>,
    /// Add a debug-exit device [default port: 0xf4]
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, value_parser = parse_port)]
    #[expect(clippy::option_option, reason = "the option without a value means the default port")]
    debug_exit: Option<Option<u16>>,
    /// A reset ends the machine
    #[arg(long)]
    no_reboot: bool,
    /// Print exits, instructions, engine switches and MIPS at the end
    #[arg(long)]
    stats: bool,
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
        set(&mut config.serial, &self.serial);
        config.kernel = self.kernel.clone().or(config.kernel);
        config.initrd = self.initrd.clone().or(config.initrd);
        if !self.disks.is_empty() {
            config.disks.clone_from(&self.disks);
        }
        if let Some(port) = self.debug_exit {
            config.debug_exit = Some(port.unwrap_or(DEFAULT_DEBUG_EXIT_PORT));
        }
        config.no_reboot |= self.no_reboot;
        Ok(config)
    }
}

pub fn run(arguments: &RunArgs) -> Result<u8> {
    let config = arguments.config()?;
    let outcome = vmm::run(&config, RunOptions { stats: arguments.stats })?;
    match &outcome {
        Outcome::TripleFault { vcpu } => {
            eprintln!("vireo: {}: the guest crashed: triple fault of vCPU {vcpu}", config.name);
        }
        Outcome::Failed { detail } => eprintln!("vireo: error: {}: {detail}", config.name),
        Outcome::Reset => eprintln!("vireo: {}: the guest asked for a reset", config.name),
        Outcome::PowerOff | Outcome::DebugExit(_) | Outcome::Ended => {}
    }
    Ok(outcome.exit_code())
}
