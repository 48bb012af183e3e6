//! Shifts and rotates.
//!
//! Where the manual leaves OF undefined (counts above one), it is what a shift of the original operand by one would
//! leave, as on Intel's processors; AF is clear after shifts.

use super::int::Int;
use crate::cpu::{Cpu, Flow};
use crate::flags::LazyFlags;
use crate::insn::Insn;

/// A shift or rotate by a count.
pub trait Shift {
    /// The form of a register with an immediate leaves OF alone unless it shifts by one.
    const KEEPS_OF: bool;
    /// Result and flags; `count` is already masked.
    fn apply<T: Int>(flags: &mut LazyFlags, value: T, count: u32) -> T;
}

macro_rules! shift {
    ($(#[$doc:meta])* $name:ident, |$flags:ident, $value:ident, $count:ident| $body:block) => {
        shift!($(#[$doc])* $name, false, |$flags, $value, $count| $body);
    };
    ($(#[$doc:meta])* $name:ident, $keeps_of:literal, |$flags:ident, $value:ident, $count:ident| $body:block) => {
        $(#[$doc])*
        pub struct $name;
        impl Shift for $name {
            const KEEPS_OF: bool = $keeps_of;
            #[inline(always)]
            fn apply<T: Int>($flags: &mut LazyFlags, $value: T, $count: u32) -> T $body
        }
    };
}

fn top_differs<T: Int>(value: T) -> bool {
    ((value.zx() >> (T::BITS - 1)) ^ (value.zx() >> (T::BITS - 2))) & 1 != 0
}

shift!(/** SHL. */ Shl, |flags, value, count| {
    if count == 0 {
        return value;
    }
    let wide = u128::from(value.zx()) << count;
    let carry = wide >> T::BITS & 1 != 0;
    let result = T::of(wide as u64);
    flags.set_result_cf_of(result.sx(), carry, top_differs(value));
    result
});

shift!(/** SHR. */ Shr, |flags, value, count| {
    if count == 0 {
        return value;
    }
    let before = value.zx() >> (count - 1);
    let result = T::of(before >> 1);
    flags.set_result_cf_of(result.sx(), before & 1 != 0, value.top());
    result
});

shift!(/** SAR. */ Sar, |flags, value, count| {
    if count == 0 {
        return value;
    }
    let before = value.sx() as i64 >> (count - 1);
    let result = T::of((before >> 1) as u64);
    flags.set_result_cf_of(result.sx(), before & 1 != 0, false);
    result
});

fn rotate_left<T: Int>(value: T, count: u32) -> T {
    let count = count % T::BITS;
    let value = value.zx();
    if count == 0 { T::of(value) } else { T::of(value << count | value >> (T::BITS - count)) }
}

shift!(/** ROL. */ Rol, true, |flags, value, count| {
    let result = rotate_left(value, count);
    if count != 0 {
        let carry = result.zx() & 1 != 0;
        flags.set_cf(carry);
        flags.set_of(top_differs(value));
    }
    result
});

shift!(/** ROR. */ Ror, true, |flags, value, count| {
    let result = rotate_left(value, T::BITS - count % T::BITS);
    if count != 0 {
        flags.set_cf(result.top());
        flags.set_of(value.top() ^ (value.zx() & 1 != 0));
    }
    result
});

shift!(/** RCL. */ Rcl, |flags, value, count| {
    let count = count % (T::BITS + 1);
    if count == 0 {
        return value;
    }
    let ring = u128::from(flags.cf()) << T::BITS | u128::from(value.zx());
    let turned = ring << count | ring >> (T::BITS + 1 - count);
    let result = T::of(turned as u64);
    let carry = turned >> T::BITS & 1 != 0;
    flags.set_cf(carry);
    flags.set_of(top_differs(value));
    result
});

shift!(/** RCR. */ Rcr, |flags, value, count| {
    let count = count % (T::BITS + 1);
    if count == 0 {
        return value;
    }
    let ring = u128::from(flags.cf()) << T::BITS | u128::from(value.zx());
    let turned = ring >> count | ring << (T::BITS + 1 - count);
    let result = T::of(turned as u64);
    let overflow = flags.cf() ^ value.top();
    flags.set_cf(turned >> T::BITS & 1 != 0);
    flags.set_of(overflow);
    result
});

/// A shift of a register by an immediate.
#[inline(always)]
fn by_immediate<S: Shift, T: Int>(flags: &mut LazyFlags, value: T, count: u32) -> T {
    let overflow = flags.of();
    let result = S::apply(flags, value, count);
    if S::KEEPS_OF && count != 1 {
        flags.set_of(overflow);
    }
    result
}

/// Register by immediate.
pub fn shift_r<S: Shift, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let count = insn.imm as u32 & T::COUNT_MASK;
    let a = cpu.reg::<T>(insn.dst);
    let value = by_immediate::<S, T>(&mut cpu.flags, a, count);
    value.write(cpu, insn.dst);
    Ok(())
}

/// Register by CL.
pub fn shift_r_cl<S: Shift, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let count = cpu.reg::<u8>(crate::cpu::gpr::RCX) as u32 & T::COUNT_MASK;
    let a = cpu.reg::<T>(insn.dst);
    let value = S::apply(&mut cpu.flags, a, count);
    value.write(cpu, insn.dst);
    Ok(())
}

/// Memory by immediate.
pub fn shift_m<S: Shift, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let count = insn.imm as u32 & T::COUNT_MASK;
    let offset = cpu.address(insn);
    Ok(cpu.modify::<T>(insn.segment, offset, |cpu, value| S::apply(&mut cpu.flags, value, count))?)
}

/// Memory by CL.
pub fn shift_m_cl<S: Shift, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let count = cpu.reg::<u8>(crate::cpu::gpr::RCX) as u32 & T::COUNT_MASK;
    let offset = cpu.address(insn);
    Ok(cpu.modify::<T>(insn.segment, offset, |cpu, value| S::apply(&mut cpu.flags, value, count))?)
}

/// SHLD or SHRD of `value` with bits from `fill`.
#[inline(always)]
fn double<const RIGHT: bool, T: Int>(flags: &mut LazyFlags, value: T, fill: T, count: u32) -> T {
    if count == 0 {
        return value;
    }
    let (a, b) = (u128::from(value.zx()), u128::from(fill.zx()));
    // Counts above 16 with 16-bit operands shift the pattern value:fill:value, as processors do.
    let (result, carry) = if RIGHT {
        let wide = a | b << T::BITS | if T::BITS == 16 { a << 32 } else { 0 };
        ((wide >> count) as u64, wide >> (count - 1) & 1 != 0)
    } else if T::BITS == 16 {
        let wide = a << 32 | b << 16 | a;
        ((wide << count >> 32) as u64, wide << count >> 48 & 1 != 0)
    } else {
        let high = a << count | b >> (T::BITS - count);
        (high as u64, a << count >> T::BITS & 1 != 0)
    };
    let result = T::of(result);
    let overflow = if RIGHT { value.top() ^ (fill.zx() & 1 != 0) } else { top_differs(value) };
    flags.set_result_cf_of(result.sx(), carry, overflow);
    result
}

/// SHLD, SHRD; `CL` takes the count from CL.
pub fn shift_double<const RIGHT: bool, const CL: bool, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let count = if CL { u32::from(cpu.reg::<u8>(crate::cpu::gpr::RCX)) } else { insn.imm as u32 };
    let count = count & T::COUNT_MASK;
    if insn.has_memory() {
        let fill = cpu.reg::<T>(insn.dst);
        let offset = cpu.address(insn);
        cpu.modify::<T>(insn.segment, offset, |cpu, value| {
            double::<RIGHT, T>(&mut cpu.flags, value, fill, count)
        })?;
        return Ok(());
    }
    let (value, fill) = (cpu.reg::<T>(insn.dst), cpu.reg::<T>(insn.src));
    let result = double::<RIGHT, T>(&mut cpu.flags, value, fill, count);
    result.write(cpu, insn.dst);
    Ok(())
}
