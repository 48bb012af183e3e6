//! Exits, errors and counters.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Linux KVM.
    Kvm,
    /// Vireo's own x86-64 CPU.
    Software,
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            EngineKind::Kvm => "kvm",
            EngineKind::Software => "software",
        })
    }
}

/// Why [`crate::Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// [`crate::Kick::kick`] was called.
    Kicked,
    /// The processor halted with interrupts off, or waits for INIT/SIPI: only a kick or an event wakes it.
    /// Engines block inside `run` while a processor halts; this is returned only by a step-limited run.
    Halted,
    /// A step-limited run ended.
    StepsDone,
    /// Triple fault (shutdown, SDM 3A 6.15).
    TripleFault,
    /// The debugger's [`DebugStops`](crate::DebugStops) stopped it.
    Debug(crate::DebugStop),
    /// The engine cannot execute the instruction at the current state; the state is that before it.
    EmulationFailure {
        /// The engine's words, for the summary.
        detail: String,
    },
    /// The processor could go on, but the machine would do better on another engine.
    BetterElsewhere {
        /// Why.
        detail: String,
    },
    /// The host failed; the vCPU cannot go on.
    Failed {
        /// What failed.
        detail: String,
    },
}

/// What an engine cannot do or was refused.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The engine is not usable on this host.
    #[error("Engine {engine} is not usable here: {reason}")]
    Unavailable {
        /// Which engine.
        engine: EngineKind,
        /// Why, and what would help.
        reason: String,
    },
    /// The CPU model needs features that this engine and host do not have.
    #[error("CPU model {model} needs {missing}, which engine {engine} cannot provide on this host")]
    ModelNotSupported {
        /// The model's name.
        model: String,
        /// Features, comma-separated.
        missing: String,
        /// Which engine.
        engine: EngineKind,
    },
    /// No such CPU model.
    #[error("There is no CPU model {model:?}; known models: {known}")]
    UnknownModel {
        /// As asked.
        model: String,
        /// Names, comma-separated.
        known: String,
    },
    /// A host call failed.
    #[error("{operation} failed")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The debugger wants more than the engine has.
    #[error("Engine {engine} cannot stop processors as the debugger asks: {reason}")]
    Debugger {
        /// Which engine.
        engine: EngineKind,
        /// What is too much, and what would help.
        reason: String,
    },
    /// A state that no processor can be in.
    #[error("The processor state cannot be loaded: {reason}")]
    InvalidState {
        /// Which part, and why.
        reason: String,
    },
}

/// Counters for `--stats`, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCounts {
    /// Guest instructions executed, where the engine counts them.
    pub instructions: Option<u64>,
    /// Everything else: exits by kind, callbacks, TLB misses, blocks.
    pub counts: BTreeMap<String, u64>,
}

impl ExitCounts {
    /// Adds another processor's counters.
    pub fn add(&mut self, other: &ExitCounts) {
        if let Some(more) = other.instructions {
            *self.instructions.get_or_insert(0) += more;
        }
        for (name, count) in &other.counts {
            *self.counts.entry(name.clone()).or_default() += count;
        }
    }
}
