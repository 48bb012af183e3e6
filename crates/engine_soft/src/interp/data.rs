//! Data movement, the stack, and flags as data.

use super::alu::source;
use super::control::condition;
use super::int::Int;
use crate::cpu::{Cpu, Flow, Stop, gpr, seg};
use crate::insn::Insn;
use x86::{Cr4, RFlags};

/// MOV register, register.
pub fn mov_rr<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    cpu.reg::<T>(insn.src).write(cpu, insn.dst);
    Ok(())
}

/// MOV register, immediate.
pub fn mov_ri<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    T::of(insn.imm).write(cpu, insn.dst);
    Ok(())
}

/// MOV register, memory.
pub fn mov_rm<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = cpu.load_operand::<T>(insn)?;
    value.write(cpu, insn.dst);
    Ok(())
}

/// MOV AL, AX, EAX or RAX from a bare 64-bit address, which is the immediate.
pub fn mov_absolute_to_a<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value: T = cpu.load(insn.segment, insn.imm)?;
    value.write(cpu, gpr::RAX);
    Ok(())
}

/// MOV to a bare 64-bit address from AL, AX, EAX or RAX.
pub fn mov_a_to_absolute<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = cpu.reg::<T>(gpr::RAX);
    Ok(cpu.store(insn.segment, insn.imm, value)?)
}

/// MOV memory, register.
pub fn mov_mr<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = cpu.reg::<T>(insn.dst);
    Ok(cpu.store_operand(insn, value)?)
}

/// MOV memory, immediate.
pub fn mov_mi<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    Ok(cpu.store_operand(insn, T::of(insn.imm))?)
}

/// MOVZX (MOVSX if `SIGNED`) register from `F` to `T`.
pub fn extend_r<const SIGNED: bool, F: Int, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = cpu.reg::<F>(insn.src);
    T::of(if SIGNED { value.sx() } else { value.zx() }).write(cpu, insn.dst);
    Ok(())
}

/// MOVZX (MOVSX if `SIGNED`) memory.
pub fn extend_m<const SIGNED: bool, F: Int, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = cpu.load_operand::<F>(insn)?;
    T::of(if SIGNED { value.sx() } else { value.zx() }).write(cpu, insn.dst);
    Ok(())
}

/// LEA.
pub fn lea<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    T::of(cpu.address(insn)).write(cpu, insn.dst);
    Ok(())
}

/// CMOVcc: the source is read, and a 32-bit destination's upper half cleared, in any case.
pub fn cmov<const C: u8, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = source::<T>(cpu, insn)?;
    let value = if condition::<C>(cpu.flags) { value } else { cpu.reg(insn.dst) };
    value.write(cpu, insn.dst);
    Ok(())
}

/// SETcc.
pub fn setcc<const C: u8>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = u8::from(condition::<C>(cpu.flags));
    if insn.has_memory() {
        return Ok(cpu.store_operand(insn, value)?);
    }
    cpu.set_reg(insn.dst, value);
    Ok(())
}

/// No operation.
pub fn nop(_: &mut Cpu, _: &Insn) -> Flow {
    Ok(())
}

/// Lets events in: a spinning processor's hint.
pub fn pause(cpu: &mut Cpu, _: &Insn) -> Flow {
    cpu.block_end = 0;
    std::hint::spin_loop();
    Ok(())
}

