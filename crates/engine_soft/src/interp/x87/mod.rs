//! The x87 floating-point unit.
//!
//! The guest's state is an FXSAVE image ([`FpuState`]); an arithmetic instruction is the host's own,
//! executed on that image by one of 576 [`stubs`]. So 80-bit results, transcendentals, tags, C1 and the
//! order of exceptions are the processor's; [`fast`] does the same for single operands. Here is only what belongs to the surroundings: when an
//! instruction is allowed ([`check_pending`]), memory operands ([`exec`]), the last-instruction pointers, and
//! the environment formats ([`environment`]).
//!
//! Pointers are kept as recent Intel processors keep them: FIP with every instruction that is not a control
//! instruction, FOP and FDP only with an unmasked exception (CPUID.7.0:EBX bit 6 says so for FDP), and FCS
//! and FDS are always zero (bit 13).

mod environment;
mod exec;
mod fast;
mod image;
mod stubs;
#[cfg(test)]
mod tests;

pub use exec::{check_pending, select};
pub use image::FpuState;
