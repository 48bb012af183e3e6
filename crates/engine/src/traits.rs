//! The traits.

use crate::cpu_model::{CpuModel, FeatureSet, HostIdentity};
use crate::{DebugStops, EngineError, EngineKind, ExitCounts, VmExit};
use guest_clock::{Clock, Entropy};
use guest_memory::GuestMemory;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use x86::CpuState;

/// A message-signalled interrupt (SDM 3A 10.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address, 0xfee0_0000 upwards; bits 63–32 may carry the high destination bits (extended ID).
    pub address: u64,
    /// Data: vector, delivery mode, trigger.
    pub data: u32,
}

/// What a processor reaches outside of itself. Called on the vCPU's thread, in the middle of an instruction.
/// Addresses nobody answers read all-ones; writes there are lost. Buffers are 1, 2, 4 or 8 bytes. What is not
/// implemented behaves as a bus with nothing on it.
pub trait VcpuIo: Sync {
    /// `in`.
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    /// `out`.
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    /// A load from outside RAM.
    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    /// A store outside RAM.
    fn mmio_write(&self, _address: u64, _data: &[u8]) {}
    /// A level-triggered interrupt was completed: broadcast to the IOAPIC.
    fn eoi(&self, _vector: u8) {}
    /// The processor accepts an interrupt of the PIC (INTA cycle); the PIC answers its vector.
    fn acknowledge_pic(&self) -> u8 {
        0xff
    }
}

/// Makes a vCPU return from [`Vcpu::run`] with [`VmExit::Kicked`], from any thread, without blocking.
pub trait Kick: Send + Sync {
    /// Kicks. A kick before `run` is not lost.
    fn kick(&self);
}

/// What a virtual machine needs from the start.
#[derive(Clone)]
pub struct VmSettings {
    /// Guest RAM.
    pub memory: Arc<GuestMemory>,
    /// Processors, all there from the start.
    pub cpus: u32,
    /// Model whose CPUID and MSRs the guest sees.
    pub model: CpuModel,
    /// Frequency of the guest's time-stamp counter in kHz: the same on every engine that a machine moves
    /// between. `None` leaves it to the engine; [`Vm::tsc_khz`] tells it then.
    pub tsc_khz: Option<u32>,
    /// The machine also runs on an engine with [`Worth::shows_host_xcr0`]. Programs' compacted XSAVE images from
    /// there name components that the machine does not have, all in their initial state: XRSTOR accepts them.
    pub lenient_xrstor: bool,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

/// What a processor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupation {
    /// It executes in ring 0.
    Kernel,
    /// It executes in an outer ring.
    Program,
    /// It halts or was not started.
    Waiting,
}

/// What cannot be told from an engine's kind: how well it does its work on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worth {
    /// Ring 0 is much slower than a processor: somebody else emulates it.
    pub emulates_kernels: bool,
    /// Programs see the machine's processor (CPUID, the time-stamp counter) and no other.
    pub is_faithful: bool,
    /// XGETBV and XSAVEC of programs see the host's XCR0, which may have more components than the machine's.
    pub shows_host_xcr0: bool,
}

/// A way of running processors.
pub trait Engine: Send + Sync {
    /// Which.
    fn kind(&self) -> EngineKind;
    /// What its processors can execute on this host.
    fn features(&self) -> FeatureSet;
    /// Who the processors say they are where silicon shows through; `None` if the model alone decides.
    fn identity(&self) -> Option<HostIdentity>;
    /// What the engine is worth on this host. Tries it where that depends on the host, which may take some
    /// milliseconds the first time.
    fn worth(&self) -> Worth;
    /// Creates a machine's processors' surroundings.
    fn create_vm(&self, settings: VmSettings) -> Result<Arc<dyn Vm>, EngineError>;
}

/// What the host carries between guest and devices by itself, without a processor leaving its engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventPaths {
    /// Messages: [`Vm::bind_irqfd`].
    pub irqfd: bool,
    /// Notifications: [`Vm::bind_ioeventfd`].
    pub ioeventfd: bool,
}

