//! Handlers of instructions.

pub mod alu;
pub mod bits;
pub mod control;
pub mod data;
#[cfg(test)]
pub(crate) mod harness;
pub mod int;
pub mod io;
pub mod legacy;
pub mod muldiv;
pub mod shift;
pub mod simd;
pub mod string;
#[cfg(test)]
mod tests;
pub mod x87;
