//! BCD arithmetic and other instructions that 64-bit mode lost.

use crate::cpu::{Cpu, Flow, gpr};
use crate::insn::Insn;
use x86::{Exception, RFlags, Vector};

const CF: u64 = RFlags::CF.bits();
const AF: u64 = RFlags::AF.bits();

/// Sets SF, ZF, PF of AL with the given CF and AF; OF clear.
fn set_decimal(cpu: &mut Cpu, al: u8, flags: u64) {
    cpu.set_reg(gpr::RAX, al);
    cpu.flags.set_logic(al as i8 as u64);
    let bits = cpu.flags.bits() | flags;
    cpu.flags.set_bits(bits);
}

/// DAA, DAS.
pub fn decimal_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Insn) -> Flow {
    let old = cpu.reg::<u8>(gpr::RAX);
    let (carry, auxiliary) = (cpu.flags.cf(), cpu.flags.af());
    let change = |al: u8, by: u8| if SUBTRACT { al.wrapping_sub(by) } else { al.wrapping_add(by) };
    let (mut al, mut flags) = (old, 0);
    if old & 0xf > 9 || auxiliary {
        al = change(al, 6);
        flags |= AF;
        let wrapped = if SUBTRACT { old < 6 } else { old > 0xf9 };
        if carry || wrapped {
            flags |= CF;
        }
    }
    if old > 0x99 || carry {
        al = change(al, 0x60);
        flags |= CF;
    } else if !SUBTRACT {
        flags &= !CF;
    }
    set_decimal(cpu, al, flags);
    Ok(())
}

/// AAA, AAS.
pub fn ascii_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Insn) -> Flow {
    let ax = cpu.reg::<u16>(gpr::RAX);
    let adjust = ax & 0xf > 9 || cpu.flags.af();
    let ax = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
    };
    set_decimal(cpu, ax as u8, if adjust { CF | AF } else { 0 });
    cpu.set_reg(gpr::RAX, ax & 0xff0f);
    // SF, ZF and PF are undefined; processors take them from the masked AL.
    let bits = cpu.flags.bits() & (CF | AF);
    cpu.flags.set_logic((ax & 0xf).into());
    let bits = cpu.flags.bits() | bits;
    cpu.flags.set_bits(bits);
    Ok(())
}

/// AAM: `#DE` if the base is zero.
pub fn aam(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let (al, base) = (cpu.reg::<u8>(gpr::RAX), insn.imm as u8);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(cpu.raise(Exception::plain(Vector::Divide)).into());
    };
    cpu.set_reg(gpr::RAX + 1, high);
    set_decimal(cpu, low, 0);
    Ok(())
}

/// AAD.
pub fn aad(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let [al, ah] = cpu.reg::<u16>(gpr::RAX).to_le_bytes();
    let product = ah.wrapping_mul(insn.imm as u8);
    let sum = al.wrapping_add(product);
    cpu.set_reg(gpr::RAX, u16::from(sum));
    // CF, AF and OF are undefined; processors leave those of the addition.
    let carries = al & product | (al | product) & !sum;
    cpu.flags.set_carries::<8>(sum as i8 as u64, carries.into());
    Ok(())
}

/// SALC.
pub fn salc(cpu: &mut Cpu, _: &Insn) -> Flow {
    let fill = if cpu.flags.cf() { 0xff_u8 } else { 0 };
    cpu.set_reg(gpr::RAX, fill);
    Ok(())
}

/// ARPL: only in protected mode.
pub fn arpl(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if !cpu.is_protected() {
        return Err(cpu.ud().into());
    }
    let (old, source) = if insn.has_memory() {
        (cpu.load_operand::<u16>(insn)?, cpu.reg::<u16>(insn.dst))
    } else {
        (cpu.reg::<u16>(insn.dst), cpu.reg::<u16>(insn.src))
    };
    let lower = old & 3 < source & 3;
    if lower {
        let new = old & !3 | source & 3;
        if insn.has_memory() {
            cpu.store_operand(insn, new)?;
        } else {
            cpu.set_reg(insn.dst, new);
        }
    }
    cpu.flags.set_zf(lower);
    Ok(())
}
