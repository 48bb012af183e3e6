//! [`SoftVcpu`]: the processor behind the engine's trait.
#![expect(unsafe_code, reason = "a processor holds raw pointers into memory that it owns or keeps alive")]

use crate::cpu::Cpu;
use engine::{DebugStops, EngineError, ExitCounts, Kick, Occupation, Vcpu, VcpuIo, VmExit};
use std::sync::Arc;
use x86::{CpuState, MpState};

/// A processor of the software engine.
pub struct SoftVcpu {
    cpu: Box<Cpu>,
    kicker: Arc<dyn Kick>,
}

// SAFETY: the raw pointers of a `Cpu` go to its own blocks and TLB, to guest RAM and its trackers, which
// `Cpu::memory` keeps alive and which are made for sharing, and, only during `run`, to the callbacks.
unsafe impl Send for SoftVcpu {}

impl SoftVcpu {
    /// Wraps a processor; `kicker` sets [`crate::system::event::KICK`] and wakes it.
    pub fn new(cpu: Box<Cpu>, kicker: Arc<dyn Kick>) -> Self {
        SoftVcpu { cpu, kicker }
    }

    /// The processor, for tests and debuggers.
    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpu
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, io: &dyn VcpuIo) -> VmExit {
        self.cpu.run(io, None)
    }

    fn run_steps(&mut self, io: &dyn VcpuIo, steps: u64) -> VmExit {
        self.cpu.run(io, Some(steps))
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kicker)
    }

    fn state(&self) -> Result<CpuState, EngineError> {
        Ok(self.cpu.save())
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.cpu.forget_code();
        self.cpu.restore(state)
    }

    fn set_debug_stops(&mut self, stops: &DebugStops) -> Result<(), EngineError> {
        self.cpu.set_debug_stops(stops);
        Ok(())
    }

    fn occupation(&self) -> Occupation {
        match (self.cpu.mp_state, self.cpu.cpl) {
            (MpState::Runnable, 0) => Occupation::Kernel,
            (MpState::Runnable, _) => Occupation::Program,
            _ => Occupation::Waiting,
        }
    }

    fn counts(&self) -> ExitCounts {
        self.cpu.counts()
    }
}

impl Cpu {
    /// Forgets all code. Another engine may have executed the guest meanwhile, and its stores to code are not noted in
    /// the trackers.
    pub(crate) fn forget_code(&mut self) {
        self.code.clear();
        if let Some(translator) = &mut self.translator {
            translator.forget();
        }
    }

    /// Instructions that ran as translated code, as far as they are counted. Those that it calls the interpreter for
    /// are in its blocks as well as in the interpreter's count.
    fn translated_instructions(&self) -> u64 {
        let called = self.translator.as_ref().map_or(0, |translator| translator.call_outs());
        self.shared.counted.insns.saturating_sub(called)
    }

    /// Instructions that were executed, as far as they are counted.
    pub(crate) fn executed(&self) -> u64 {
        self.instructions + self.translated_instructions()
    }

    /// What translated code counted of itself, and how its blocks were reached.
    fn counted(&self) -> Vec<(String, u64)> {
        let Some(translator) = self.translator.as_ref().filter(|_| self.times.detailed) else {
            return Vec::new();
        };
        let counted = self.shared.counted;
        let (entries, gotos) = (translator.counts.entries, translator.counts.gotos);
        let others = entries + gotos + counted.jumps;
        let all = [
            ("translated_run", self.translated_instructions()),
            ("blocks_run", counted.blocks),
            ("blocks_by_link", counted.blocks.saturating_sub(others)),
            ("blocks_by_jump_cache", counted.jumps),
            ("blocks_by_call_out", gotos),
            ("returns_predicted", counted.returns),
            ("translated_accesses", counted.accesses),
        ];
        all.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    }

    /// Counters so far.
    pub fn counts(&self) -> ExitCounts {
        let (mmu, code) = (self.mmu.counts, self.code.counts);
        let translation =
            self.translator.as_ref().map(|translator| translator.counts(&self.memory)).unwrap_or_default();
        let counts = [
            ("tlb_slow_accesses", mmu.slow),
            ("page_walks", mmu.walks),
            ("tlb_flushes", mmu.flushes),
            ("mmio_accesses", mmu.mmio),
            ("pio_accesses", self.pio_accesses),
            ("halts", self.halts),
            ("block_misses", code.misses),
            ("blocks_decoded", code.decoded),
            ("blocks_stale", code.stale),
            ("code_cache_evictions", code.evictions),
        ];
        let counts = counts.into_iter().chain(self.times.all());
        ExitCounts {
            instructions: Some(self.executed()),
            counts: counts
                .map(|(name, count)| (name.to_owned(), count))
                .chain(translation)
                .chain(self.counted())
                .collect(),
        }
    }
}
