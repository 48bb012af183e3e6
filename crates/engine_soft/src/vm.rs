//! [`SoftEngine`] and its machines.

use crate::cpu::Cpu;
use crate::cpuid;
use crate::interp::simd;
use crate::lapic::{ApicBus, Lapic, LapicPort};
use crate::system::{SystemSettings, SystemState, TSC_KHZ, event};
use crate::trace::Trace;
use crate::translate::TranslationSettings;
use crate::vcpu::SoftVcpu;
use engine::cpu_model::{CpuModel, CpuidTable, FeatureSet, HostIdentity};
use engine::{Engine, EngineError, EngineKind, EventPaths, Kick, MsiMessage, Vcpu, Vm, VmSettings, Worth};
use guest_clock::{HostEntropy, ManualClock};
use guest_memory::GuestMemory;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Guest-physical address bits that CPUID tells.
const PHYSICAL_BITS: u32 = 46;

/// The software engine.
#[derive(Debug)]
pub struct SoftEngine {
    has_lapic: bool,
    translation: Option<TranslationSettings>,
    trace: Option<Arc<Trace>>,
}

impl SoftEngine {
    /// The engine; it needs nothing of the host until a machine is created.
    pub fn new() -> Self {
        SoftEngine { has_lapic: true, translation: None, trace: None }
    }

    /// The engine with a translator, or without one.
    #[must_use]
    pub fn with_translation(self, translation: Option<TranslationSettings>) -> Self {
        SoftEngine { translation, ..self }
    }

    /// The engine whose processors write what they execute into a trace, if there is one.
    #[must_use]
    pub fn with_trace(self, trace: Option<Arc<Trace>>) -> Self {
        SoftEngine { trace, ..self }
    }

    /// An engine for excursions: its processors have no local APIC, because theirs is in another engine. An
    /// instruction that reaches for it ends the run before it.
    pub fn carrier() -> Self {
        SoftEngine { has_lapic: false, translation: None, trace: None }
    }
}

impl Default for SoftEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for SoftEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Software
    }

    fn features(&self) -> FeatureSet {
        cpuid::supported()
    }

    fn identity(&self) -> Option<HostIdentity> {
        None
    }

    fn worth(&self) -> Worth {
        Worth { emulates_kernels: false, is_faithful: true, shows_host_xcr0: false }
    }

    fn create_vm(&self, settings: VmSettings) -> Result<Arc<dyn Vm>, EngineError> {
        simd::prepare().map_err(|error| EngineError::Unavailable {
            engine: EngineKind::Software,
            reason: error.to_string(),
        })?;
        let model = settings.model.resolve(cpuid::supported(), EngineKind::Software)?;
        Ok(Arc::new(SoftVm {
            bus: Arc::new(ApicBus::new(settings.cpus)),
            model,
            settings,
            has_lapic: self.has_lapic,
            translation: self.translation.clone(),
            trace: self.trace.clone(),
        }))
    }
}

/// A machine's processors' surroundings.
struct SoftVm {
    settings: VmSettings,
    model: CpuModel,
    bus: Arc<ApicBus>,
    has_lapic: bool,
    translation: Option<TranslationSettings>,
    trace: Option<Arc<Trace>>,
}

/// Wakes a processor.
struct PortKick(Arc<LapicPort>);

impl Kick for PortKick {
    fn kick(&self) {
        self.0.signal(event::KICK);
    }
}

impl SoftVm {
    /// A processor and its port to the others.
    fn processor(&self, index: u32) -> Result<(Box<Cpu>, Arc<LapicPort>), EngineError> {
        let missing = || EngineError::InvalidState {
            reason: format!("There is no processor {index}, the machine has {}", self.settings.cpus),
        };
        let port = Arc::clone(self.bus.port(index).ok_or_else(missing)?);
        let (cpus, tsc_khz) = (self.settings.cpus, self.tsc_khz());
        let table = CpuidTable::new(&self.model, cpuid::settings(index, cpus, PHYSICAL_BITS, tsc_khz));
        let system = SystemState::new(SystemSettings {
            model: self.model.clone(),
            cpuid: table,
            physical_bits: PHYSICAL_BITS,
            tsc_khz,
            lenient_xrstor: self.settings.lenient_xrstor,
            clock: Arc::clone(&self.settings.clock),
            entropy: Arc::clone(&self.settings.entropy),
            lapic: if self.has_lapic { Lapic::new(&self.bus, index) } else { None },
        });
        let memory = Arc::clone(&self.settings.memory);
        let mut cpu = Cpu::new(memory, system, Arc::clone(&port.events), PHYSICAL_BITS);
        cpu.restore(&x86::CpuState::reset(index == 0))?;
        if let Some(translation) = self.translation.clone() {
            cpu.enable_translation(translation).map_err(|error| EngineError::Unavailable {
                engine: EngineKind::Software,
                reason: format!("No memory for translated code: {error}"),
            })?;
        }
        if let Some(trace) = &self.trace {
            cpu.set_trace(Arc::clone(trace), index);
        }
        Ok((cpu, port))
    }
}

impl Vm for SoftVm {
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let (cpu, port) = self.processor(index)?;
        Ok(Box::new(SoftVcpu::new(cpu, Arc::new(PortKick(port)))))
    }

    fn tsc_khz(&self) -> u32 {
        self.settings.tsc_khz.unwrap_or(TSC_KHZ)
    }

    fn signal_msi(&self, message: MsiMessage) {
        self.bus.deliver_msi(message);
    }

    fn set_pic_line(&self, asserted: bool) {
        self.bus.set_pic_line(asserted);
    }

    fn set_level_vectors(&self, vectors: &[bool; 256]) {
        self.bus.set_level_vectors(vectors);
    }

    /// Processors and devices are threads of one process: there is nothing to bypass.
    fn event_paths(&self) -> EventPaths {
        EventPaths::default()
    }

    /// Interrupts are raised by this process's threads only.
    fn bind_irqfd(&self, _: BorrowedFd<'_>, _: Option<MsiMessage>) -> bool {
        false
    }

    /// Stores outside RAM are called back.
    fn bind_ioeventfd(&self, _: BorrowedFd<'_>, _: u64, _: u32, _: bool) -> bool {
        false
    }

    /// Processors report their stores to the memory's trackers, as devices do.
    fn set_dirty_log(&self, on: bool) -> Result<(), EngineError> {
        self.settings.memory.set_logging(on);
        Ok(())
    }

    fn sync_dirty_log(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// A processor without a machine around it: for translating what does not run.
pub(crate) fn lone_processor(
    model: &CpuModel,
    translation: TranslationSettings,
) -> Result<Box<Cpu>, EngineError> {
    let memory = GuestMemory::new(&[(0, 0x1000)])
        .map_err(|error| EngineError::InvalidState { reason: error.to_string() })?;
    let settings = VmSettings {
        memory: Arc::new(memory),
        cpus: 1,
        model: model.clone(),
        tsc_khz: None,
        lenient_xrstor: false,
        clock: Arc::new(ManualClock::default()),
        entropy: Arc::new(HostEntropy),
    };
    let model = model.resolve(cpuid::supported(), EngineKind::Software)?;
    let bus = Arc::new(ApicBus::new(1));
    let translation = Some(translation);
    let vm = SoftVm { bus, model, settings, has_lapic: false, translation, trace: None };
    Ok(vm.processor(0)?.0)
}
