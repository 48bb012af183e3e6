//! The life of a machine.

use crate::board::{Board, BoardError, BoardEvents, BoardSettings, Surroundings};
use crate::debug::Debugged;
use crate::excursion::Carrier;
use crate::interrupts::InterruptGate;
use crate::memory_map;
use crate::moves::Moves;
use crate::policy::Causes;
use crate::saved::{MemoryRun, RestoreError, SavedMachine, SavedState};
use crate::vcpu_thread::{ExitHandler, Herd};
use chipset::acpi_pm::PowerEvents;
use chipset::serial::Serial;
use device::{HostEvents, SaveError};
use engine::cpu_model::CpuModel;
use engine::{Engine, EngineError, ExitCounts, Vcpu, Vm, VmExit, VmSettings};
use guest_clock::{Clock, HostEntropy, MachineClock, TimerQueue};
use guest_memory::{GuestMemory, MemoryError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use thiserror::Error;
use virtio::console::Console;
use x86::CpuState;

/// What becomes of a machine without anybody asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote to the debug-exit port.
    DebugExit(u32),
    /// The guest's kernel panicked and said so on the pvpanic port.
    GuestPanic,
    /// The engine should change: call [`Machine::follow_advice`].
    Engine(EngineAdvice),
    /// A processor stopped for the debugger: pause, and ask [`Machine::take_debug_stops`].
    Debug,
    /// A processor shut down after a triple fault.
    TripleFault {
        /// Which.
        vcpu: u32,
    },
    /// A processor cannot go on because of the host or the engine.
    Failed {
        /// Which.
        vcpu: u32,
        /// Why.
        detail: String,
    },
}

/// What the policy of engines advises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineAdvice {
    /// KVM fails so often that the software engine is quicker: leave it.
    Leave,
    /// KVM may do better by now: go back to it.
    Return,
}

