//! Which engine runs a machine, and why.

use crate::excursion::Carrier;
use engine::{Engine, EngineError, EngineKind};
use engine_kvm::KvmEngine;
use engine_kvm::probe::{KvmReport, Usable, probe, probe_briefly};
use engine_soft::SoftEngine;
use engine_soft::trace::{Trace, TraceStart};
use engine_soft::translate::TranslationSettings;
use engine_soft::translate::perf_map::PerfMap;
use engine_soft::translate::store::TranslationStore;
use serde::Serialize;
use std::sync::Arc;
use vm_config::{EngineChoice, SoftwareTier, TraceFrom, VmConfig};

/// What a machine is run with.
pub struct Chosen {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// What carries a processor past what KVM cannot execute.
    pub carrier: Option<Carrier>,
    /// Why this one.
    pub reason: String,
    /// Where translations of this run are kept; to be saved at its end.
    pub store: Option<Arc<TranslationStore>>,
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

/// Tries all of KVM and decides what `auto` means here.
pub fn examine() -> Report {
    decide(probe())
}

fn decide(kvm: KvmReport) -> Report {
    let why = &kvm.verdict.reason;
    let (chosen, reason) = match kvm.verdict.usable {
        Usable::Full => (EngineKind::Kvm, format!("KVM is good: {why}")),
        Usable::EmulatedRing0 => (EngineKind::Software, format!("KVM cannot do it alone: {why}")),
        Usable::Unusable => (EngineKind::Software, format!("KVM is not usable: {why}")),
    };
    Report { chosen, reason, kvm }
}

/// Times that code is interpreted before it is translated.
const WARM_UP: u32 = 8;

/// Makes the engine that is asked for. Best called while the process has one thread, see
/// [`guest_memory::announce_barriers`].
pub fn choose(config: &VmConfig) -> Result<Chosen, EngineError> {
    guest_memory::announce_barriers();
    if config.perf_map {
        let operation = "Making the map of translated code for perf";
        PerfMap::of_process().map_err(|source| EngineError::Host { operation, source })?;
    }
    let (kind, reason) = match config.engine {
        EngineChoice::Kvm if config.trace.is_some() => {
            return Err(EngineError::Unavailable {
                engine: EngineKind::Kvm,
                reason: "it does not tell what it executes; --trace needs --engine software".to_owned(),
            });
        }
        EngineChoice::Auto if config.trace.is_some() => {
            (EngineKind::Software, "a trace is asked for, which KVM cannot write".to_owned())
        }
        EngineChoice::Kvm => (EngineKind::Kvm, "asked for".to_owned()),
        EngineChoice::Software => (EngineKind::Software, "asked for".to_owned()),
        EngineChoice::Auto => {
            let report = decide(probe_briefly());
            (report.chosen, report.reason)
        }
    };
    let store = config.translation_store.as_deref().map(TranslationStore::open).transpose();
    let store = store.map_err(|error| EngineError::Unavailable {
        engine: EngineKind::Software,
        reason: error.to_string(),
    })?;
    let translation =
        translation(config).map(|settings| TranslationSettings { store: store.clone(), ..settings });
    let software = SoftEngine::new().with_translation(translation).with_trace(trace(config)?);
    let software: Arc<dyn Engine> = Arc::new(software);
    Ok(match kind {
        EngineKind::Software => Chosen { engine: software, carrier: None, reason, store },
        EngineKind::Kvm => {
            let carrier = Carrier { steps: Arc::new(SoftEngine::carrier()), machine: software };
            Chosen { engine: Arc::new(KvmEngine::open()?), carrier: Some(carrier), reason, store }
        }
    })
}

/// Makes the file of a trace.
fn trace(config: &VmConfig) -> Result<Option<Arc<Trace>>, EngineError> {
    let Some(wanted) = &config.trace else { return Ok(None) };
    let start = match wanted.from {
        TraceFrom::Address(address) => TraceStart::Address(address),
        TraceFrom::Count(count) => TraceStart::Count(count),
    };
    let made = Trace::create(&wanted.path, start, wanted.count);
    made.map(Some).map_err(|source| EngineError::Host { operation: "Making the file of the trace", source })
}

fn translation(config: &VmConfig) -> Option<TranslationSettings> {
    let cache_size = usize::try_from(config.translation_cache_size.0).unwrap_or(usize::MAX);
    let warm_up = match config.software_tier {
        SoftwareTier::Interpreter => return None,
        SoftwareTier::Translate => 0,
        SoftwareTier::Auto => WARM_UP,
    };
    Some(TranslationSettings {
        cache_size,
        warm_up,
        verify: config.verify,
        perf_map: config.perf_map,
        counted: config.count_executed,
        ..TranslationSettings::default()
    })
}
