//! The six arithmetic flags, computed when somebody asks.
//!
//! An instruction stores its sign-extended result and a word of carries; every flag is a cheap function of
//! the two, without knowing which instruction it was:
//!
//! | flag | is |
//! |---|---|
//! | ZF | `result == 0` |
//! | SF | bit 63 of `result`, flipped by bit 0 of `aux` |
//! | PF | parity of the low byte of `result`, flipped by bit 1 of `aux` |
//! | CF | bit 63 of `aux` |
//! | OF | bit 63 xor bit 62 of `aux` (carry out of and into the sign bit) |
//! | AF | bit 3 of `aux` (carry out of bit 3) |
//!
//! The flip bits exist because POPF and SAHF can set combinations that no result has.

use x86::RFlags;

const CARRY: u64 = 1 << 63;
const CARRY_IN: u64 = 1 << 62;
const AUXILIARY: u64 = 1 << 3;
const FLIP_SIGN: u64 = 1 << 0;
const FLIP_PARITY: u64 = 1 << 1;

/// Lazy arithmetic flags.
#[derive(Clone, Copy, Debug, Default)]
pub struct LazyFlags {
    /// Result, sign-extended to 64 bits.
    pub result: u64,
    /// Carries and flips.
    pub aux: u64,
}

impl LazyFlags {
    /// Flags of an addition or subtraction of `BITS` bits with carry (borrow) vector `carries`.
    #[inline(always)]
    pub fn set_carries<const BITS: u32>(&mut self, result: u64, carries: u64) {
        self.result = result;
        let top = if BITS == 64 { carries } else { carries << (64 - BITS) };
        self.aux = top & (CARRY | CARRY_IN) | carries & AUXILIARY;
    }

    /// As [`Self::set_carries`], but CF stays (INC, DEC).
    #[inline(always)]
    pub fn set_carries_keep_cf<const BITS: u32>(&mut self, result: u64, carries: u64) {
        let old = self.aux & CARRY;
        self.set_carries::<BITS>(result, carries);
        // Flipping both top bits keeps their difference, OF.
        if (self.aux & CARRY) != old {
            self.aux ^= CARRY | CARRY_IN;
        }
    }

    /// Flags of a logical operation: CF, OF and AF clear.
    #[inline(always)]
    pub fn set_logic(&mut self, result: u64) {
        self.result = result;
        self.aux = 0;
    }

    /// ZF, SF, PF of `result` with given CF and OF; AF clear.
    #[inline(always)]
    pub fn set_result_cf_of(&mut self, result: u64, cf: bool, of: bool) {
        self.result = result;
        self.aux = u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
    }

    /// Carry.
    #[inline(always)]
    pub fn cf(self) -> bool {
        (self.aux as i64) < 0
    }
    /// Zero.
    #[inline(always)]
    pub fn zf(self) -> bool {
        self.result == 0
    }
    /// Sign.
    #[inline(always)]
    pub fn sf(self) -> bool {
        ((self.result >> 63) ^ self.aux) & 1 != 0
    }
    /// Overflow.
    #[inline(always)]
    pub fn of(self) -> bool {
        ((self.aux >> 63) ^ (self.aux >> 62)) & 1 != 0
    }
    /// Parity.
    #[inline(always)]
    pub fn pf(self) -> bool {
        ((self.result as u8).count_ones() as u64 ^ (self.aux >> 1)) & 1 == 0
    }
    /// Auxiliary carry.
    #[inline(always)]
    pub fn af(self) -> bool {
        self.aux & AUXILIARY != 0
    }

    /// The six flags at their RFLAGS positions.
    #[inline]
    pub fn bits(self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    /// Sets all six from RFLAGS positions; other bits are ignored.
    #[inline]
    pub fn set_bits(&mut self, bits: u64) {
        let bits = RFlags::from_bits_retain(bits);
        let (cf, of) = (bits.contains(RFlags::CF), bits.contains(RFlags::OF));
        // A non-zero result with even parity and clear sign, so that the flips are the flags themselves.
        self.result = if bits.contains(RFlags::ZF) { 0 } else { 3 };
        self.aux = u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
        if bits.contains(RFlags::AF) {
            self.aux |= AUXILIARY;
        }
        if bits.contains(RFlags::SF) {
            self.aux |= FLIP_SIGN;
        }
        if !bits.contains(RFlags::PF) {
            self.aux |= FLIP_PARITY;
        }
    }

    /// Sets CF only.
    #[inline(always)]
    pub fn set_cf(&mut self, cf: bool) {
        if self.cf() != cf {
            self.aux ^= CARRY | CARRY_IN;
        }
    }

    /// Sets ZF only.
    #[inline]
    pub fn set_zf(&mut self, zf: bool) {
        if self.zf() != zf {
            let bits = self.bits() ^ RFlags::ZF.bits();
            self.set_bits(bits);
        }
    }

    /// Sets OF only.
    #[inline]
    pub fn set_of(&mut self, of: bool) {
        if self.of() != of {
            self.aux ^= CARRY_IN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_flags_can_be_held() {
        for bits in 0..1 << 12 {
            let wanted = bits & RFlags::ARITHMETIC.bits();
            let mut flags = LazyFlags::default();
            flags.set_bits(wanted);
            assert_eq!(flags.bits(), wanted);
            for cf in [false, true] {
                flags.set_cf(cf);
                assert_eq!(flags.bits(), wanted & !1 | u64::from(cf));
            }
            flags.set_zf(true);
            assert!(flags.zf());
            assert_eq!(flags.of(), wanted & 0x800 != 0);
        }
    }
}
