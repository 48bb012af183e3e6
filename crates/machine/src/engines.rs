//! Which engine runs a machine.
//!
//! `auto` takes KVM only where probing shows it to be good: hardware speed in ring 0 and every instruction that
//! a guest's kernel needs. A KVM that was asked for by name gets the software CPU as its carrier, so
//! that what its emulator lacks does not end the machine.

use engine::{Engine, EngineError, EngineKind};
use engine_kvm::KvmEngine;
use engine_kvm::probe::{self, Usable};
use engine_soft::SoftEngine;
use std::sync::Arc;

/// What a person asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineRequest {
    /// The best one here.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// The software CPU.
    Software,
}

/// What a machine gets.
pub struct EngineSelection {
    /// Runs the processors.
    pub engine: Arc<dyn Engine>,
    /// Carries them past what `engine` cannot execute.
    pub carrier: Option<Arc<dyn Engine>>,
    /// Why this engine, in words.
    pub reason: String,
}

/// Selects an engine.
pub fn select(request: EngineRequest) -> Result<EngineSelection, EngineError> {
    match request {
        EngineRequest::Software => Ok(software("asked for")),
        EngineRequest::Kvm => kvm("asked for"),
        EngineRequest::Auto => {
            let report = probe::probe();
            match report.verdict.usable {
                Usable::Full => kvm(&report.verdict.reason),
                Usable::EmulatedRing0 | Usable::Unusable => Ok(software(&report.verdict.reason)),
            }
        }
    }
}

/// What `auto` would take, without creating anything.
pub fn preferred(report: &probe::KvmReport) -> EngineKind {
    match report.verdict.usable {
        Usable::Full => EngineKind::Kvm,
        Usable::EmulatedRing0 | Usable::Unusable => EngineKind::Software,
    }
}

fn software(reason: &str) -> EngineSelection {
    EngineSelection { engine: Arc::new(SoftEngine::new()), carrier: None, reason: reason.to_owned() }
}

fn kvm(reason: &str) -> Result<EngineSelection, EngineError> {
    let engine: Arc<dyn Engine> = Arc::new(KvmEngine::open()?);
    Ok(EngineSelection { engine, carrier: Some(Arc::new(SoftEngine::carrier())), reason: reason.to_owned() })
}