/// Why a machine cannot be built or changed.
#[derive(Debug, Error)]
pub enum MachineError {
    /// No memory.
    #[error("Guest memory cannot be set up")]
    Memory(#[from] MemoryError),
    /// The engine refuses.
    #[error("The CPU engine refuses the machine")]
    Engine(#[from] EngineError),
    /// The board cannot be built.
    #[error("The board cannot be built")]
    Board(#[from] BoardError),
    /// A device cannot be saved or restored.
    #[error("A device's state cannot be moved")]
    State(#[from] SaveError),
    /// The kernel cannot be loaded.
    #[error("The guest cannot be loaded")]
    Load(#[from] loader::LoadError),
    /// A saved state does not fit.
    #[error("The saved state cannot be restored")]
    Restore(#[from] RestoreError),
    /// The host gives no thread.
    #[error("A thread cannot be started")]
    Thread(#[from] std::io::Error),
}

/// Everything a machine is built from.
pub struct MachineSettings {
    /// Runs the processors.
    pub engine: Arc<dyn Engine>,
    /// What carries a processor past an instruction that `engine` cannot execute, if anything.
    pub carrier: Option<Carrier>,
    /// Processors.
    pub cpus: u32,
    /// What they look like.
    pub model: CpuModel,
    /// Frequency of the time-stamp counter in kHz; `None` leaves it to the engine the machine starts on.
    pub tsc_khz: Option<u32>,
    /// RAM in bytes, a multiple of the page size.
    pub memory: u64,
    /// The guest's kernel and what goes with it.
    pub boot: loader::BootSource,
    /// Devices.
    pub board: BoardSettings,
}

struct PowerRequests(Mutex<Sender<MachineEvent>>);

impl PowerEvents for PowerRequests {
    fn power_off(&self) {
        let _ = self.0.lock().send(MachineEvent::PowerOff);
    }
    fn reset(&self) {
        let _ = self.0.lock().send(MachineEvent::Reset);
    }
}

/// A virtual machine with its threads.
pub struct Machine {
    memory: Arc<GuestMemory>,
    pub(crate) clock: Arc<MachineClock>,
    pub(crate) timers: Arc<TimerQueue>,
    pub(crate) gate: Arc<InterruptGate>,
    pub(crate) board: Board,
    pub(crate) herd: Arc<Herd>,
    threads: Vec<JoinHandle<()>>,
    boot: loader::BootSource,
    pub(crate) settings: VmSettings,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) carrier: Option<Carrier>,
    finished_counts: ExitCounts,
    pub(crate) engine_switches: u64,
    causes: Arc<Causes>,
    pub(crate) moves: Moves,
    pub(crate) debugged: Debugged,
}

impl Machine {
    /// Builds a machine that stands before its first instruction, and the channel of its events.
    pub fn new(settings: MachineSettings) -> Result<(Self, Receiver<MachineEvent>), MachineError> {
        Self::build(settings, None)
    }

    /// Builds a machine that stands where `saved` was saved, and the channel of its events. The settings are those of
    /// the machine that was saved, but for the engine, which may be another one; the disks have the content they had
    /// then. The kernel is loaded only when the guest resets.
    pub fn restore(
        settings: MachineSettings,
        saved: &SavedMachine,
    ) -> Result<(Self, Receiver<MachineEvent>), MachineError> {
        Self::build(settings, Some(saved))
    }

    fn build(
        settings: MachineSettings,
        saved: Option<&SavedMachine>,
    ) -> Result<(Self, Receiver<MachineEvent>), MachineError> {
        let memory = Arc::new(GuestMemory::new(&memory_map::ram(settings.memory))?);
        let clock = Arc::new(MachineClock::new(0));
        let timers = TimerQueue::new(clock.clone());
        let gate = Arc::new(InterruptGate::default());
        let (sender, events) = channel();
        let board_events = BoardEvents {
            power: Arc::new(PowerRequests(Mutex::new(sender.clone()))),
            debug_exit: {
                let sender = Mutex::new(sender.clone());
                Box::new(move |value| drop(sender.lock().send(MachineEvent::DebugExit(value))))
            },
            panic: {
                let sender = Mutex::new(sender.clone());
                Box::new(move || drop(sender.lock().send(MachineEvent::GuestPanic)))
            },
        };
        let entropy = Arc::new(HostEntropy);
        let around = Surroundings {
            memory: memory.clone(),
            gate: gate.clone(),
            timers: timers.clone(),
            entropy: entropy.clone(),
        };
        let board = Board::new(around, settings.board, board_events)?;
        let mut engines: Vec<&dyn Engine> = vec![settings.engine.as_ref()];
        engines.extend(settings.carrier.as_ref().map(|carrier| carrier.machine.as_ref()));
        let model = crate::moves::common_model(&settings.model, &engines)?;
        let vm_settings = VmSettings {
            memory: memory.clone(),
            cpus: settings.cpus,
            model,
            tsc_khz: settings.tsc_khz,
            lenient_xrstor: settings.carrier.is_some() && settings.engine.worth().shows_host_xcr0,
            clock: clock.clone(),
            entropy,
        };
        let herd = Herd::new(settings.cpus, board.io.clone());
        let moves = Moves::new(&timers, &herd, Mutex::new(sender.clone()));
        let mut machine = Machine {
            memory,
            clock,
            timers,
            gate,
            board,
            herd,
            threads: Vec::new(),
            boot: settings.boot,
            settings: vm_settings,
            engine: settings.engine,
            carrier: settings.carrier,
            finished_counts: ExitCounts::default(),
            engine_switches: 0,
            causes: Arc::default(),
            moves,
            debugged: Debugged::default(),
        };
        match saved {
            Some(saved) => machine.load_saved(saved)?,
            None => {
                machine.install_vcpus(None)?;
                machine.load_guest()?;
            }
        }
        machine.start_threads(sender)?;
        Ok((machine, events))
    }

    fn start_threads(&mut self, sender: Sender<MachineEvent>) -> Result<(), MachineError> {
        self.threads.push(self.timers.spawn()?);
        let sender = Mutex::new(sender);
        let on_exit: Arc<ExitHandler> = Arc::new(move |vcpu, exit| {
            let event = match exit {
                VmExit::Debug(_) => MachineEvent::Debug,
                VmExit::TripleFault => MachineEvent::TripleFault { vcpu },
                VmExit::BetterElsewhere { detail } => {
                    tracing::info!(vcpu, detail, "the engine should change");
                    MachineEvent::Engine(EngineAdvice::Leave)
                }
                VmExit::Failed { detail } | VmExit::EmulationFailure { detail } => {
                    MachineEvent::Failed { vcpu, detail }
                }
                other => MachineEvent::Failed { vcpu, detail: format!("unexpected exit {other:?}") },
            };
            let _ = sender.lock().send(event);
        });
        self.threads.extend(self.herd.spawn(&on_exit)?);
        Ok(())
    }

    /// Creates the processors on the current engine and gives them `states`, or their states after reset.
    pub(crate) fn install_vcpus(&mut self, states: Option<&[CpuState]>) -> Result<(), MachineError> {
        let vm = self.engine.create_vm(self.settings.clone())?;
        let mut vcpus = (0..self.settings.cpus)
            .map(|index| self.create_vcpu(&vm, index))
            .collect::<Result<Vec<_>, _>>()?;
        // From now on it is the machine's, whatever runs it.
        self.settings.tsc_khz = self.settings.tsc_khz.or(Some(vm.tsc_khz()).filter(|khz| *khz != 0));
        for (vcpu, state) in vcpus.iter_mut().zip(states.unwrap_or_default()) {
            vcpu.set_state(state)?;
        }
        if !self.debugged.is_empty() {
            for (index, vcpu) in (0..).zip(&mut vcpus) {
                self.debugged.load(index, vcpu.as_mut())?;
            }
        }
        self.gate.connect(vm);
        self.herd.set_vcpus(vcpus);
        self.patrol();
        Ok(())
    }

    /// The order matters: what comes later reads what came before (deadlines the clock, queues the memory, local APIC
    /// timers the clock).
    fn load_saved(&mut self, saved: &SavedMachine) -> Result<(), MachineError> {
        saved.check(&self.settings)?;
        self.timers.set_paused(true);
        saved.load_memory(&self.memory)?;
        self.clock.set(saved.state.now_ns);
        self.board.pause();
        self.board.restore(&saved.state.devices)?;
        self.gate.forget_waiting();
        self.install_vcpus(Some(&saved.state.processors))
    }

    /// The whole state of a paused machine, but for the content of its disks.
    pub fn save(&self) -> Result<SavedMachine, MachineError> {
        self.gate.settle();
        let state = SavedState {
            version: SavedState::VERSION,
            model: self.settings.model.name.clone(),
            now_ns: self.clock.now_ns(),
            processors: self.save_processors()?,
            devices: self.save_devices()?,
        };
        Ok(SavedMachine { state, memory: MemoryRun::of(&self.memory)? })
    }

    fn create_vcpu(&self, vm: &Arc<dyn Vm>, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let vcpu = vm.create_vcpu(index)?;
        match &self.carrier {
            Some(carrier) => {
                let slow = self.engine.worth().emulates_kernels;
                crate::excursion::wrap(vcpu, &*carrier.steps, &self.settings, index, &self.causes, slow)
            }
            None => Ok(vcpu),
        }
    }

    /// Loads kernel and tables and puts the boot processor at the entry.
    fn load_guest(&mut self) -> Result<(), MachineError> {
        let layout = crate::layout::of_board(self.settings.cpus);
        let entry = loader::load(&self.memory, &self.boot, &layout)?;
        self.herd.for_each(|index, vcpu| {
            let after_reset = CpuState::reset(index == 0);
            let mut state = vcpu.state()?;
            state.mp_state = after_reset.mp_state;
            if index == 0 {
                entry.apply(&mut state);
            }
            vcpu.set_state(&state)
        })?;
        Ok(())
    }

    /// Starts or continues the guest.
    pub fn resume(&self) {
        self.clock.start();
        self.timers.set_paused(false);
        self.board.resume();
        self.herd.run();
    }

    /// Stops the guest: processors, devices, time.
    pub fn pause(&self) {
        self.herd.park();
        self.board.pause();
        self.timers.set_paused(true);
        self.clock.stop();
    }

    /// Back to the state after power-on, standing.
    pub fn reset(&mut self) -> Result<(), MachineError> {
        self.pause();
        self.board.reset()?;
        self.retire_vcpus();
        self.install_vcpus(None)?;
        self.load_guest()
    }

    pub(crate) fn retire_vcpus(&mut self) {
        self.gate.disconnect();
        self.finished_counts = self.counts();
        self.herd.clear();
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.board.power_management.press_power_button();
    }

    /// The virtio console, for its input and size, if there is one.
    pub fn console(&self) -> Option<&Arc<Console>> {
        self.board.console.as_ref()
    }

    /// The first serial port, for its input.
    pub fn serial(&self) -> &Arc<Serial> {
        &self.board.serial
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Counters of all processors. Processors that run now are stopped for it only if `pause` was called.
    pub fn counts(&self) -> ExitCounts {
        let mut counts = self.finished_counts.clone();
        let _ = self.herd.for_each(|_, vcpu| {
            counts.add(&vcpu.counts());
            Ok::<(), EngineError>(())
        });
        let causes = self.causes.counts().into_iter();
        counts.counts.extend(causes.map(|(cause, count)| (format!("excursions: {cause}"), count)));
        counts.counts.extend(self.gate.counts().all().map(|(name, count)| (name.to_owned(), count)));
        counts
    }

    /// States of all devices, of a paused machine.
    pub fn save_devices(&self) -> Result<Vec<device::Record>, MachineError> {
        Ok(self.board.save()?)
    }

    /// States of all processors, of a paused machine.
    pub fn save_processors(&self) -> Result<Vec<CpuState>, MachineError> {
        let mut states = Vec::new();
        self.herd.for_each(|_, vcpu| vcpu.state().map(|state| states.push(state)))?;
        Ok(states)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.herd.end();
        self.timers.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the machine panicked");
            }
        }
        self.board.pause();
        self.gate.disconnect();
    }
}
