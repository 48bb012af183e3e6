//! Multiplication and division.

use super::alu::source;
use super::int::Int;
use crate::cpu::{Cpu, Fault, Flow, gpr};
use crate::insn::Insn;
use x86::{Exception, Vector};

/// The operand of one-operand forms: memory, or the `dst` register.
#[inline(always)]
fn operand<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Result<T, Fault> {
    if insn.has_memory() { cpu.load_operand(insn) } else { Ok(cpu.reg(insn.dst)) }
}

/// Writes a double-width value to rDX:rAX, or AX.
#[inline(always)]
fn write_pair<T: Int>(cpu: &mut Cpu, low: u64, high: u64) {
    if T::BITS == 8 {
        cpu.set_reg(gpr::RAX, (low & 0xff | high << 8) as u16);
    } else {
        T::of(low).write(cpu, gpr::RAX);
        T::of(high).write(cpu, gpr::RDX);
    }
}

/// Reads rDX:rAX, or AX, as high and low halves.
#[inline(always)]
fn read_pair<T: Int>(cpu: &Cpu) -> u128 {
    if T::BITS == 8 {
        u128::from(cpu.reg::<u16>(gpr::RAX))
    } else {
        u128::from(cpu.reg::<T>(gpr::RDX).zx()) << T::BITS | u128::from(cpu.reg::<T>(gpr::RAX).zx())
    }
}

/// MUL.
pub fn mul<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let b = operand::<T>(cpu, insn)?.zx();
    let product = u128::from(cpu.reg::<T>(gpr::RAX).zx()) * u128::from(b);
    let (low, high) = (product as u64, (product >> T::BITS) as u64);
    write_pair::<T>(cpu, low, high);
    let carry = T::of(high).zx() != 0;
    set_flags::<T>(cpu, low, carry);
    Ok(())
}

/// SF and PF are those of the low half and ZF is clear: undefined by the manual, but what processors do.
#[inline(always)]
fn set_flags<T: Int>(cpu: &mut Cpu, low: u64, carry: bool) {
    let low = T::of(low).sx();
    // Not zero, of even parity.
    let shown = if low == 0 { 0x100 } else { low };
    cpu.flags.set_result_cf_of(shown, carry, carry);
}

#[inline(always)]
fn signed_product<T: Int>(cpu: &mut Cpu, a: T, b: T) -> (u64, u64) {
    let product = i128::from(a.sx() as i64) * i128::from(b.sx() as i64);
    let low = product as u64;
    let carry = product != i128::from(T::of(low).sx() as i64);
    set_flags::<T>(cpu, low, carry);
    (low, (product >> T::BITS) as u64)
}

/// IMUL, one operand.
pub fn imul1<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let b = operand::<T>(cpu, insn)?;
    let a = cpu.reg::<T>(gpr::RAX);
    let (low, high) = signed_product(cpu, a, b);
    write_pair::<T>(cpu, low, high);
    Ok(())
}

/// IMUL, two operands.
pub fn imul2<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let b = source::<T>(cpu, insn)?;
    let a = cpu.reg::<T>(insn.dst);
    let (low, _) = signed_product(cpu, a, b);
    T::of(low).write(cpu, insn.dst);
    Ok(())
}

/// IMUL, three operands.
pub fn imul3<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let a = source::<T>(cpu, insn)?;
    let (low, _) = signed_product(cpu, a, T::of(insn.imm));
    T::of(low).write(cpu, insn.dst);
    Ok(())
}

/// MULX: high half to the first, low half to the second register, no flags.
pub fn mulx<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let b = if insn.has_memory() { cpu.load_operand::<T>(insn)? } else { cpu.reg(insn.src2) };
    let product = u128::from(cpu.reg::<T>(gpr::RDX).zx()) * u128::from(b.zx());
    T::of(product as u64).write(cpu, insn.src);
    T::of((product >> T::BITS) as u64).write(cpu, insn.dst);
    Ok(())
}

#[cold]
fn divide_error(cpu: &mut Cpu) -> Fault {
    cpu.raise(Exception::plain(Vector::Divide))
}

/// DIV.
pub fn div<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let divisor = operand::<T>(cpu, insn)?.zx();
    let dividend = read_pair::<T>(cpu);
    if divisor == 0 {
        return Err(divide_error(cpu).into());
    }
    let (quotient, remainder) = if dividend >> 64 == 0 {
        let dividend = dividend as u64;
        (u128::from(dividend / divisor), dividend % divisor)
    } else {
        let divisor = u128::from(divisor);
        (dividend / divisor, (dividend % divisor) as u64)
    };
    if quotient >> T::BITS != 0 {
        return Err(divide_error(cpu).into());
    }
    write_pair::<T>(cpu, quotient as u64, remainder);
    Ok(())
}

/// IDIV.
pub fn idiv<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let divisor = i128::from(operand::<T>(cpu, insn)?.sx() as i64);
    let width = if T::BITS == 8 { 16 } else { 2 * T::BITS };
    let dividend = (read_pair::<T>(cpu) << (128 - width)) as i128 >> (128 - width);
    let (Some(quotient), Some(remainder)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor))
    else {
        return Err(divide_error(cpu).into());
    };
    if quotient != i128::from(T::of(quotient as u64).sx() as i64) {
        return Err(divide_error(cpu).into());
    }
    let low = T::of(quotient as u64).zx();
    write_pair::<T>(cpu, low, T::of(remainder as u64).zx());
    Ok(())
}
