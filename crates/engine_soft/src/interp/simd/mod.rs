//! MMX, SSE, AVX and their relatives, executed by the host's own instructions.
//!
//! The host is an x86-64 too, so what `cvttps2dq` makes of a NaN or `pcmpestri` of its immediate is not
//! emulated: [`stub`] has the processor execute the same instruction on copies of the operands, under the
//! guest's MXCSR, and [`trap`] turns the host's SIGFPE into the guest's #XM. Only what touches memory in its
//! own way is written out: [`moves`] (for speed), [`masked`], [`xsave`] and [`control`].
//!
//! ```text
//! select ── control · xsave · masked · moves ── plain Rust
//!     └──── exec ── classify ── stub ── arena      trap (SIGFPE)
//! ```
//!
//! A guest has the features that [`host_has`] says and its CPU model offers; anything else is #UD.

mod arena;
mod checks;
mod classify;
mod control;
mod exec;
mod host;
mod masked;
mod moves;
mod state;
mod stub;
#[cfg(test)]
pub(crate) mod tests;
mod trap;
mod xsave;

pub use host::host_has;
pub use state::{MXCSR_RESET, MXCSR_VALID, VectorState};
pub use stub::{StubError, prepare};

use crate::insn::{Handler, Insn};
use iced_x86::Instruction;

/// The handler of a vector instruction, with the fields of `insn` that it uses filled in: registers are in
/// the order of operands (`dst`, `src`, `src2`, `extra`), general registers as encoding numbers.
pub fn select(instruction: &Instruction, insn: &mut Insn) -> Option<Handler> {
    control::select(instruction)
        .or_else(|| xsave::select(instruction))
        .or_else(|| masked::select(instruction, insn))
        .or_else(|| moves::select(instruction, insn))
        .or_else(|| exec::select(instruction, insn))
}
