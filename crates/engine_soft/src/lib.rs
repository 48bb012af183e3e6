//! The software x86-64 CPU.
//!
//! A guest instruction goes this way: [`code`] finds the block at the current RIP (or has [`decode`] make
//! it from guest RAM), the loop in [`run`] calls each [`insn::Insn`]'s handler from [`interp`], and handlers
//! reach memory through [`mmu`]. Privileged instructions, exception delivery and events are in [`system`], the local
//! APIC in [`lapic`].
//!
//! # Invariants
//! * `Cpu::rip()` is the address of the running instruction until its handler has succeeded; the loop
//!   advances it. A handler that fails has changed nothing the guest can see.
//! * A handler is reached only through a block whose page generations were current at block entry.

pub mod code;
pub mod cpu;
pub mod cpuid;
pub(crate) mod debug;
pub mod decode;
pub mod flags;
pub mod insn;
pub mod interp;
pub mod lapic;
pub mod mmu;
pub mod msr;
pub mod run;
mod state;
pub mod system;
mod times;
pub mod trace;
pub mod translate;
mod vcpu;
mod vm;

pub use cpu::{Cpu, Fault, Flow, Stop};
pub use insn::{Handler, Insn};
pub use vcpu::SoftVcpu;
pub use vm::SoftEngine;
