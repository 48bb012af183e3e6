//! Processors of a KVM that fails.
//!
//! A KVM that emulates the guest's ring 0 meets instructions that its emulator lacks and gives up. Instead of
//! the machine, only the processor's next instructions move: its state goes to a software CPU over the same
//! RAM, which executes at least the instruction that failed, and then the state goes back.
//!
//! The local APIC stays in KVM, because other processors and devices go on delivering to it meanwhile. The carrier
//! has none: an instruction that reaches for the APIC ends the excursion before it. No interrupt is
//! delivered during an excursion; so it is short. Where excursions are the rule rather than the exception, the
//! whole machine moves: `policy` decides that, and [`crate::Machine::follow_policy`] does it.

use crate::policy::{Causes, Record};
use engine::{
    DebugStops, Engine, EngineError, ExitCounts, Kick, Occupation, Vcpu, VcpuIo, VmExit, VmSettings,
};
use std::sync::Arc;
use std::time::Instant;

/// Instructions an excursion executes at most. Loading and storing the state costs some hundred microseconds, as
/// much as a few thousand interpreted instructions; a longer stay only delays interrupts.
const STEPS: u64 = 4000;

/// What carries a machine whose KVM fails.
#[derive(Clone)]
pub struct Carrier {
    /// Carries one processor over a few instructions; without local APICs.
    pub steps: Arc<dyn Engine>,
    /// Takes over all processors when KVM is not worth its failures.
    pub machine: Arc<dyn Engine>,
}

/// A processor that is carried when its engine fails.
struct CarriedVcpu {
    main: Box<dyn Vcpu>,
    carrier: Box<dyn Vcpu>,
    excursions: u64,
    record: Record,
    causes: Arc<Causes>,
    /// It is looked at at every kick whether it is in the kernel.
    kernels_are_slow: bool,
}

/// Lets a software CPU of `carrier` carry `main` past what its engine cannot execute.
pub(crate) fn wrap(
    main: Box<dyn Vcpu>,
    carrier: &dyn Engine,
    settings: &VmSettings,
    index: u32,
    causes: &Arc<Causes>,
    kernels_are_slow: bool,
) -> Result<Box<dyn Vcpu>, EngineError> {
    let carrier = carrier.create_vm(settings.clone())?.create_vcpu(index)?;
    let (causes, record) = (Arc::clone(causes), Record::default());
    Ok(Box::new(CarriedVcpu { main, carrier, excursions: 0, record, causes, kernels_are_slow }))
}

impl CarriedVcpu {
    /// Notes where the processor is now; whether it has been in the kernel most of the time. One that waits tells
    /// nothing.
    fn main_is_busy_in_kernel(&mut self) -> bool {
        match self.main.occupation() {
            Occupation::Waiting => false,
            occupation => self.record.look(occupation == Occupation::Kernel),
        }
    }

    /// One excursion. `None` means that the engine can go on.
    fn carry(&mut self, io: &dyn VcpuIo, why: String) -> Option<VmExit> {
        self.excursions += 1;
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

/// What failed, without where: KVM's words, and of the instruction's bytes the first few, which tell its kind.
fn cause_of(detail: &str) -> String {
    const BYTES: usize = 4;
    let cause = detail.split_once(", at ").map_or(detail, |(cause, _)| cause);
    let is_byte = |word: &str| word.len() == 2 && u8::from_str_radix(word, 16).is_ok();
    let words = cause.split(' ').take_while(|word| !is_byte(word));
    let bytes = cause.split(' ').filter(|word| is_byte(word)).take(BYTES);
    words.chain(bytes).collect::<Vec<_>>().join(" ")
}

impl Vcpu for CarriedVcpu {
    fn run(&mut self, io: &dyn VcpuIo) -> VmExit {
        loop {
            let entered = Instant::now();
            match self.main.run(io) {
                VmExit::EmulationFailure { detail } => {
                    let failed = Instant::now();
                    self.causes.note(&cause_of(&detail));
                    if let Some(exit) = self.carry(io, detail.clone()) {
                        return exit;
                    }
                    if self.record.note(failed - entered, failed.elapsed()) {
                        return VmExit::BetterElsewhere { detail };
                    }
                }
                VmExit::Kicked if self.kernels_are_slow && self.main_is_busy_in_kernel() => {
                    let detail = "this KVM emulates the guest's kernel".to_owned();
                    return VmExit::BetterElsewhere { detail };
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

    fn set_debug_stops(&mut self, stops: &DebugStops) -> Result<(), EngineError> {
        self.carrier.set_debug_stops(stops)?;
        self.main.set_debug_stops(stops)
    }

    fn occupation(&self) -> Occupation {
        self.main.occupation()
    }

    fn counts(&self) -> ExitCounts {
        let mut counts = self.main.counts();
        counts.counts.insert("excursions".to_owned(), self.excursions);
        let carried = self.carrier.counts().instructions.unwrap_or(0);
        counts.counts.insert("excursion_instructions".to_owned(), carried);
        counts
    }
}
