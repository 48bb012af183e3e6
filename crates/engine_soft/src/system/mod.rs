//! Privilege, segmentation, exceptions and events.
//!
//! | file | holds |
//! |---|---|
//! | [`descriptor`] | descriptors and the loading of segment registers |
//! | [`deliver`] | exceptions and interrupts through the IDT |
//! | [`far`], [`far_return`], [`task`] | transfers between segments, gates and tasks |
//! | [`fast_calls`] | SYSCALL, SYSENTER and their returns |
//! | [`control`], [`tables`], [`machine`] | the remaining privileged instructions |
//! | [`monitor`] | MONITOR and MWAIT |
//! | [`events`] | what happens between instructions |

mod control;
mod deliver;
mod descriptor;
mod events;
pub(crate) use events::MASKABLE;
mod far;
mod far_return;
mod fast_calls;
mod io_permission;
mod machine;
mod monitor;
mod saved;
mod segments;
mod select;
mod tables;
mod task;
#[cfg(test)]
mod tests;

pub use select::select;

use crate::cpu::{Cpu, Fault};
use crate::cpuid;
use crate::lapic::{Lapic, Mode, base};
use crate::msr::MsrFile;
use engine::cpu_model::{CpuModel, CpuidTable, FeatureSet};
use guest_clock::{Clock, Entropy};
use iced_x86::CpuidFeature;
use std::sync::Arc;

/// Bits of a processor's event word.
pub mod event {
    /// `run` shall return.
    pub const KICK: u32 = 1 << 0;
    /// The local APIC may have an interrupt that the processor priority lets through.
    pub const INTR: u32 = 1 << 1;
    /// A non-maskable interrupt.
    pub const NMI: u32 = 1 << 2;
    /// INIT.
    pub const INIT: u32 = 1 << 3;
    /// A start-up IPI; the vector is in the local APIC's port.
    pub const SIPI: u32 = 1 << 4;
    /// The PIC's line may be asserted.
    pub const PIC: u32 = 1 << 5;
    /// A message asks for an interrupt of the PIC.
    pub const EXT_INT: u32 = 1 << 6;
    /// The local APIC's timer may be due.
    pub const TICK: u32 = 1 << 8;
    /// The local APIC noted an error in a message.
    pub const APIC_ERROR: u32 = 1 << 7;
    /// Watched data were accessed: the loops look up.
    pub const DEBUG: u32 = 1 << 9;
}

/// Time-stamp counter frequency in kHz that this engine chooses.
pub const TSC_KHZ: u32 = 1_000_000;

/// What [`SystemState`] is made from.
pub struct SystemSettings {
    /// A model that was resolved against [`cpuid::supported`].
    pub model: CpuModel,
    /// This processor's answers.
    pub cpuid: CpuidTable,
    /// Guest-physical address width.
    pub physical_bits: u32,
    /// Time-stamp counter frequency in kHz, not zero.
    pub tsc_khz: u32,
    /// See [`engine::VmSettings::lenient_xrstor`].
    pub lenient_xrstor: bool,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// The local APIC; `None` for a processor whose local APIC is somewhere else.
    pub lapic: Option<Lapic>,
}

/// MSRs, local APIC, CPUID, time.
pub struct SystemState {
    pub(crate) features: FeatureSet,
    pub(crate) model: CpuModel,
    pub(crate) cpuid: CpuidTable,
    pub(crate) physical_bits: u32,
    pub(crate) tsc_khz: u32,
    pub(crate) lenient_xrstor: bool,
    pub(crate) clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// The local APIC.
    pub lapic: Option<Lapic>,
    pub(crate) msrs: MsrFile,
    /// NMIs wait for IRET.
    pub(crate) nmi_blocked: bool,
    pub(crate) monitor: monitor::Monitor,
    /// The page of the local APIC, if that is in another engine.
    pub(crate) foreign_apic: Option<u64>,
    /// Which of `iced_x86`'s features the model has.
    instruction_features: Vec<bool>,
    pub(crate) allowed: control::Allowed,
}

