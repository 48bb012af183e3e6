//! Operand widths.

use crate::cpu::Cpu;
use crate::mmu::access::Plain;

/// An operand width: `u8`, `u16`, `u32` or `u64`.
pub trait Int: Plain + Copy + PartialEq {
    /// Bits.
    const BITS: u32;
    /// Mask of shift and rotate counts.
    const COUNT_MASK: u32 = if Self::BITS == 64 { 63 } else { 31 };
    /// Low bits of `value`.
    fn of(value: u64) -> Self;
    /// Zero-extended.
    fn zx(self) -> u64;
    /// Sign-extended.
    fn sx(self) -> u64;
    /// Writes a register: 32 bits clear the upper half, smaller ones leave it.
    fn write(self, cpu: &mut Cpu, offset: u8);
    /// Most significant bit.
    #[inline(always)]
    fn top(self) -> bool {
        self.sx() >> 63 != 0
    }
}

macro_rules! int {
    ($type:ty, $signed:ty, $bits:expr, $cpu:ident, $offset:ident, $value:ident, $write:expr) => {
        impl Int for $type {
            const BITS: u32 = $bits;
            #[inline(always)]
            fn of(value: u64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn zx(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sx(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            fn write(self, $cpu: &mut Cpu, $offset: u8) {
                let $value = self;
                $write
            }
        }
    };
}

int!(u8, i8, 8, cpu, offset, value, cpu.set_reg(offset, value));
int!(u16, i16, 16, cpu, offset, value, cpu.set_reg(offset, value));
int!(u32, i32, 32, cpu, offset, value, cpu.set_reg32(offset, value));
int!(u64, i64, 64, cpu, offset, value, cpu.set_reg(offset, value));
