//! What the manual leaves undefined and processors differ in.
//!
//! The interpreter does as one processor does, [`REFERENCE`]; there nothing is masked. Any other processor may do
//! otherwise, so there the flags that the manual calls undefined are not compared.

use iced_x86::{Decoder, DecoderOptions, Instruction};
use std::arch::x86_64::__cpuid;
use std::sync::LazyLock;

/// Family, model and maker (CPUID 0, EBX) of the processor whose undefined flags the interpreter has.
const REFERENCE: (u32, u32, u32) = (6, 207, u32::from_le_bytes(*b"Genu"));

/// Whether this host is that processor.
static IS_REFERENCE: LazyLock<bool> = LazyLock::new(|| {
    let signature = __cpuid(1).eax;
    let family = signature >> 8 & 15;
    let model = signature >> 4 & 15 | signature >> 12 & 0xf0;
    (family, model, __cpuid(0).ebx) == REFERENCE
});

/// Flags (as the decoder numbers them) that are undefined after an instruction, given those before it.
pub(crate) fn after(instruction: &Instruction, before: u32) -> u32 {
    if *IS_REFERENCE { 0 } else { undefined_after(instruction, before) }
}

/// RFLAGS bits that are undefined somewhere in straight-line code of a code segment of `bitness` bits.
pub(crate) fn in_code(code: &[u8], bitness: u32) -> u64 {
    let (mut undefined, mut all) = (0, 0);
    for instruction in &mut Decoder::new(bitness, code, DecoderOptions::NONE) {
        undefined = after(&instruction, undefined);
        all |= architectural(undefined);
    }
    all
}

fn undefined_after(instruction: &Instruction, before: u32) -> u32 {
    let defined = instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set();
    before & !defined | instruction.rflags_undefined()
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

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::RflagsBits;

    fn decode(bytes: &[u8]) -> Instruction {
        Decoder::new(64, bytes, DecoderOptions::NONE).decode()
    }

    /// SDM 2: AND leaves AF undefined; ADD defines it again; MOV keeps what there was.
    #[test]
    fn undefined_flags_last_until_they_are_written() {
        let and = undefined_after(&decode(&[0x21, 0xc8]), 0);
        assert_eq!(and, RflagsBits::AF);
        assert_eq!(undefined_after(&decode(&[0x89, 0xc8]), and), RflagsBits::AF);
        assert_eq!(undefined_after(&decode(&[0x01, 0xc8]), and), 0);
    }
}
