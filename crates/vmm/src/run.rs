//! From a configuration to an outcome.

use crate::console::{Console, OutputQueue};
use crate::control::protocol::{Command, EngineName, Event, Reply};
use crate::control::server::Server;
use crate::disks::RunningDisks;
use crate::driver::{DriveOptions, Guest, Request, drive};
use crate::gdb::commands::{DebugCommand, DebugReply};
use crate::gdb::{GdbOptions, GdbServer};
use crate::signals::{Signals, stop_process};
use crate::socket::Listener;
use crate::stats::{State, Stats, Status};
use crate::{Outcome, VmmError, disks, fatal, terminal};
use engine::DebugStop;
use engine::cpu_model::CpuModel;
use machine::engines::{Chosen, choose};
use machine::{
    BoardSettings, BootSource, EngineAdvice, EntryProtocol, Machine, MachineError, MachineSettings,
    SerialBackend,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use vm_config::{EngineChoice, EntryChoice, VmConfig};

/// What is not about the machine but about this run of it.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Print the counters at the end.
    pub stats: bool,
    /// Listen for requests at this path.
    pub control: Option<PathBuf>,
    /// Listen for a debugger.
    pub gdb: Option<GdbOptions>,
}

/// Runs a machine in this process until it ends.
///
/// # Errors
/// When it cannot be built as asked; every file is as it was then.
pub fn run(config: &VmConfig, options: &RunOptions) -> Result<Outcome, VmmError> {
    config.validate()?;
    let model = CpuModel::named(&config.cpu)?;
    fatal::install()?;
    let signals = Signals::block()?;
    let (sender, requests) = channel();
    let (disks, running_disks) = disks::open(config, &sender)?;
    let Chosen { engine, carrier, reason, store } = choose(config)?;
    tracing::info!(engine = %engine.kind(), reason, "engine chosen");
    let queue = Arc::new(OutputQueue::default());
    let console_queue = config.console.as_ref().map(|_| Arc::new(OutputQueue::default()));
    let settings = MachineSettings {
        engine,
        carrier,
        tsc_khz: None,
        cpus: config.cpus,
        model,
        memory: config.memory.0,
        boot: BootSource {
            kernel: config.kernel.clone().unwrap_or_default(),
            initrd: config.initrd.clone(),
            append: config.append.clone(),
            protocol: entry(config.entry),
        },
        board: BoardSettings {
            serial: queue.clone(),
            console: console_queue.clone().map(|queue| -> Arc<dyn SerialBackend> { queue }),
            disks,
            debug_exit: config.debug_exit,
        },
    };
    let (machine, events) = Machine::new(settings)?;
    // Sockets and files come last: whatever else is wrong leaves nothing behind.
    let listener = options.control.as_deref().map(Listener::bind).transpose()?;
    let gdb = options.gdb.as_ref().map(|gdb| GdbServer::bind(&gdb.address)).transpose()?;
    let serial = Console::open(&config.serial, queue, machine.serial().clone(), sender.clone())?;
    let mut consoles = vec![serial];
    if let (Some(config), Some(queue), Some(device)) = (&config.console, console_queue, machine.console()) {
        consoles.push(Console::open(config, queue, device.clone(), sender.clone())?);
    }
    let thread = |source| VmmError::Host { what: "a thread", source };
    let server =
        listener.map(|listener| Server::start(listener, sender.clone())).transpose().map_err(thread)?;
    gdb.as_ref().map_or(Ok(()), |gdb| gdb.start(sender.clone())).map_err(thread)?;
    signals.forward(sender.clone()).map_err(thread)?;
    let forward_events = move || {
        for event in events {
            if sender.send(Request::Guest(event)).is_err() {
                return;
            }
        }
    };
    crate::thread::spawn("events", forward_events).map_err(thread)?;
    let mut guest = RunningGuest {
        machine,
        consoles,
        server,
        config,
        reason,
        disks: running_disks,
        since: None,
        ran: Duration::ZERO,
    };
    let drive_options = DriveOptions {
        no_reboot: config.no_reboot,
        wait_for_debugger: options.gdb.as_ref().is_some_and(|gdb| gdb.wait),
    };
    let outcome = drive(&mut guest, &requests, drive_options);
    let stats = options.stats.then(|| guest.stats());
    // The guest's last words before ours, and the terminal as it was.
    let mut disks = std::mem::take(&mut guest.disks);
    drop(guest);
    stats.iter().for_each(print);
    if let Some(Err(error)) = store.map(|store| store.save()) {
        tracing::error!("{error}; translations of this run are not kept");
    }
    // What the guest wrote and did not flush is not lost with its end.
    disks.finish().map_err(|source| VmmError::Host { what: "the last write to a disk", source })?;
    Ok(outcome)
}

