//! Processors of a KVM that fails.
//!
//! A KVM that emulates the guest's ring 0 meets instructions that its emulator lacks and gives up. Instead of
//! the machine, only the processor's next instructions move: its state goes to a software CPU over the same
//! RAM, which executes at least the instruction that failed, and then the state goes back.
//!
//! The local APIC stays in KVM, because other processors and devices go on delivering to it meanwhile. The carrier
//! has none: an instruction that reaches for the APIC ends the excursion before it. No interrupt is
//! delivered during an excursion; so it is short.

use engine::{Engine, EngineError, ExitCounts, Kick, Vcpu, VcpuIo, VmExit, VmSettings};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Instructions an excursion executes at most. Loading and storing the state costs some tens of microseconds, as
/// much as a few thousand interpreted instructions; a longer stay only delays interrupts.
pub const STEPS: u64 = 4000;

/// A processor that is carried when its engine fails.
struct CarriedVcpu {
    main: Box<dyn Vcpu>,
    carrier: Box<dyn Vcpu>,
    excursions: AtomicU64,
    last: String,
}

/// Lets a software CPU of `carrier` carry `main` past what its engine cannot execute.
pub fn wrap(
    main: Box<dyn Vcpu>,
    carrier: &dyn Engine,
    settings: &VmSettings,
    index: u32,
) -> Result<Box<dyn Vcpu>, EngineError> {
    let carrier = carrier.create_vm(settings.clone())?.create_vcpu(index)?;
    Ok(Box::new(CarriedVcpu { main, carrier, excursions: AtomicU64::new(0), last: String::new() }))
}

impl CarriedVcpu {
    /// One excursion. `None` means that the engine can go on.
    fn carry(&mut self, io: &dyn VcpuIo, why: String) -> Option<VmExit> {
        self.excursions.fetch_add(1, Ordering::Relaxed);
        let failed = |error: EngineError| VmExit::Failed { detail: format!("{why}; {error}") };
        let before = match self.main.excursion_state() {
            Ok(state) => state,
            Err(error) => return Some(failed(error)),
        };
        if let Err(error) = self.carrier.set_state(&before) {
            return Some(failed(error));
        }
        let exit = self.carrier.run_steps(io, STEPS);
        let after = match self.carrier.state() {
            Ok(state) => state,
            Err(error) => return Some(failed(error)),
        };
        let stuck = before.rip == after.rip && before.gprs == after.gprs && before.rflags == after.rflags;
        if let Err(error) = self.main.set_excursion_state(&after) {
            return Some(failed(error));
        }
        match exit {
            VmExit::StepsDone | VmExit::Halted | VmExit::Kicked => None,
            VmExit::EmulationFailure { detail } if stuck => {
                Some(VmExit::EmulationFailure { detail: format!("{why}; the software CPU says: {detail}") })
            }
            VmExit::EmulationFailure { .. } => None,
            other => Some(other),
        }
    }
}

impl Vcpu for CarriedVcpu {
    fn run(&mut self, io: &dyn VcpuIo) -> VmExit {
        loop {
            match self.main.run(io) {
                VmExit::EmulationFailure { detail } => {
                    self.last.clone_from(&detail);
                    if let Some(exit) = self.carry(io, detail) {
                        return exit;
                    }
                }
                exit => return exit,
            }
        }
    }

    fn run_steps(&mut self, io: &dyn VcpuIo, steps: u64) -> VmExit {
        self.main.run_steps(io, steps)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.main.kicker()
    }

    fn state(&self) -> Result<x86::CpuState, EngineError> {
        self.main.state()
    }

    fn set_state(&mut self, state: &x86::CpuState) -> Result<(), EngineError> {
        self.main.set_state(state)
    }

    fn excursion_state(&self) -> Result<x86::CpuState, EngineError> {
        self.main.excursion_state()
    }

    fn set_excursion_state(&mut self, state: &x86::CpuState) -> Result<(), EngineError> {
        self.main.set_excursion_state(state)
    }

    fn counts(&self) -> ExitCounts {
        let mut counts = self.main.counts();
        let excursions = self.excursions.load(Ordering::Relaxed);
        counts.counts.insert("excursions".to_owned(), excursions);
        let carried = self.carrier.counts().instructions.unwrap_or(0);
        counts.counts.insert("excursion_instructions".to_owned(), carried);
        counts
    }
}
