//! A processor.
//!
//! # Completion
//! A port or MMIO exit leaves the instruction half done: KVM finishes it at the beginning of the next
//! `KVM_RUN`. The state may be read only when nothing is half done, so `run` returns for a kick only after
//! an entry that finished the access; the `immediate_exit` byte, which the kick has set, makes that entry end
//! before the guest runs on.
//!
//! # The PIC
//! INTR is a level. When it is high, processor 0 asks KVM to exit as soon as the guest can take an interrupt, then
//! acknowledges the PIC and starts the delivery in one step, so that no acknowledged vector is ever outside
//! the readable state.

mod counts;
mod debug;
mod exit;
mod run;

use crate::host::host;
use crate::kick::Kicker;
use crate::state::{self, EXCURSION_MSRS, Extent};
use crate::vm::Shared;
use counts::Counts;
use debug::Debug;
use engine::{DebugStop, DebugStops, EngineError, ExitCounts, Kick, Occupation, Vcpu, VcpuIo, VmExit};
use kvm_ioctls::VcpuFd;
use std::sync::Arc;
use x86::{CpuState, MpState};

/// A processor on KVM.
pub struct KvmVcpu {
    fd: VcpuFd,
    shared: Arc<Shared>,
    kicker: Arc<Kicker>,
    index: u32,
    /// KVM has yet to finish an access that was called back.
    completion_pending: bool,
    /// `ready_for_interrupt_injection` describes the current state.
    readiness_known: bool,
    counts: Counts,
    debug: Debug,
    saved_msrs: Arc<[u32]>,
    excursion_msrs: Arc<[u32]>,
    /// The same, and the TSC, which an excursion may look at but not move.
    excursion_reads: Arc<[u32]>,
}

impl KvmVcpu {
    pub(crate) fn create(shared: &Arc<Shared>, index: u32) -> Result<Self, EngineError> {
        let mut fd = shared.fd.create_vcpu(u64::from(index)).map_err(host("KVM_CREATE_VCPU"))?;
        let tsc_khz = shared.settle_tsc(&fd)?;
        let cpuid = shared.cpuid.for_processor(index, shared.cpus, tsc_khz)?;
        fd.set_cpuid2(&cpuid).map_err(host("KVM_SET_CPUID2"))?;
        let saved = shared.msrs.get_or_init(|| state::find_saved(&fd));
        let kicker = run::kicker(&mut fd);
        let excursion: Vec<u32> =
            EXCURSION_MSRS.iter().copied().filter(|index| saved.contains(index)).collect();
        let reads = excursion.iter().copied().chain([x86::msr::TSC]);
        let mut vcpu = KvmVcpu {
            kicker: Arc::new(kicker),
            shared: Arc::clone(shared),
            index,
            completion_pending: false,
            readiness_known: false,
            counts: Counts::default(),
            debug: Debug::default(),
            saved_msrs: saved.as_slice().into(),
            excursion_reads: reads.collect(),
            excursion_msrs: excursion.into(),
            fd,
        };
        vcpu.set_state(&CpuState::reset(index == 0))?;
        Ok(vcpu)
    }

    pub(crate) fn own_kicker(&self) -> Arc<Kicker> {
        Arc::clone(&self.kicker)
    }

    fn is_halted(&self) -> bool {
        state::read_mp_state(&self.fd).is_ok_and(|state| state != MpState::Runnable)
    }

    fn take_steps(&mut self, io: &dyn VcpuIo, steps: u64) -> VmExit {
        for _ in 0..steps {
            if self.is_halted() && !self.has_interrupt() {
                return VmExit::Halted;
            }
            match self.run_until_exit(io) {
                VmExit::Debug(DebugStop::Step) => {}
                end => return end,
            }
        }
        VmExit::StepsDone
    }

    /// Whether the halted processor would go on by itself, as far as can be seen from outside.
    fn has_interrupt(&self) -> bool {
        self.fd.get_lapic().is_ok_and(|lapic| state::lapic_requests_interrupt(&lapic))
            || self.index == 0 && self.shared.pic_line.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, io: &dyn VcpuIo) -> VmExit {
        let kicker = Arc::clone(&self.kicker);
        let _entered = kicker.enter();
        self.run_until_exit(io)
    }

    fn run_steps(&mut self, io: &dyn VcpuIo, steps: u64) -> VmExit {
        if let Err(error) = self.debug.load(&self.fd, true, false) {
            return VmExit::EmulationFailure { detail: format!("KVM cannot single-step: {error}") };
        }
        let kicker = Arc::clone(&self.kicker);
        let _entered = kicker.enter();
        let end = self.take_steps(io, steps);
        match self.debug.load(&self.fd, false, false) {
            Ok(()) => end,
            Err(error) => VmExit::Failed { detail: format!("Single-stepping cannot be ended: {error}") },
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.own_kicker()
    }

    fn state(&self) -> Result<CpuState, EngineError> {
        state::read(&self.fd, &self.saved_msrs, Extent::Whole)
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.readiness_known = false;
        state::write(&self.fd, state, self.index, &self.saved_msrs, Extent::Whole)
    }

    fn excursion_state(&self) -> Result<CpuState, EngineError> {
        state::read(&self.fd, &self.excursion_reads, Extent::Excursion)
    }

    fn set_excursion_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.readiness_known = false;
        state::write(&self.fd, state, self.index, &self.excursion_msrs, Extent::Excursion)?;
        self.shared.forget_translations()
    }

    fn set_debug_stops(&mut self, stops: &DebugStops) -> Result<(), EngineError> {
        let debug = Debug::new(stops)?;
        let hold_interrupts = stops.hold_interrupts && !self.is_halted();
        if debug != self.debug || stops.single_step {
            debug.load(&self.fd, false, hold_interrupts)?;
        }
        self.debug = debug;
        Ok(())
    }

    fn occupation(&self) -> Occupation {
        match self.fd.get_sregs() {
            _ if self.is_halted() => Occupation::Waiting,
            // The stack segment's level is the current one (SDM 3A 5.5).
            Ok(sregs) if sregs.ss.dpl != 0 => Occupation::Program,
            _ => Occupation::Kernel,
        }
    }

    fn counts(&self) -> ExitCounts {
        self.counts.report()
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kicker.detach();
    }
}
