//! What a CPU engine is.
//!
//! An engine runs virtual processors over guest RAM. It knows nothing of devices: port I/O, MMIO and EOIs
//! are called back through [`VcpuIo`] in the middle of the instruction that makes them, and
//! [`Vcpu::run`] returns only what changes the machine's life. The local APICs belong to the engine;
//! everything behind them (PIC, PIT, IOAPIC) to the machine: the split-irqchip arrangement on every engine.

pub mod cpu_model;
mod debug;
mod exit;
mod traits;

pub use debug::{DebugStop, DebugStops, WatchKind, Watchpoint};
pub use exit::{EngineError, EngineKind, ExitCounts, VmExit};
pub use traits::{Engine, EventPaths, Kick, MsiMessage, Occupation, Vcpu, VcpuIo, Vm, VmSettings, Worth};