impl SystemState {
    /// A processor's system part after reset.
    pub fn new(settings: SystemSettings) -> Self {
        let SystemSettings { model, cpuid, physical_bits, tsc_khz, lenient_xrstor, clock, entropy, lapic } =
            settings;
        let features = model.features();
        SystemState {
            features,
            allowed: control::Allowed::of(features, &cpuid),
            instruction_features: cpuid::instruction_features(features),
            model,
            cpuid,
            physical_bits,
            tsc_khz: tsc_khz.max(1),
            lenient_xrstor,
            clock,
            entropy,
            lapic,
            msrs: MsrFile::new(features),
            nmi_blocked: false,
            monitor: monitor::Monitor::default(),
            foreign_apic: None,
        }
    }

    /// Whether the model has the instructions of a feature.
    pub fn has_feature(&self, feature: CpuidFeature) -> bool {
        self.instruction_features.get(feature as usize).copied().unwrap_or(false)
    }

    /// Which of `iced_x86`'s features the model has, by number.
    pub(crate) fn instruction_features(&self) -> &[bool] {
        &self.instruction_features
    }

    /// Guest time.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// The time-stamp counter.
    pub(crate) fn tsc(&self) -> u64 {
        self.ticks(self.now_ns()).wrapping_add(self.msrs.tsc_offset)
    }

    /// Ticks of the time-stamp counter since time zero.
    pub(crate) fn ticks(&self, ns: u64) -> u64 {
        match self.tsc_khz {
            TSC_KHZ => ns,
            khz => (u128::from(ns) * u128::from(khz) / 1_000_000) as u64,
        }
    }
}

impl Default for SystemState {
    /// Everything the host can execute; otherwise as [`SystemState::alone`].
    fn default() -> Self {
        SystemState::alone(CpuModel::everything(cpuid::supported()))
    }
}

impl SystemState {
    /// Processor 0 of one, with a standing clock and no local APIC: enough to run instructions by themselves.
    pub(crate) fn alone(model: CpuModel) -> Self {
        let physical_bits = 46;
        SystemState::new(SystemSettings {
            cpuid: CpuidTable::new(&model, cpuid::settings(0, 1, physical_bits, TSC_KHZ)),
            model,
            physical_bits,
            tsc_khz: TSC_KHZ,
            lenient_xrstor: false,
            clock: Arc::new(guest_clock::MachineClock::new(0)),
            entropy: Arc::new(guest_clock::HostEntropy),
            lapic: None,
        })
    }
}

impl Cpu {
    /// Randomness for RDRAND and RDSEED.
    pub fn entropy(&self) -> &dyn Entropy {
        &*self.system.entropy
    }

    fn apic_page_offset(&self, physical: u64) -> Option<u64> {
        let lapic = self.system.lapic.as_ref()?;
        let page = lapic.base() & base::ADDRESS;
        (lapic.mode() == Mode::Xapic && physical & !0xfff == page).then_some(physical & 0xfff)
    }

    /// Reads if the address is in the local APIC's page.
    pub fn apic_read(&mut self, physical: u64, bytes: &mut [u8]) -> bool {
        let Some(offset) = self.apic_page_offset(physical) else { return false };
        let now = self.system.now_ns();
        if let Some(lapic) = &mut self.system.lapic {
            lapic.read_page(offset, bytes, now);
        }
        true
    }

    /// Stops before an access to the page of a local APIC that is elsewhere: the exit tells.
    pub(crate) fn check_foreign_apic(&mut self, physical: u64) -> Result<(), Fault> {
        if self.system.foreign_apic != Some(physical & !0xfff) {
            return Ok(());
        }
        self.leave_to_owner_of_apic();
        // Never delivered: the exit comes first.
        Err(self.ud())
    }

    /// Notes that the instruction needs the local APIC, which this processor does not have.
    pub(crate) fn leave_to_owner_of_apic(&mut self) {
        self.exit = Some(engine::VmExit::EmulationFailure { detail: "The local APIC is elsewhere".into() });
        self.block_end = 0;
    }

    /// Writes if the address is in the local APIC's page.
    pub fn apic_write(&mut self, physical: u64, bytes: &[u8]) -> bool {
        let Some(offset) = self.apic_page_offset(physical) else { return false };
        let now = self.system.now_ns();
        let done = self.system.lapic.as_mut().and_then(|lapic| lapic.write_page(offset, bytes, now));
        self.after_apic_write(done);
        true
    }

    /// Tells the IOAPICs of an EOI, and arms the timer.
    pub(crate) fn after_apic_write(&mut self, done: Option<u8>) {
        if let (Some(vector), Some(io)) = (done, self.io()) {
            io.eoi(vector);
        }
        self.tick();
    }
}
