//! Placeholder until the privileged instructions arrive.

use crate::cpu::{Cpu, Fault, Flow, Stop};
use crate::insn::{Handler, Insn};
use engine::VmExit;
use iced_x86::{CpuidFeature, Instruction, Mnemonic};
use guest_clock::{Entropy, HostEntropy};
use x86::{CpuState, Exception, MpState};

/// Events.
pub mod event {
    /// Kick.
    pub const KICK: u32 = 1;
}

/// State.
#[derive(Default)]
pub struct SystemState;

impl SystemState {
    /// Feature.
    pub fn has_feature(&self, _: CpuidFeature) -> bool {
        true
    }
}

fn hlt(cpu: &mut Cpu, _: &Insn) -> Flow {
    cpu.mp_state = MpState::Halted;
    Err(Stop::Done)
}

/// Select.
pub fn select(i: &Instruction, _: &mut Insn) -> Option<Handler> {
    (i.mnemonic() == Mnemonic::Hlt).then_some(hlt as Handler)
}

impl Cpu {
    /// Deliver.
    pub fn deliver_exception(&mut self, exception: Exception) -> Result<(), Stop> {
        self.exit = Some(VmExit::EmulationFailure { detail: format!("{exception:x?} at {:#x}", self.rip()) });
        Err(Stop::Exit)
    }
    /// Service.
    pub fn service_events(&mut self) -> Result<(), Stop> {
        self.exit = Some(VmExit::Halted);
        Err(Stop::Exit)
    }
    /// Tick.
    pub fn tick(&mut self) {}
    /// Mask.
    pub fn update_event_mask(&mut self) {
        self.event_mask = 1;
    }
    /// Check.
    pub fn check_io(&mut self, _: u16, _: u8) -> Result<(), Fault> {
        Ok(())
    }
    /// Entropy.
    pub fn entropy(&self) -> &dyn Entropy {
        &HostEntropy
    }
    /// Apic.
    pub fn apic_read(&mut self, _: u64, _: &mut [u8]) -> bool {
        false
    }
    /// Apic.
    pub fn apic_write(&mut self, _: u64, _: &[u8]) -> bool {
        false
    }
    /// Save.
    pub fn save_system(&self, _: &mut CpuState) {}
    /// Load.
    pub fn load_system(&mut self, _: &CpuState) -> Result<(), engine::EngineError> {
        Ok(())
    }
}
