//! Near branches.

use super::int::Int;
use crate::cpu::{Cpu, Fault, Flow, Stop, gpr, seg};
use crate::flags::LazyFlags;
use crate::insn::Insn;

/// A condition by its encoding (SDM 1 B.1).
#[inline(always)]
pub fn condition<const C: u8>(flags: LazyFlags) -> bool {
    let base = match C >> 1 {
        0 => flags.of(),
        1 => flags.cf(),
        2 => flags.zf(),
        3 => flags.cf() || flags.zf(),
        4 => flags.sf(),
        5 => flags.pf(),
        6 => flags.sf() != flags.of(),
        _ => flags.zf() || flags.sf() != flags.of(),
    };
    base != (C & 1 != 0)
}

/// Address of the next instruction.
#[inline(always)]
fn next(cpu: &Cpu, insn: &Insn) -> u64 {
    cpu.rip().wrapping_add(u64::from(insn.len))
}

/// Bytes of the target of a near branch.
#[inline(always)]
fn branch_size(insn: &Insn) -> u8 {
    if insn.code_size() == 64 { 8 } else { insn.operand_size }
}

/// Checks a branch target and makes it fit the operand size.
#[inline(always)]
fn checked(cpu: &mut Cpu, insn: &Insn, target: u64) -> Result<u64, Fault> {
    if insn.code_size() == 64 {
        return if cpu.is_canonical(target) { Ok(target) } else { Err(cpu.gp(0)) };
    }
    let target = if insn.operand_size == 2 { target & 0xffff } else { target & 0xffff_ffff };
    if target > u64::from(cpu.segments[usize::from(seg::CS)].limit) {
        return Err(cpu.gp(0));
    }
    Ok(target)
}

#[inline(always)]
fn jump_relative(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let target = checked(cpu, insn, next(cpu, insn).wrapping_add(insn.imm))?;
    cpu.set_rip(target);
    Err(Stop::Jump)
}

/// Jcc.
pub fn jcc<const C: u8>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if condition::<C>(cpu.flags) { jump_relative(cpu, insn) } else { Ok(()) }
}

/// JMP relative.
pub fn jmp(cpu: &mut Cpu, insn: &Insn) -> Flow {
    jump_relative(cpu, insn)
}

/// CALL relative.
pub fn call(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let back = next(cpu, insn);
    let target = checked(cpu, insn, back.wrapping_add(insn.imm))?;
    cpu.push(back, branch_size(insn))?;
    cpu.set_rip(target);
    Err(Stop::Jump)
}

/// CALL relative in 64-bit mode.
pub fn call64(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let back = next(cpu, insn);
    let target = checked(cpu, insn, back.wrapping_add(insn.imm))?;
    let rsp = cpu.regs[4].wrapping_sub(8);
    cpu.store::<u64>(seg::SS, rsp, back)?;
    cpu.regs[4] = rsp;
    cpu.set_rip(target);
    Err(Stop::Jump)
}

#[inline(always)]
fn target_operand(cpu: &mut Cpu, insn: &Insn) -> Result<u64, Fault> {
    let size = branch_size(insn);
    if !insn.has_memory() {
        return Ok(cpu.read_gpr(insn.dst, size));
    }
    Ok(match size {
        8 => cpu.load_operand::<u64>(insn)?,
        4 => u64::from(cpu.load_operand::<u32>(insn)?),
        _ => u64::from(cpu.load_operand::<u16>(insn)?),
    })
}

/// JMP through a register or memory.
pub fn jmp_indirect(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let target = target_operand(cpu, insn)?;
    let target = checked(cpu, insn, target)?;
    cpu.set_rip(target);
    Err(Stop::Jump)
}

/// CALL through a register or memory.
pub fn call_indirect(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let target = target_operand(cpu, insn)?;
    let back = next(cpu, insn);
    let old = cpu.regs[4];
    // Silicon has written the return address when it finds the target at fault; RSP stays.
    cpu.push(back, branch_size(insn))?;
    let target = match checked(cpu, insn, target) {
        Ok(target) => target,
        Err(fault) => {
            cpu.regs[4] = old;
            return Err(fault.into());
        }
    };
    cpu.set_rip(target);
    Err(Stop::Jump)
}

/// RET, and RET imm16.
pub fn ret(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let old = cpu.regs[4];
    let target = cpu.pop(branch_size(insn))?;
    let target = match checked(cpu, insn, target) {
        Ok(target) => target,
        Err(fault) => {
            cpu.regs[4] = old;
            return Err(fault.into());
        }
    };
    let rsp = cpu.stack_offset(cpu.regs[4].wrapping_add(insn.imm & 0xffff));
    cpu.set_stack_pointer(rsp);
    cpu.set_rip(target);
    Err(Stop::Jump)
}

/// RET without immediate in 64-bit mode.
pub fn ret64(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let target = cpu.load::<u64>(seg::SS, cpu.regs[4])?;
    let target = checked(cpu, insn, target)?;
    cpu.regs[4] = cpu.regs[4].wrapping_add(8);
    cpu.set_rip(target);
    Err(Stop::Jump)
}

/// What LOOP and its siblings test besides the count.
pub mod loop_kind {
    #![expect(missing_docs, reason = "instruction names")]
    pub const LOOP: u8 = 0;
    pub const LOOPE: u8 = 1;
    pub const LOOPNE: u8 = 2;
    pub const JRCXZ: u8 = 3;
}

/// LOOP, LOOPE, LOOPNE, JRCXZ; `insn.extra` is the size of the counter in bytes.
pub fn count_branch<const KIND: u8>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = insn.extra;
    let old = cpu.regs[1];
    let count = cpu.read_gpr(gpr::RCX, size);
    if KIND == loop_kind::JRCXZ {
        return if count == 0 { jump_relative(cpu, insn) } else { Ok(()) };
    }
    let left = count.wrapping_sub(1);
    cpu.write_gpr(gpr::RCX, size, left);
    let counted = cpu.read_gpr(gpr::RCX, size) != 0;
    let taken = counted
        && match KIND {
            loop_kind::LOOPE => cpu.flags.zf(),
            loop_kind::LOOPNE => !cpu.flags.zf(),
            _ => true,
        };
    if !taken {
        return Ok(());
    }
    let result = jump_relative(cpu, insn);
    if result == Err(Stop::Fault) {
        cpu.regs[1] = old;
    }
    result
}

/// BOUND (not in 64-bit mode).
pub fn bound<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let index = cpu.reg::<T>(insn.dst).sx() as i64;
    let offset = cpu.address(insn);
    let low = cpu.load::<T>(insn.segment, offset)?.sx() as i64;
    let second = offset.wrapping_add(u64::from(T::BITS / 8)) & insn.address_mask();
    // Below the lower bound the upper one is not read.
    if index < low || index > cpu.load::<T>(insn.segment, second)?.sx() as i64 {
        return Err(cpu.raise(x86::Exception::plain(x86::Vector::Bound)).into());
    }
    Ok(())
}
