//! Which engine runs a machine, and why.

use engine::{Engine, EngineError, EngineKind};
use engine_kvm::KvmEngine;
use engine_kvm::probe::{KvmReport, Usable, probe};
use engine_soft::SoftEngine;
use serde::Serialize;
use std::sync::Arc;
use vm_config::EngineChoice;

/// What a machine is run with.
pub struct Chosen {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// What carries a processor past what KVM cannot execute.
    pub carrier: Option<Arc<dyn Engine>>,
    /// Why this one.
    pub reason: String,
}

/// What was found on this host.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The engine that `auto` takes.
    pub chosen: EngineKind,
    /// Why.
    pub reason: String,
    /// All about KVM.
    pub kvm: KvmReport,
}

/// Tries KVM and decides what `auto` means here.
pub fn examine() -> Report {
    let kvm = probe();
    let why = &kvm.verdict.reason;
    let (chosen, reason) = match kvm.verdict.usable {
        Usable::Full => (EngineKind::Kvm, format!("KVM is good: {why}")),
        Usable::EmulatedRing0 => (EngineKind::Software, format!("KVM emulates the guest's kernel: {why}")),
        Usable::Unusable => (EngineKind::Software, format!("KVM is not usable: {why}")),
    };
    Report { chosen, reason, kvm }
}

/// Makes the engine that is asked for.
pub fn choose(choice: EngineChoice) -> Result<Chosen, EngineError> {
    let (kind, reason) = match choice {
        EngineChoice::Kvm => (EngineKind::Kvm, "asked for".to_owned()),
        EngineChoice::Software => (EngineKind::Software, "asked for".to_owned()),
        EngineChoice::Auto => {
            let report = examine();
            (report.chosen, report.reason)
        }
    };
    Ok(match kind {
        EngineKind::Software => Chosen { engine: Arc::new(SoftEngine::new()), carrier: None, reason },
        EngineKind::Kvm => Chosen {
            engine: Arc::new(KvmEngine::open()?),
            carrier: Some(Arc::new(SoftEngine::carrier())),
            reason,
        },
    })
}
