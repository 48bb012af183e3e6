//! Addition, subtraction, logic, comparison, increments, and exchanges with memory.

use super::int::Int;
use crate::cpu::{Cpu, Flow, gpr};
use crate::flags::LazyFlags;
use crate::insn::{Insn, LOCK};
use crate::interp::bits::locked;

/// A two-operand operation that sets flags.
pub trait Binary {
    /// Whether the first operand is written.
    const WRITES: bool = true;
    /// Result, and flags.
    fn apply<T: Int>(flags: &mut LazyFlags, a: T, b: T) -> T;
}

macro_rules! binary {
    ($(#[$doc:meta])* $name:ident, $writes:expr, |$flags:ident, $a:ident, $b:ident, $bits:ident| $body:expr) => {
        $(#[$doc])*
        pub struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<T: Int>($flags: &mut LazyFlags, $a: T, $b: T) -> T {
                let ($a, $b) = ($a.zx(), $b.zx());
                let value = T::of($body);
                value
            }
        }
    };
}

#[inline(always)]
fn set_carries<T: Int>(flags: &mut LazyFlags, value: u64, carries: u64) {
    let result = T::of(value).sx();
    match T::BITS {
        8 => flags.set_carries::<8>(result, carries),
        16 => flags.set_carries::<16>(result, carries),
        32 => flags.set_carries::<32>(result, carries),
        _ => flags.set_carries::<64>(result, carries),
    }
}

#[inline(always)]
fn add<T: Int>(flags: &mut LazyFlags, a: u64, b: u64, carry: u64) -> u64 {
    let value = a.wrapping_add(b).wrapping_add(carry);
    set_carries::<T>(flags, value, a & b | (a | b) & !value);
    value
}

#[inline(always)]
fn sub<T: Int>(flags: &mut LazyFlags, a: u64, b: u64, borrow: u64) -> u64 {
    let value = a.wrapping_sub(b).wrapping_sub(borrow);
    set_carries::<T>(flags, value, !a & b | !(a ^ b) & value);
    value
}

#[inline(always)]
fn logic<T: Int>(flags: &mut LazyFlags, value: u64) -> u64 {
    flags.set_logic(T::of(value).sx());
    value
}

binary!(/** ADD. */ Add, true, |flags, a, b, bits| add::<T>(flags, a, b, 0));
binary!(/** ADC. */ Adc, true, |flags, a, b, bits| {
    let carry = u64::from(flags.cf());
    add::<T>(flags, a, b, carry)
});
binary!(/** SUB. */ Sub, true, |flags, a, b, bits| sub::<T>(flags, a, b, 0));
binary!(/** SBB. */ Sbb, true, |flags, a, b, bits| {
    let borrow = u64::from(flags.cf());
    sub::<T>(flags, a, b, borrow)
});
binary!(/** CMP. */ Cmp, false, |flags, a, b, bits| sub::<T>(flags, a, b, 0));
binary!(/** AND. */ And, true, |flags, a, b, bits| logic::<T>(flags, a & b));
binary!(/** OR. */ Or, true, |flags, a, b, bits| logic::<T>(flags, a | b));
binary!(/** XOR. */ Xor, true, |flags, a, b, bits| logic::<T>(flags, a ^ b));
binary!(/** TEST. */ Test, false, |flags, a, b, bits| logic::<T>(flags, a & b));

/// Register, register.
pub fn binary_rr<O: Binary, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let (a, b) = (cpu.reg::<T>(insn.dst), cpu.reg::<T>(insn.src));
    let value = O::apply(&mut cpu.flags, a, b);
    if O::WRITES {
        value.write(cpu, insn.dst);
    }
    Ok(())
}

/// Register, immediate.
pub fn binary_ri<O: Binary, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let a = cpu.reg::<T>(insn.dst);
    let value = O::apply(&mut cpu.flags, a, T::of(insn.imm));
    if O::WRITES {
        value.write(cpu, insn.dst);
    }
    Ok(())
}

/// Register, memory.
pub fn binary_rm<O: Binary, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let b = cpu.load_operand::<T>(insn)?;
    let a = cpu.reg::<T>(insn.dst);
    let value = O::apply(&mut cpu.flags, a, b);
    if O::WRITES {
        value.write(cpu, insn.dst);
    }
    Ok(())
}

#[inline(always)]
fn to_memory<O: Binary, T: Int>(cpu: &mut Cpu, insn: &Insn, b: T) -> Flow {
    if !O::WRITES {
        let a = cpu.load_operand::<T>(insn)?;
        O::apply(&mut cpu.flags, a, b);
        return Ok(());
    }
    let offset = cpu.address(insn);
    cpu.modify::<T>(insn.segment, offset, |cpu, a| O::apply(&mut cpu.flags, a, b))?;
    Ok(())
}

/// Memory, register.
pub fn binary_mr<O: Binary, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let b = cpu.reg::<T>(insn.dst);
    to_memory::<O, T>(cpu, insn, b)
}

/// Memory, immediate.
pub fn binary_mi<O: Binary, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    to_memory::<O, T>(cpu, insn, T::of(insn.imm))
}

/// LOCK: memory, register.
pub fn binary_lock_mr<O: Binary, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let b = cpu.reg::<T>(insn.dst);
    locked::<T>(cpu, insn, |flags, a| O::apply(flags, a, b))?;
    Ok(())
}

/// LOCK: memory, immediate.
pub fn binary_lock_mi<O: Binary, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    locked::<T>(cpu, insn, |flags, a| O::apply(flags, a, T::of(insn.imm)))?;
    Ok(())
}

