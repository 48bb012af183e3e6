//! The Linux KVM engine.
//!
//! KVM keeps the local APICs (the split irqchip, KVM API 4.118 `KVM_CAP_SPLIT_IRQCHIP`); the IOAPIC, the PIC
//! and everything else belong to the machine and are reached through [`engine::VcpuIo`]:
//!
//! - MSIs, also those of the IOAPIC, go in by `KVM_SIGNAL_MSI`, or by an irqfd with a route of its own;
//! - EOIs of level-triggered vectors come out because [`routing`] tells KVM of a fictitious route for each;
//! - the PIC's INTR line is sampled by processor 0 whenever it can take an interrupt ([`vcpu`]).
//!
//! A host's KVM may be partial: software KVMs fail on instructions that hardware would run. Such a failure is
//! [`engine::VmExit::EmulationFailure`] with the state before the instruction, so that a caller can carry
//! the processor over it with another engine; [`probe`] tells beforehand what to expect.

mod cpuid;
mod host;
mod kick;
pub mod probe;
mod routing;
mod state;
mod vcpu;
mod vm;

pub use host::KvmEngine;
pub use state::canonical_xsave;
pub use vcpu::KvmVcpu;
pub use vm::KvmVm;
