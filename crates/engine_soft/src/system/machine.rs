//! The remaining system instructions: interrupts by software, halting, MSRs, counters, TLB.

use super::deliver::{DR7_GENERAL_DETECT, Delivery};
use crate::cpu::{Cpu, Fault, Flow, Stop, gpr, seg, shadow};
use crate::insn::Insn;
use x86::{Cr4, MpState, RFlags, Vector, msr};

fn require_supervisor(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.cpl != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

fn next(cpu: &Cpu, insn: &Insn) -> u64 {
    cpu.rip().wrapping_add(u64::from(insn.len))
}

fn set_pair(cpu: &mut Cpu, value: u64) {
    cpu.write_gpr(gpr::RAX, 4, value & 0xffff_ffff);
    cpu.write_gpr(gpr::RDX, 4, value >> 32);
}

fn pair(cpu: &Cpu) -> u64 {
    u64::from(cpu.regs[2] as u32) << 32 | u64::from(cpu.regs[0] as u32)
}

/// INT n.
pub fn int(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let vector = insn.imm as u8;
    let delivery = Delivery::software(vector, next(cpu, insn));
    if cpu.is_v86() {
        if cpu.cr4.contains(Cr4::VME) && !cpu.is_redirected(vector)? {
            return int_virtual(cpu, &delivery);
        }
        if cpu.iopl() < 3 {
            return Err(cpu.gp(0).into());
        }
    }
    cpu.interrupt(delivery)?;
    Err(Stop::Jump)
}

/// INT n under VME with a clear redirection bit: through the task's own IVT (SDM 3A 20.3).
fn int_virtual(cpu: &mut Cpu, delivery: &Delivery) -> Flow {
    let pointer = cpu.access_load::<u32>(u64::from(delivery.vector) * 4, true)?;
    let before = cpu.rflags();
    if cpu.iopl() == 3 {
        cpu.enter_real(delivery, (pointer >> 16) as u16, u64::from(pointer & 0xffff))?;
        return Err(Stop::Jump);
    }
    // The pushed IF is VIF, with IOPL 3.
    let vif = before & RFlags::VIF.bits() != 0;
    let mut pushed = before & !RFlags::IF.bits() | RFlags::IOPL.bits();
    if vif {
        pushed |= RFlags::IF.bits();
    }
    let old = cpu.regs[4];
    let cs = cpu.segments[usize::from(seg::CS)].selector;
    for value in [pushed, u64::from(cs), delivery.return_rip.unwrap_or(0)] {
        if let Err(fault) = cpu.push(value, 2) {
            cpu.regs[4] = old;
            return Err(fault.into());
        }
    }
    cpu.segments[usize::from(seg::CS)] = super::segments::v86_segment((pointer >> 16) as u16);
    cpu.set_rip(u64::from(pointer & 0xffff));
    cpu.set_rflags(before & !(RFlags::VIF | RFlags::TF | RFlags::RF).bits());
    cpu.mode_changed();
    Err(Stop::Jump)
}

impl Cpu {
    /// Whether the TSS's redirection bitmap sends a vector to the monitor.
    fn is_redirected(&mut self, vector: u8) -> Result<bool, Fault> {
        let tss = self.segments[usize::from(seg::TR)];
        if tss.limit < 103 {
            return Err(self.gp(0));
        }
        let bitmap = u64::from(self.system_load::<u16>(tss.base.wrapping_add(102))?);
        let Some(start) = bitmap.checked_sub(32) else { return Err(self.gp(0)) };
        let offset = start + u64::from(vector >> 3);
        if offset > u64::from(tss.limit) {
            return Err(self.gp(0));
        }
        Ok(self.system_load::<u8>(tss.base.wrapping_add(offset))? >> (vector & 7) & 1 != 0)
    }
}

/// INT3.
pub fn int3(cpu: &mut Cpu, insn: &Insn) -> Flow {
    cpu.interrupt(Delivery::software(Vector::Breakpoint as u8, next(cpu, insn)))?;
    Err(Stop::Jump)
}

/// INTO.
pub fn into(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if cpu.flags.of() {
        cpu.interrupt(Delivery::software(Vector::Overflow as u8, next(cpu, insn)))?;
        return Err(Stop::Jump);
    }
    Ok(())
}

/// INT1: a #DB trap without privilege check. DR6 tells nothing of it.
pub fn int1(cpu: &mut Cpu, insn: &Insn) -> Flow {
    cpu.dr7 &= !DR7_GENERAL_DETECT;
    let back = Some(next(cpu, insn));
    cpu.interrupt(Delivery { return_rip: back, ..Delivery::external(Vector::Debug as u8) })?;
    Err(Stop::Jump)
}

/// HLT.
pub fn hlt(cpu: &mut Cpu, _: &Insn) -> Flow {
    require_supervisor(cpu)?;
    cpu.mp_state = MpState::Halted;
    cpu.halts += 1;
    Err(Stop::Done)
}

/// Which flag CLI and STI change here: IF, or VIF under VME and PVI; `#GP(0)` if neither.
fn interrupt_flag(cpu: &mut Cpu) -> Result<RFlags, Fault> {
    if !cpu.cr0.contains(x86::Cr0::PE) || cpu.cpl <= cpu.iopl() {
        return Ok(RFlags::IF);
    }
    let extension = if cpu.is_v86() { Cr4::VME } else { Cr4::PVI };
    if cpu.cpl == 3 && cpu.cr4.contains(extension) { Ok(RFlags::VIF) } else { Err(cpu.gp(0)) }
}

/// CLI.
pub fn cli(cpu: &mut Cpu, _: &Insn) -> Flow {
    let flag = interrupt_flag(cpu)?;
    cpu.set_flag(flag, false);
    Ok(())
}

/// STI.
pub fn sti(cpu: &mut Cpu, _: &Insn) -> Flow {
    let flag = interrupt_flag(cpu)?;
    if flag == RFlags::VIF && cpu.has_flag(RFlags::VIP) {
        return Err(cpu.gp(0).into());
    }
    if cpu.has_flag(flag) {
        return Ok(());
    }
    cpu.set_flag(flag, true);
    if flag == RFlags::IF {
        cpu.shadow = shadow::STI;
    }
    Err(Stop::Done)
}

/// STAC (CLAC if not `SET`).
pub fn access_flag<const SET: bool>(cpu: &mut Cpu, _: &Insn) -> Flow {
    if cpu.cpl != 0 {
        return Err(cpu.ud().into());
    }
    cpu.set_flag(RFlags::AC, SET);
    Err(Stop::Done)
}

/// CPUID.
pub fn cpuid(cpu: &mut Cpu, _: &Insn) -> Flow {
    let [eax, ebx, ecx, edx] = cpu.cpuid(cpu.regs[0] as u32, cpu.regs[1] as u32);
    for (register, value) in [(0, eax), (1, ecx), (2, edx), (3, ebx)] {
        cpu.regs[register] = u64::from(value);
    }
    Ok(())
}

fn counter_allowed(cpu: &mut Cpu, flag: Cr4, wanted: bool) -> Result<(), Fault> {
    let open = cpu.cr4.contains(flag) == wanted;
    if open || cpu.cpl == 0 { Ok(()) } else { Err(cpu.gp(0)) }
}

/// RDTSC.
pub fn rdtsc(cpu: &mut Cpu, _: &Insn) -> Flow {
    counter_allowed(cpu, Cr4::TSD, false)?;
    let value = cpu.system.tsc();
    set_pair(cpu, value);
    Ok(())
}

/// RDTSCP.
pub fn rdtscp(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let result = rdtsc(cpu, insn);
    if result.is_ok() {
        cpu.write_gpr(gpr::RCX, 4, cpu.system.msrs.tsc_aux & 0xffff_ffff);
    }
    result
}

/// RDPID.
pub fn rdpid(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = if insn.code_size() == 64 { 8 } else { 4 };
    cpu.write_gpr(insn.dst, size, cpu.system.msrs.tsc_aux & 0xffff_ffff);
    Ok(())
}

/// RDPMC: there are no counters.
pub fn rdpmc(cpu: &mut Cpu, _: &Insn) -> Flow {
    Err(cpu.gp(0).into())
}

/// RDMSR.
pub fn rdmsr(cpu: &mut Cpu, _: &Insn) -> Flow {
    require_supervisor(cpu)?;
    let index = cpu.regs[1] as u32;
    if needs_apic(cpu, index) {
        return super::control::leave_apic(cpu);
    }
    match cpu.read_msr(index) {
        Some(value) => set_pair(cpu, value),
        None => return Err(cpu.gp(0).into()),
    }
    Ok(())
}

/// WRMSR.
pub fn wrmsr(cpu: &mut Cpu, _: &Insn) -> Flow {
    require_supervisor(cpu)?;
    let index = cpu.regs[1] as u32;
    if needs_apic(cpu, index) {
        return super::control::leave_apic(cpu);
    }
    if cpu.write_msr(index, pair(cpu)).is_none() {
        return Err(cpu.gp(0).into());
    }
    Err(Stop::Done)
}

fn needs_apic(cpu: &Cpu, index: u32) -> bool {
    let of_apic = matches!(index, msr::APIC_BASE | msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST);
    of_apic && cpu.system.lapic.is_none()
}

/// SWAPGS.
pub fn swapgs(cpu: &mut Cpu, _: &Insn) -> Flow {
    if !cpu.long64 {
        return Err(cpu.ud().into());
    }
    require_supervisor(cpu)?;
    let gs = usize::from(seg::GS);
    std::mem::swap(&mut cpu.segments[gs].base, &mut cpu.system.msrs.kernel_gs_base);
    cpu.segment_base[gs] = cpu.segments[gs].base;
    Ok(())
}

/// RDFSBASE and RDGSBASE; `insn.extra` is the segment.
pub fn read_base(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if !cpu.long64 || !cpu.cr4.contains(Cr4::FSGSBASE) {
        return Err(cpu.ud().into());
    }
    cpu.write_gpr(insn.dst, insn.operand_size.max(4), cpu.segments[usize::from(insn.extra & 7)].base);
    Ok(())
}

/// WRFSBASE and WRGSBASE.
pub fn write_base(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if !cpu.long64 || !cpu.cr4.contains(Cr4::FSGSBASE) {
        return Err(cpu.ud().into());
    }
    let value = cpu.read_gpr(insn.dst, insn.operand_size.max(4));
    if !cpu.is_canonical(value) {
        return Err(cpu.gp(0).into());
    }
    let number = usize::from(insn.extra & 7);
    cpu.segments[number].base = value;
    cpu.segment_base[number] = value;
    Ok(())
}

/// INVLPG.
pub fn invlpg(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_supervisor(cpu)?;
    let linear = cpu.address(insn).wrapping_add(cpu.segment_base[usize::from(insn.segment & 7)]);
    let linear = if cpu.long64 { linear } else { linear & 0xffff_ffff };
    if cpu.is_canonical(linear) {
        cpu.invalidate_page(linear);
    }
    Err(Stop::Done)
}

/// INVPCID.
pub fn invpcid(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_supervisor(cpu)?;
    let kind = cpu.read_gpr(insn.dst, if insn.code_size() == 64 { 8 } else { 4 });
    let descriptor = cpu.load_operand::<u128>(insn)?;
    let (low, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    let pcid_off = !cpu.cr4.contains(Cr4::PCIDE);
    let illegal = kind > 3
        || kind < 2 && (low >> 12 != 0 || pcid_off && low != 0)
        || kind == 0 && !cpu.is_canonical(linear);
    if illegal {
        return Err(cpu.gp(0).into());
    }
    cpu.invpcid(kind, low as u16, linear);
    Err(Stop::Done)
}

/// INVD, WBINVD: memory is coherent.
pub fn cache(cpu: &mut Cpu, _: &Insn) -> Flow {
    require_supervisor(cpu)?;
    Ok(())
}

/// SERIALIZE.
pub fn serialize(_: &mut Cpu, _: &Insn) -> Flow {
    Err(Stop::Done)
}