/// A one-operand operation.
pub trait Unary {
    /// Result, and flags.
    fn apply<T: Int>(flags: &mut LazyFlags, a: T) -> T;
}

/// INC.
pub struct Inc;
/// DEC.
pub struct Dec;
/// NEG.
pub struct Neg;
/// NOT.
pub struct Not;

#[inline(always)]
fn keep_carry<T: Int>(flags: &mut LazyFlags, value: u64, carries: u64) {
    let result = T::of(value).sx();
    match T::BITS {
        8 => flags.set_carries_keep_cf::<8>(result, carries),
        16 => flags.set_carries_keep_cf::<16>(result, carries),
        32 => flags.set_carries_keep_cf::<32>(result, carries),
        _ => flags.set_carries_keep_cf::<64>(result, carries),
    }
}

impl Unary for Inc {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut LazyFlags, a: T) -> T {
        let a = a.zx();
        let value = a.wrapping_add(1);
        keep_carry::<T>(flags, value, a & !value);
        T::of(value)
    }
}
impl Unary for Dec {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut LazyFlags, a: T) -> T {
        let a = a.zx();
        let value = a.wrapping_sub(1);
        keep_carry::<T>(flags, value, !a & value);
        T::of(value)
    }
}
impl Unary for Neg {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut LazyFlags, a: T) -> T {
        T::of(sub::<T>(flags, 0, a.zx(), 0))
    }
}
impl Unary for Not {
    #[inline(always)]
    fn apply<T: Int>(_: &mut LazyFlags, a: T) -> T {
        T::of(!a.zx())
    }
}

/// Register.
pub fn unary_r<O: Unary, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let a = cpu.reg::<T>(insn.dst);
    let value = O::apply(&mut cpu.flags, a);
    value.write(cpu, insn.dst);
    Ok(())
}

/// Memory.
pub fn unary_m<O: Unary, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if insn.flags & LOCK != 0 {
        locked::<T>(cpu, insn, |flags, a| O::apply(flags, a))?;
        return Ok(());
    }
    let offset = cpu.address(insn);
    cpu.modify::<T>(insn.segment, offset, |cpu, a| O::apply(&mut cpu.flags, a))?;
    Ok(())
}

/// XADD.
pub fn xadd<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if !insn.has_memory() {
        let (a, b) = (cpu.reg::<T>(insn.dst), cpu.reg::<T>(insn.src));
        let sum = Add::apply(&mut cpu.flags, a, b);
        a.write(cpu, insn.src);
        sum.write(cpu, insn.dst);
        return Ok(());
    }
    let b = cpu.reg::<T>(insn.dst);
    let old = if insn.flags & LOCK != 0 {
        locked::<T>(cpu, insn, |flags, a| Add::apply(flags, a, b))?
    } else {
        let (offset, mut old) = (cpu.address(insn), b);
        cpu.modify::<T>(insn.segment, offset, |cpu, a| {
            old = a;
            Add::apply(&mut cpu.flags, a, b)
        })?;
        old
    };
    old.write(cpu, insn.dst);
    Ok(())
}

/// XCHG; with memory it locks by itself.
pub fn xchg<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if insn.has_memory() {
        let new = cpu.reg::<T>(insn.dst);
        let old = locked::<T>(cpu, insn, |_, _| new)?;
        old.write(cpu, insn.dst);
    } else {
        let (a, b) = (cpu.reg::<T>(insn.dst), cpu.reg::<T>(insn.src));
        b.write(cpu, insn.dst);
        a.write(cpu, insn.src);
    }
    Ok(())
}

/// CMPXCHG. The destination is written even if it does not match (with its own value).
pub fn cmpxchg<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let expected = cpu.reg::<T>(gpr::RAX);
    let choose = |flags: &mut LazyFlags, old: T, new: T| {
        Cmp::apply(flags, expected, old);
        if old == expected { new } else { old }
    };
    if !insn.has_memory() {
        let (old, new) = (cpu.reg::<T>(insn.dst), cpu.reg::<T>(insn.src));
        let value = choose(&mut cpu.flags, old, new);
        if old == expected {
            value.write(cpu, insn.dst);
        } else {
            old.write(cpu, gpr::RAX);
        }
        return Ok(());
    }
    let new = cpu.reg::<T>(insn.dst);
    let old = if insn.flags & LOCK != 0 {
        locked::<T>(cpu, insn, |flags, old| choose(flags, old, new))?
    } else {
        let (offset, mut seen) = (cpu.address(insn), new);
        cpu.modify::<T>(insn.segment, offset, |cpu, old| {
            seen = old;
            choose(&mut cpu.flags, old, new)
        })?;
        seen
    };
    if old != expected {
        old.write(cpu, gpr::RAX);
    }
    Ok(())
}

/// ADCX and ADOX: chains on CF or OF alone.
pub fn carry_chain<const OVERFLOW: bool, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let (a, b) = (cpu.reg::<T>(insn.dst).zx(), source::<T>(cpu, insn)?.zx());
    let carry = if OVERFLOW { cpu.flags.of() } else { cpu.flags.cf() };
    let sum = u128::from(a) + u128::from(b) + u128::from(carry);
    let out = sum >> T::BITS != 0;
    if OVERFLOW {
        cpu.flags.set_of(out);
    } else {
        cpu.flags.set_cf(out);
    }
    T::of(sum as u64).write(cpu, insn.dst);
    Ok(())
}

/// The second operand: memory, or the `src` register.
#[inline(always)]
pub fn source<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Result<T, crate::cpu::Fault> {
    if insn.has_memory() { cpu.load_operand(insn) } else { Ok(cpu.reg(insn.src)) }
}
