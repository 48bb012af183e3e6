//! What the manual leaves undefined and processors differ in.
//!
//! Where the interpreter does as this comparison's silicon does, nothing is masked.

use iced_x86::Instruction;

/// Flags (as the decoder numbers them) that are undefined after an instruction, given those before it.
pub(crate) fn after(_instruction: &Instruction, _before: u32) -> u32 {
    0
}

/// The same as RFLAGS bits.
pub(crate) fn architectural(bits: u32) -> u64 {
    use iced_x86::RflagsBits as R;
    [(R::CF, 0), (R::PF, 2), (R::AF, 4), (R::ZF, 6), (R::SF, 7), (R::OF, 11)]
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, position)| 1 << position)
        .sum()
}
