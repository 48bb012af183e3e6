//! Descriptor-table registers and questions about selectors (SDM 2A, 2B).

use super::descriptor::{Descriptor, code_of, is_null, system_type};
use super::segments::null_segment;
use crate::cpu::{Cpu, Fault, Flow, seg};
use crate::insn::Insn;
use x86::{Cr4, DescriptorTable};

fn require_supervisor(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.cpl != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

/// UMIP: the instructions that tell about system state are the supervisor's.
fn require_umip(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.cpl != 0 && cpu.cr4.contains(Cr4::UMIP) { Err(cpu.gp(0)) } else { Ok(()) }
}

/// `#UD` in real and virtual-8086 mode.
fn require_protected(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.is_protected() { Ok(()) } else { Err(cpu.ud()) }
}

fn operand16(cpu: &mut Cpu, insn: &Insn) -> Result<u16, Fault> {
    if insn.has_memory() { cpu.load_operand::<u16>(insn) } else { Ok(cpu.reg::<u16>(insn.dst)) }
}

/// LGDT (`GDT`) and LIDT.
pub fn load_table<const GDT: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_supervisor(cpu)?;
    let limit = cpu.load_operand::<u16>(insn)?;
    let at = cpu.address(insn).wrapping_add(2) & insn.address_mask();
    let base = if insn.code_size() == 64 {
        let base = cpu.load::<u64>(insn.segment, at)?;
        if !cpu.is_canonical(base) {
            return Err(cpu.gp(0).into());
        }
        base
    } else {
        let base = u64::from(cpu.load::<u32>(insn.segment, at)?);
        if insn.operand_size == 2 { base & 0xff_ffff } else { base }
    };
    let table = DescriptorTable { base, limit };
    if GDT {
        cpu.gdtr = table;
    } else {
        cpu.idtr = table;
    }
    Ok(())
}

/// SGDT (`GDT`) and SIDT.
pub fn store_table<const GDT: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_umip(cpu)?;
    let table = if GDT { cpu.gdtr } else { cpu.idtr };
    let offset = cpu.address(insn);
    let size = if insn.code_size() == 64 { 10 } else { 6 };
    cpu.probe(insn.segment, offset, size, true)?;
    cpu.store::<u16>(insn.segment, offset, table.limit)?;
    let at = offset.wrapping_add(2) & insn.address_mask();
    if insn.code_size() == 64 {
        cpu.store::<u64>(insn.segment, at, table.base)?;
    } else {
        cpu.store::<u32>(insn.segment, at, table.base as u32)?;
    }
    Ok(())
}

/// LLDT.
pub fn lldt(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_protected(cpu)?;
    require_supervisor(cpu)?;
    let selector = operand16(cpu, insn)?;
    if is_null(selector) {
        cpu.segments[usize::from(seg::LDTR)] = null_segment(selector, 0);
        return Ok(());
    }
    let segment = cpu.system_segment(selector, &[system_type::LDT])?;
    cpu.segments[usize::from(seg::LDTR)] = segment;
    Ok(())
}

/// LTR.
pub fn ltr(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_protected(cpu)?;
    require_supervisor(cpu)?;
    let selector = operand16(cpu, insn)?;
    if is_null(selector) {
        return Err(cpu.gp(0).into());
    }
    let legal: &[u8] =
        if cpu.is_long() { &[system_type::TSS] } else { &[system_type::TSS, system_type::TSS16] };
    let mut segment = cpu.system_segment(selector, legal)?;
    let descriptor = cpu.descriptor(selector, 0)?;
    let busy = cpu.set_descriptor_type(selector, descriptor, descriptor.kind() | 2)?;
    segment.attributes = busy.attributes();
    cpu.segments[usize::from(seg::TR)] = segment;
    Ok(())
}

