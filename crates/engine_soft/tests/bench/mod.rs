//! Machines for tests through the public traits.

use engine::cpu_model::CpuModel;
use engine::{Engine, Vm, VmSettings};
use engine_soft::SoftEngine;
use guest_clock::{HostEntropy, ManualClock};
use guest_memory::GuestMemory;
use std::sync::Arc;

/// A machine of the model `max`, without processors yet.
pub fn machine(memory: &Arc<GuestMemory>, cpus: u32, clock: Arc<ManualClock>) -> Arc<dyn Vm> {
    let settings = VmSettings {
        memory: Arc::clone(memory),
        cpus,
        model: CpuModel::named("max").unwrap(),
        tsc_khz: None,
        lenient_xrstor: false,
        clock,
        entropy: Arc::new(HostEntropy),
    };
    SoftEngine::new().create_vm(settings).unwrap()
}
