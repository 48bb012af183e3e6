//! From a configuration to an outcome.

use crate::console::Console;
use crate::driver::{Guest, Request, drive};
use crate::signals::Signals;
use crate::{Outcome, VmmError, stats};
use block::{BlockBackend, RawFile};
use engine::cpu_model::CpuModel;
use machine::BootSource;
use machine::{BoardSettings, Disk, Machine, MachineSettings};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use vm_config::VmConfig;

/// What is not about the machine but about this run of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Print the counters at the end.
    pub stats: bool,
}

/// Runs a machine in this process until it ends.
pub fn run(config: &VmConfig, options: RunOptions) -> Result<Outcome, VmmError> {
    config.validate()?;
    let model = CpuModel::named(&config.cpu)?;
    let signals = Signals::block()?;
    let disks = open_disks(config)?;
    let chosen = machine::engines::choose(config.engine)?;
    tracing::info!(engine = %chosen.engine.kind(), reason = chosen.reason, "engine chosen");
    let mut console = Console::open(&config.serial)?;
    let settings = MachineSettings {
        engine: chosen.engine,
        carrier: chosen.carrier,
        cpus: config.cpus,
        model,
        memory: config.memory.0,
        boot: BootSource {
            kernel: config.kernel.clone().unwrap_or_default(),
            initrd: config.initrd.clone(),
            append: config.append.clone(),
            ..BootSource::default()
        },
        board: BoardSettings {
            serial: console.backend(),
            console: None,
            disks,
            debug_exit: config.debug_exit,
        },
    };
    let (machine, events) = Machine::new(settings)?;
    let (sender, requests) = channel();
    let thread = |source| VmmError::Host { what: "a thread", source };
    signals.forward(sender.clone()).map_err(thread)?;
    console.start(machine.serial().clone(), sender.clone())?;
    let forward_events = move || {
        for event in events {
            if sender.send(Request::Guest(event)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("events".to_owned()).spawn(forward_events).map_err(thread)?;
    let mut guest = RunningGuest { machine, since: None, ran: Duration::ZERO };
    let outcome = drive(&mut guest, &requests, config.no_reboot);
    drop(console);
    if options.stats {
        guest.print_stats();
    }
    Ok(outcome)
}

fn open_disks(config: &VmConfig) -> Result<Vec<Disk>, VmmError> {
    let open = |(index, disk): (usize, &vm_config::DiskConfig)| {
        let backend: Arc<dyn BlockBackend> = Arc::new(RawFile::open(&disk.path, disk.readonly)?);
        let serial = if disk.serial.is_empty() { format!("disk{index}") } else { disk.serial.clone() };
        let queues = disk.queues.unwrap_or_else(|| automatic_queues(config.cpus));
        Ok(Disk { backend, serial, queues, packed: disk.packed })
    };
    config.disks.iter().enumerate().map(open).collect()
}

/// A queue a processor spares the guest's processors to wait for each other; each costs a thread.
fn automatic_queues(cpus: u32) -> u16 {
    cpus.clamp(1, 4) as u16
}

struct RunningGuest {
    machine: Machine,
    since: Option<Instant>,
    ran: Duration,
}

impl Guest for RunningGuest {
    fn resume(&mut self) {
        self.since = Some(Instant::now());
        self.machine.resume();
    }

    fn pause(&mut self) {
        self.machine.pause();
        self.ran += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    fn reset(&mut self) -> Result<(), String> {
        self.machine.reset().map_err(|error| {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                text += &format!(": {error}");
                source = error.source();
            }
            text
        })
    }

    fn press_power_button(&mut self) {
        self.machine.press_power_button();
    }

    fn print_stats(&mut self) {
        let counts = self.machine.counts();
        stats::print(self.machine.engine(), self.machine.engine_switches(), &counts, self.ran);
    }
}