impl Cpu {
    /// A system segment in the GDT for LLDT and LTR.
    fn system_segment(&mut self, selector: u16, legal: &[u8]) -> Result<x86::Segment, Fault> {
        if selector & 4 != 0 {
            return Err(self.gp(code_of(selector)));
        }
        let descriptor = self.descriptor(selector, 0)?;
        if !descriptor.is_system() || !legal.contains(&descriptor.kind()) {
            return Err(self.gp(code_of(selector)));
        }
        if !descriptor.present() {
            return Err(self.np(code_of(selector)));
        }
        let mut segment = descriptor.segment(selector);
        if self.is_long() {
            segment.base |= self.descriptor_upper(selector, 0)?;
            if !self.is_canonical(segment.base) {
                return Err(self.gp(code_of(selector)));
            }
        }
        Ok(segment)
    }
}

/// SLDT and STR.
pub fn store_selector<const REGISTER: u8>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_protected(cpu)?;
    require_umip(cpu)?;
    let selector = cpu.segments[usize::from(REGISTER)].selector;
    if insn.has_memory() {
        return Ok(cpu.store_operand(insn, selector)?);
    }
    cpu.write_gpr(insn.dst, insn.operand_size, u64::from(selector));
    Ok(())
}

/// SMSW.
pub fn smsw(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_umip(cpu)?;
    let value = cpu.cr0.bits();
    if insn.has_memory() {
        return Ok(cpu.store_operand(insn, value as u16)?);
    }
    cpu.write_gpr(insn.dst, insn.operand_size, value);
    Ok(())
}

/// The descriptor of a selector that the current code may ask about.
fn visible(cpu: &mut Cpu, selector: u16, legal_system: &[u8]) -> Result<Option<Descriptor>, Fault> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(descriptor) = cpu.find_descriptor(selector)? else { return Ok(None) };
    if descriptor.is_system() && !legal_system.contains(&descriptor.kind()) {
        return Ok(None);
    }
    let level = (selector as u8 & 3).max(cpu.cpl);
    let open = descriptor.is_conforming() || level <= descriptor.dpl();
    Ok(open.then_some(descriptor))
}

fn selector_operand(cpu: &mut Cpu, insn: &Insn) -> Result<u16, Fault> {
    if insn.has_memory() { cpu.load_operand::<u16>(insn) } else { Ok(cpu.reg::<u16>(insn.src)) }
}

/// LAR.
pub fn lar(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_protected(cpu)?;
    let selector = selector_operand(cpu, insn)?;
    let legal: &[u8] = if cpu.is_long() { &[2, 9, 11, 12] } else { &[1, 2, 3, 4, 5, 9, 11, 12] };
    let found = visible(cpu, selector, legal)?;
    cpu.flags.set_zf(found.is_some());
    if let Some(descriptor) = found {
        cpu.write_gpr(insn.dst, insn.operand_size, descriptor.0 >> 32 & 0xff_ff00);
    }
    Ok(())
}

/// LSL.
pub fn lsl(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_protected(cpu)?;
    let selector = selector_operand(cpu, insn)?;
    let legal: &[u8] = if cpu.is_long() { &[2, 9, 11] } else { &[1, 2, 3, 9, 11] };
    let found = visible(cpu, selector, legal)?;
    cpu.flags.set_zf(found.is_some());
    if let Some(descriptor) = found {
        cpu.write_gpr(insn.dst, insn.operand_size, u64::from(descriptor.limit()));
    }
    Ok(())
}

/// VERW (`WRITE`) and VERR.
pub fn verify<const WRITE: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_protected(cpu)?;
    let selector = operand16(cpu, insn)?;
    let found = visible(cpu, selector, &[])?;
    let ok = found.is_some_and(|d| if WRITE { d.is_writable_data() } else { d.is_readable() });
    cpu.flags.set_zf(ok);
    Ok(())
}

/// ARPL.
pub fn arpl(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_protected(cpu)?;
    let (old, source) = if insn.has_memory() {
        (cpu.load_operand::<u16>(insn)?, cpu.reg::<u16>(insn.dst))
    } else {
        (cpu.reg::<u16>(insn.dst), cpu.reg::<u16>(insn.src))
    };
    let raise = old & 3 < source & 3;
    if raise {
        let new = old & !3 | source & 3;
        if insn.has_memory() {
            cpu.store_operand(insn, new)?;
        } else {
            cpu.set_reg(insn.dst, new);
        }
    }
    cpu.flags.set_zf(raise);
    Ok(())
}
