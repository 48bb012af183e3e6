//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM 2B, SDM 3A 5.8.7, 5.8.8).

use crate::cpu::{Cpu, Flow, gpr, seg};
use crate::insn::Insn;
use x86::{Cr0, Efer, RFlags, Segment, SegmentAttributes};

const CODE64: u16 = 0xa09b;
const CODE32: u16 = 0xc09b;
const DATA: u16 = 0xc093;

fn flat(selector: u16, attributes: u16) -> Segment {
    let dpl = (selector & 3) << 5;
    Segment { selector, base: 0, limit: u32::MAX, attributes: SegmentAttributes(attributes | dpl) }
}

/// Goes to flat segments at the selectors' privilege level.
fn enter(cpu: &mut Cpu, code: Segment, stack: Segment, rip: u64) {
    cpu.cpl = code.selector as u8 & 3;
    cpu.segments[usize::from(seg::CS)] = code;
    cpu.segments[usize::from(seg::SS)] = stack;
    cpu.set_rip(rip);
}

/// Ends with a look at the flags if something hangs on them.
fn jumped(cpu: &mut Cpu) -> Flow {
    cpu.mode_changed();
    let look = cpu.has_flag(RFlags::TF);
    super::far_return::jumped(cpu, look)
}

/// SYSCALL; in compatibility mode only on AMD's processors.
pub fn syscall(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let amd = cpu.system.model.vendor == engine::cpu_model::Vendor::Amd;
    if !cpu.efer.contains(Efer::SCE) || !(cpu.long64 || amd && cpu.is_long()) {
        return Err(cpu.ud().into());
    }
    let msrs = &cpu.system.msrs;
    let rip = if cpu.long64 { msrs.lstar } else { msrs.cstar };
    let selector = (msrs.star >> 32) as u16 & !3;
    let mask = msrs.fmask | RFlags::RF.bits();
    let flags = cpu.rflags();
    cpu.regs[1] = cpu.rip().wrapping_add(u64::from(insn.len));
    cpu.set_reg::<u64>(gpr::RAX + 11 * 8, flags & !RFlags::RF.bits());
    enter(cpu, flat(selector, CODE64), flat(selector.wrapping_add(8), DATA), rip);
    cpu.set_rflags(flags & !mask | RFlags::FIXED.bits());
    jumped(cpu)
}

/// SYSRET.
pub fn sysret(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if !cpu.efer.contains(Efer::SCE) || !cpu.long64 {
        return Err(cpu.ud().into());
    }
    if cpu.cpl != 0 {
        return Err(cpu.gp(0).into());
    }
    let base = (cpu.system.msrs.star >> 48) as u16;
    let flags = cpu.regs[11] & 0x3c_7fd7 | RFlags::FIXED.bits();
    let stack = flat(base.wrapping_add(8) | 3, DATA);
    if insn.operand_size == 8 {
        let rip = cpu.regs[1];
        if !cpu.is_canonical(rip) {
            return Err(cpu.gp(0).into());
        }
        enter(cpu, flat(base.wrapping_add(16) | 3, CODE64), stack, rip);
    } else {
        enter(cpu, flat(base | 3, CODE32), stack, cpu.regs[1] & 0xffff_ffff);
    }
    cpu.set_rflags(flags);
    jumped(cpu)
}

/// SYSENTER.
pub fn sysenter(cpu: &mut Cpu, _: &Insn) -> Flow {
    let msrs = &cpu.system.msrs;
    let (selector, rip, rsp) = (msrs.sysenter_cs as u16 & !3, msrs.sysenter_eip, msrs.sysenter_esp);
    if !cpu.cr0.contains(Cr0::PE) || selector == 0 {
        return Err(cpu.gp(0).into());
    }
    let long = cpu.is_long();
    let attributes = if long { CODE64 } else { CODE32 };
    let truncate = |value: u64| if long { value } else { value & 0xffff_ffff };
    enter(cpu, flat(selector, attributes), flat(selector.wrapping_add(8), DATA), truncate(rip));
    cpu.regs[4] = truncate(rsp);
    cpu.set_rflags(cpu.rflags() & !(RFlags::VM | RFlags::IF).bits());
    jumped(cpu)
}

/// SYSEXIT.
pub fn sysexit(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let selector = cpu.system.msrs.sysenter_cs as u16 & !3;
    if selector == 0 || !cpu.cr0.contains(Cr0::PE) || cpu.cpl != 0 || cpu.is_v86() {
        return Err(cpu.gp(0).into());
    }
    let (rip, rsp) = (cpu.regs[2], cpu.regs[1]);
    if insn.operand_size == 8 {
        if !cpu.is_canonical(rip) || !cpu.is_canonical(rsp) {
            return Err(cpu.gp(0).into());
        }
        let code = flat(selector.wrapping_add(32) | 3, CODE64);
        enter(cpu, code, flat(selector.wrapping_add(40) | 3, DATA), rip);
        cpu.regs[4] = rsp;
    } else {
        let code = flat(selector.wrapping_add(16) | 3, CODE32);
        enter(cpu, code, flat(selector.wrapping_add(24) | 3, DATA), rip & 0xffff_ffff);
        cpu.regs[4] = rsp & 0xffff_ffff;
    }
    jumped(cpu)
}
