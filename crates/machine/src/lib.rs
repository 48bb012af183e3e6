//! One virtual machine.
//!
//! The only crate that sees engines and hardware. [`board`] builds the chipset and the devices and wires them;
//! `vcpu_thread` gives each processor a thread; `io` is the way from an instruction to a device;
//! `excursion` carries a processor of a KVM that cannot execute an instruction through the software CPU; and
//! [`Machine`] changes the life of all of them together: start, pause, resume, reset, switch of the engine, and
//! ([`saved`]) save and restore.
//!
//! ```text
//!   vCPU thread ── Vcpu::run ──> io::BoardIo ──> device::Bus ──> devices ──> IrqLine
//!        ^                                                                      |
//!        └── LAPIC <── Vm::signal_msi <── MsiGate <── IOAPIC, MSI-X <── InterruptRouter
//! ```

pub mod board;
mod debug;
pub mod engines;
mod events;
mod excursion;
mod interrupts;
mod io;
mod layout;
mod life;
pub mod memory_map;
mod moves;
mod policy;
pub mod saved;
mod static_translation;
mod vcpu_thread;

pub use board::{BoardSettings, Disk};
pub use chipset::serial::{Serial, SerialBackend};
pub use debug::RunMode;
pub use excursion::Carrier;
pub use life::{EngineAdvice, Machine, MachineError, MachineEvent, MachineSettings};
pub use loader::{BootSource, EntryProtocol};
pub use moves::common_model;
pub use saved::{MemoryRun, RestoreError, SavedMachine, SavedState};
pub use static_translation::{LARGEST_TRANSLATION_FILE, TranslateError, translate_ahead};
pub use virtio::blk::{DiskLink, ErrorAction, HostFailure};
pub use virtio::console::Console;