/// A memory fence.
pub fn fence(_: &mut Cpu, _: &Insn) -> Flow {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// CLFLUSH and its kin: a load's faults, and nothing else.
pub fn touch(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let offset = cpu.address(insn);
    Ok(cpu.probe(insn.segment, offset, 1, false)?)
}

/// CBW, CWDE, CDQE.
pub fn sign_extend_a<F: Int, T: Int>(cpu: &mut Cpu, _: &Insn) -> Flow {
    T::of(cpu.reg::<F>(gpr::RAX).sx()).write(cpu, gpr::RAX);
    Ok(())
}

/// CWD, CDQ, CQO.
pub fn sign_fill_d<T: Int>(cpu: &mut Cpu, _: &Insn) -> Flow {
    let fill = if cpu.reg::<T>(gpr::RAX).top() { u64::MAX } else { 0 };
    T::of(fill).write(cpu, gpr::RDX);
    Ok(())
}

/// XLAT.
pub fn xlat(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let offset = cpu.regs[3].wrapping_add(u64::from(cpu.reg::<u8>(gpr::RAX))) & insn.address_mask();
    let value = cpu.load::<u8>(insn.segment, offset)?;
    cpu.set_reg(gpr::RAX, value);
    Ok(())
}

/// PUSH register in 64-bit mode.
pub fn push64_r(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let rsp = cpu.regs[4].wrapping_sub(8);
    cpu.store::<u64>(seg::SS, rsp, cpu.reg(insn.dst))?;
    cpu.regs[4] = rsp;
    Ok(())
}

/// POP register in 64-bit mode.
pub fn pop64_r(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = cpu.load::<u64>(seg::SS, cpu.regs[4])?;
    cpu.regs[4] = cpu.regs[4].wrapping_add(8);
    cpu.set_reg(insn.dst, value);
    Ok(())
}

/// Size of a stack operand: never 32 bits in 64-bit mode.
fn stack_size(insn: &Insn) -> u8 {
    if insn.code_size() == 64 && insn.operand_size == 4 { 8 } else { insn.operand_size }
}

/// PUSH register, any mode.
pub fn push_r(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = cpu.reg::<u64>(insn.dst);
    Ok(cpu.push(value, stack_size(insn))?)
}

/// PUSH immediate.
pub fn push_i(cpu: &mut Cpu, insn: &Insn) -> Flow {
    Ok(cpu.push(insn.imm, stack_size(insn))?)
}

/// PUSH memory.
pub fn push_m(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = match stack_size(insn) {
        8 => cpu.load_operand::<u64>(insn)?,
        4 => u64::from(cpu.load_operand::<u32>(insn)?),
        _ => u64::from(cpu.load_operand::<u16>(insn)?),
    };
    Ok(cpu.push(value, stack_size(insn))?)
}

/// POP register, any mode.
pub fn pop_r(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = stack_size(insn);
    let value = cpu.pop(size)?;
    cpu.write_gpr(insn.dst, size, value);
    Ok(())
}

/// POP memory: RSP in the address is the one after the pop.
pub fn pop_m(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = stack_size(insn);
    let old = cpu.regs[4];
    let value = cpu.pop(size)?;
    let result = match size {
        8 => cpu.store_operand(insn, value),
        4 => cpu.store_operand(insn, value as u32),
        _ => cpu.store_operand(insn, value as u16),
    };
    if result.is_err() {
        cpu.regs[4] = old;
    }
    Ok(result?)
}

/// PUSHA, PUSHAD.
pub fn pusha(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = insn.operand_size;
    let old = cpu.regs[4];
    // Silicon writes what it can before the fault.
    for number in 0..8 {
        let value = if number == 4 { old } else { cpu.regs[number] };
        if let Err(fault) = cpu.push(value, size) {
            cpu.regs[4] = old;
            return Err(fault.into());
        }
    }
    Ok(())
}

/// POPA, POPAD.
pub fn popa(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = insn.operand_size;
    let old = cpu.regs[4];
    // As on silicon, registers popped before a fault have their new values.
    for number in (0..8).rev() {
        match cpu.pop(size) {
            Ok(_) if number == 4 => {}
            Ok(popped) => cpu.write_gpr(number * 8, size, popped),
            Err(fault) => {
                cpu.regs[4] = old;
                return Err(fault.into());
            }
        }
    }
    Ok(())
}

/// ENTER.
pub fn enter(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = stack_size(insn);
    let (room, level) = (insn.imm & 0xffff, insn.imm >> 32 & 31);
    let (old_rsp, old_rbp) = (cpu.regs[4], cpu.regs[5]);
    let result = enter_frame(cpu, size, room, level);
    if result.is_err() {
        (cpu.regs[4], cpu.regs[5]) = (old_rsp, old_rbp);
    }
    result
}

fn enter_frame(cpu: &mut Cpu, size: u8, room: u64, level: u64) -> Flow {
    let step = u64::from(size);
    let mut frame = cpu.regs[5];
    cpu.push(frame, size)?;
    let new_frame = cpu.regs[4];
    for _ in 1..level {
        frame = cpu.stack_offset(frame.wrapping_sub(step));
        let value = match size {
            8 => cpu.load::<u64>(seg::SS, frame)?,
            4 => u64::from(cpu.load::<u32>(seg::SS, frame)?),
            _ => u64::from(cpu.load::<u16>(seg::SS, frame)?),
        };
        cpu.push(value, size)?;
    }
    if level > 0 {
        cpu.push(new_frame, size)?;
    }
    let rsp = cpu.stack_offset(cpu.regs[4].wrapping_sub(room));
    cpu.probe(seg::SS, rsp, u32::from(size), true)?;
    cpu.set_stack_pointer(rsp);
    cpu.write_gpr(gpr::RBP, size, new_frame);
    Ok(())
}

/// LEAVE.
pub fn leave(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = stack_size(insn);
    let old = cpu.regs[4];
    let frame = cpu.stack_offset(cpu.regs[5]);
    cpu.set_stack_pointer(frame);
    match cpu.pop(size) {
        Ok(value) => {
            cpu.write_gpr(gpr::RBP, size, value);
            Ok(())
        }
        Err(fault) => {
            cpu.regs[4] = old;
            Err(fault.into())
        }
    }
}

/// LAHF.
pub fn lahf(cpu: &mut Cpu, _: &Insn) -> Flow {
    let flags = cpu.flags.bits() as u8 | 2;
    cpu.set_reg(gpr::RAX + 1, flags);
    Ok(())
}

/// SAHF.
pub fn sahf(cpu: &mut Cpu, _: &Insn) -> Flow {
    let overflow = cpu.flags.bits() & RFlags::OF.bits();
    let bits = u64::from(cpu.reg::<u8>(gpr::RAX + 1)) & 0xd5;
    cpu.flags.set_bits(bits | overflow);
    Ok(())
}

/// CLC, STC, CMC (0, 1, 2).
pub fn carry_flag<const KIND: u8>(cpu: &mut Cpu, _: &Insn) -> Flow {
    let carry = match KIND {
        0 => false,
        1 => true,
        _ => !cpu.flags.cf(),
    };
    cpu.flags.set_cf(carry);
    Ok(())
}

/// CLD, STD.
pub fn direction_flag<const SET: bool>(cpu: &mut Cpu, _: &Insn) -> Flow {
    if SET {
        cpu.system_flags |= RFlags::DF.bits();
    } else {
        cpu.system_flags &= !RFlags::DF.bits();
    }
    Ok(())
}

/// PUSHF, PUSHFD, PUSHFQ (SDM 2B).
pub fn pushf(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = stack_size(insn);
    let mut flags = cpu.rflags() & !(RFlags::VM | RFlags::RF).bits();
    if cpu.is_v86() && cpu.iopl() < 3 {
        if size != 2 || !cpu.cr4.contains(Cr4::VME) {
            return Err(cpu.gp(0).into());
        }
        let virtual_if = flags & RFlags::VIF.bits() != 0;
        flags = flags & !RFlags::IF.bits() | RFlags::IOPL.bits();
        if virtual_if {
            flags |= RFlags::IF.bits();
        }
    }
    Ok(cpu.push(flags, size)?)
}

/// POPF, POPFD, POPFQ (SDM 2B).
pub fn popf(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = stack_size(insn);
    if cpu.is_v86() && cpu.iopl() < 3 {
        return popf_virtual(cpu, size);
    }
    let popped = cpu.pop(size)?;
    let mut writable = RFlags::ARITHMETIC | RFlags::TF | RFlags::DF | RFlags::NT;
    let protected = cpu.cr0.contains(x86::Cr0::PE);
    if !protected || cpu.cpl <= cpu.iopl() {
        writable |= RFlags::IF;
    }
    if !cpu.is_v86() && (!protected || cpu.cpl == 0) {
        writable |= RFlags::IOPL;
    }
    if size > 2 {
        writable |= RFlags::AC | RFlags::ID;
    }
    let old = cpu.rflags();
    let clear = RFlags::RF.bits();
    let new = (old & !writable.bits() | popped & writable.bits()) & !clear;
    if (old ^ new) & !RFlags::ARITHMETIC.bits() == 0 {
        cpu.flags.set_bits(new);
        return Ok(());
    }
    cpu.set_rflags(new);
    Err(Stop::Done)
}

fn popf_virtual(cpu: &mut Cpu, size: u8) -> Flow {
    if size != 2 || !cpu.cr4.contains(Cr4::VME) {
        return Err(cpu.gp(0).into());
    }
    let old_rsp = cpu.regs[4];
    let popped = cpu.pop(2)?;
    let wants_if = popped & RFlags::IF.bits() != 0;
    let pending = cpu.has_flag(RFlags::VIP) && wants_if;
    if popped & RFlags::TF.bits() != 0 || pending {
        cpu.regs[4] = old_rsp;
        return Err(cpu.gp(0).into());
    }
    let writable = (RFlags::ARITHMETIC | RFlags::TF | RFlags::DF | RFlags::NT).bits();
    let mut new = cpu.rflags() & !(writable | RFlags::VIF.bits() | RFlags::RF.bits()) | popped & writable;
    if wants_if {
        new |= RFlags::VIF.bits();
    }
    cpu.set_rflags(new);
    Err(Stop::Done)
}