/// The part of an engine that all processors of a machine share.
pub trait Vm: Send + Sync {
    /// Creates processor `index` (also its APIC ID) in the state after reset. Each index once.
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError>;
    /// Frequency of the guest's time-stamp counter in kHz; zero if the engine does not know it (before the first
    /// processor).
    fn tsc_khz(&self) -> u32;
    /// Delivers an MSI, from any thread.
    fn signal_msi(&self, message: MsiMessage);
    /// The level of the PIC's INTR line, wired to LINT0 of processor 0.
    fn set_pic_line(&self, asserted: bool);
    /// Tells which vectors the IOAPIC routes as level-triggered, so that their EOIs are reported.
    fn set_level_vectors(&self, vectors: &[bool; 256]);
    /// Which of the two following it has on this host.
    fn event_paths(&self) -> EventPaths;
    /// Lets the host signal an MSI when `event` fires, without this process; `None` removes the route.
    /// Answers false if the engine has no such path or no room: then the caller calls `signal_msi`. A message that
    /// was under way when its route was removed has been delivered when this returns.
    fn bind_irqfd(&self, event: BorrowedFd<'_>, message: Option<MsiMessage>) -> bool;
    /// Lets the host signal `event` when the guest writes to an MMIO address (any value, `len` bytes, 0 for
    /// any length), or not any more. Answers false if the engine has no such path or no room, or cannot watch any
    /// length; then the write is called back.
    fn bind_ioeventfd(&self, event: BorrowedFd<'_>, address: u64, len: u32, bind: bool) -> bool;
    /// Turns the log of pages that processors write on or off.
    fn set_dirty_log(&self, on: bool) -> Result<(), EngineError>;
    /// Takes the processors' part of the dirty log into the memory's trackers.
    fn sync_dirty_log(&self) -> Result<(), EngineError>;
}

/// A virtual processor. Owned by one thread at a time.
pub trait Vcpu: Send {
    /// Runs until something changes the machine's life. Halting processors wait inside.
    fn run(&mut self, io: &dyn VcpuIo) -> VmExit;
    /// Runs at most `steps` instructions; ends early, at a later instruction boundary, for the same reasons as
    /// [`Vcpu::run`], or with [`VmExit::Halted`]. Engines that cannot count answer
    /// [`VmExit::EmulationFailure`].
    fn run_steps(&mut self, io: &dyn VcpuIo, steps: u64) -> VmExit;
    /// A handle that interrupts `run`.
    fn kicker(&self) -> Arc<dyn Kick>;
    /// The whole state. Only between runs.
    fn state(&self) -> Result<CpuState, EngineError>;
    /// Loads a state. Only between runs.
    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError>;
    /// The state for an excursion: another engine carries this processor over a few instructions after
    /// [`VmExit::EmulationFailure`]. Fast, and without what keeps moving meanwhile: the local APIC (default
    /// value), waiting NMIs and the clocks (TSC, its adjustment and deadline) stay in this engine; the TSC is
    /// told as it was. An excursion must therefore end before an instruction that accesses the local APIC or
    /// writes these clocks, and must not deliver interrupts other than the one in [`CpuState::events`]. Only
    /// between runs.
    fn excursion_state(&self) -> Result<CpuState, EngineError> {
        self.state()
    }
    /// Loads what an excursion ended with. The local APIC, IA32_APIC_BASE and the clocks are not touched, so that
    /// interrupts that arrived meanwhile remain. CR8 is loaded. Only between runs.
    fn set_excursion_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.set_state(state)
    }
    /// Where `run` is to end with [`VmExit::Debug`], from now on. Only between runs.
    ///
    /// # Errors
    /// [`EngineError::Debugger`] when the engine cannot; then nothing stops it.
    fn set_debug_stops(&mut self, stops: &DebugStops) -> Result<(), EngineError>;
    /// What it is about to do. Only between runs.
    fn occupation(&self) -> Occupation;
    /// Counters so far.
    fn counts(&self) -> ExitCounts;
}