fn entry(choice: EntryChoice) -> EntryProtocol {
    match choice {
        EntryChoice::Auto => EntryProtocol::Auto,
        EntryChoice::Linux64 => EntryProtocol::Linux64,
        EntryChoice::Linux32 => EntryProtocol::Linux32,
        EntryChoice::Pvh => EntryProtocol::Pvh,
        EntryChoice::Multiboot => EntryProtocol::Multiboot,
    }
}

fn print(stats: &Stats) {
    let text: String = stats.to_string().lines().map(|line| format!("vireo: {line}\n")).collect();
    eprint!("{text}");
}

struct RunningGuest<'a> {
    machine: Machine,
    consoles: Vec<Console>,
    server: Option<Server>,
    config: &'a VmConfig,
    /// Why this engine was chosen.
    reason: String,
    disks: RunningDisks,
    since: Option<Instant>,
    ran: Duration,
}

impl Guest for RunningGuest<'_> {
    fn resume(&mut self) {
        self.since = Some(Instant::now());
        self.machine.resume();
    }

    fn pause(&mut self) {
        // Requests that wait for their limits would hold up the pause.
        self.disks.drain(true);
        self.machine.pause();
        self.disks.drain(false);
        self.ran += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    fn reset(&mut self) -> Result<(), String> {
        self.machine.reset().map_err(|error| in_words(&error))
    }

    fn change_engine(&mut self, advice: EngineAdvice) -> Result<Option<EngineName>, String> {
        let changed = self.machine.follow_advice(advice).map_err(|error| in_words(&error))?;
        Ok(changed.then(|| self.machine.engine().into()))
    }

    fn press_power_button(&mut self) {
        self.machine.press_power_button();
    }

    fn stats(&mut self) -> Stats {
        let machine = &self.machine;
        let switches = machine.engine_switches();
        let lost = self.consoles.iter().map(Console::lost).sum();
        Stats::new(machine.engine().into(), switches, machine.counts(), self.ran, lost)
    }

    fn print_stats(&mut self) {
        print(&self.stats());
    }

    fn status(&self, running: bool) -> Status {
        Status {
            name: self.config.name.clone(),
            state: if running { State::Running } else { State::Paused },
            engine: Some(self.machine.engine().into()),
            engine_reason: self.reason.clone(),
            cpus: self.config.cpus,
            memory: self.config.memory.0,
            pid: std::process::id(),
            paused_by: None,
        }
    }

    fn switch_engine(&mut self, engine: EngineName) -> Result<bool, String> {
        if engine == self.machine.engine().into() {
            return Ok(false);
        }
        let choice = match engine {
            EngineName::Software => EngineChoice::Software,
            EngineName::Kvm => EngineChoice::Kvm,
        };
        let wanted = VmConfig { engine: choice, ..self.config.clone() };
        let chosen = choose(&wanted).map_err(|error| in_words(&error))?;
        let switched = self.machine.switch_engine(chosen.engine, chosen.carrier);
        switched.map(|()| true).map_err(|error: MachineError| in_words(&error))
    }

    fn disk_command(&mut self, command: Command) -> Reply {
        self.disks.obey(command)
    }

    fn debug(&mut self, command: DebugCommand) -> DebugReply {
        crate::gdb::commands::obey(&mut self.machine, command)
            .unwrap_or_else(|error| DebugReply::Refused(in_words(&error)))
    }

    fn take_debug_stops(&mut self) -> Vec<(u32, DebugStop)> {
        self.machine.take_debug_stops()
    }

    fn stop_process(&mut self) {
        terminal::restore();
        stop_process();
        terminal::enter_again();
    }

    fn continued(&mut self) {
        self.consoles.iter().for_each(Console::continued);
    }

    fn resized(&mut self) {
        self.consoles.iter().for_each(Console::resized);
    }

    fn announce(&mut self, event: Event) {
        if let Some(server) = &self.server {
            server.announce(&event);
        }
    }
}

/// An error with its causes.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
