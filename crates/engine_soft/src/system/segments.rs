//! Segment registers: MOV, PUSH, POP, LDS and friends (SDM 2B MOV, SDM 3A 5.4).

use super::descriptor::{code_of, is_null};
use crate::cpu::{Cpu, Fault, Flow, Stop, seg, shadow};
use crate::insn::Insn;
use x86::{Segment, SegmentAttributes};

/// Attributes of every segment in virtual-8086 mode.
const V86_ATTRIBUTES: SegmentAttributes = SegmentAttributes(0xf3);

/// A segment in virtual-8086 mode.
pub fn v86_segment(selector: u16) -> Segment {
    Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, attributes: V86_ATTRIBUTES }
}

/// A null segment; the DPL is kept for SS, where the privilege level is read from.
pub fn null_segment(selector: u16, cpl: u8) -> Segment {
    let attributes = SegmentAttributes(u16::from(cpl) << 5);
    Segment { selector, base: 0, limit: 0, attributes }
}

impl Cpu {
    /// A real-mode load: only selector and base change.
    pub(crate) fn real_segment(&self, number: u8, selector: u16) -> Segment {
        if self.is_v86() {
            return v86_segment(selector);
        }
        Segment { selector, base: u64::from(selector) << 4, ..self.segments[usize::from(number)] }
    }

    /// Loads ES, SS, DS, FS or GS.
    pub(crate) fn load_segment(&mut self, number: u8, selector: u16) -> Result<(), Fault> {
        let segment = if !self.is_protected() {
            self.real_segment(number, selector)
        } else if number == seg::SS {
            self.checked_stack_segment(selector)?
        } else {
            self.checked_data_segment(selector)?
        };
        self.segments[usize::from(number)] = segment;
        self.mode_changed();
        Ok(())
    }

    fn checked_stack_segment(&mut self, selector: u16) -> Result<Segment, Fault> {
        let cpl = self.cpl;
        if is_null(selector) {
            if self.long64 && cpl < 3 && selector as u8 & 3 == cpl {
                return Ok(null_segment(selector, cpl));
            }
            return Err(self.gp(0));
        }
        let descriptor = self.stack_descriptor(selector, cpl, 0, x86::Vector::GeneralProtection)?;
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    fn checked_data_segment(&mut self, selector: u16) -> Result<Segment, Fault> {
        if is_null(selector) {
            return Ok(null_segment(selector, 0));
        }
        let descriptor = self.descriptor(selector, 0)?;
        let rpl = selector as u8 & 3;
        let reachable = descriptor.is_conforming() || rpl.max(self.cpl) <= descriptor.dpl();
        if !descriptor.is_readable() || !reachable {
            return Err(self.gp(code_of(selector)));
        }
        if !descriptor.present() {
            return Err(self.np(code_of(selector)));
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    /// After a return to an outer level: segments that it must not see become null (SDM 3A 5.8.6).
    pub(crate) fn drop_inner_segments(&mut self) {
        for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let held = &mut self.segments[usize::from(number)];
            let conforming = held.attributes.kind() & 0xc == 0xc;
            // A null FS or GS stays as it is: in 64-bit mode its base is in use.
            if held.attributes.present() && held.attributes.dpl() < self.cpl && !conforming {
                *held = null_segment(0, 0);
            }
        }
    }
}

/// MOV to a segment register.
pub fn mov_to(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let number = insn.dst;
    let selector = if insn.has_memory() { cpu.load_operand::<u16>(insn)? } else { cpu.reg::<u16>(insn.src) };
    if number == seg::CS {
        return Err(cpu.ud().into());
    }
    cpu.load_segment(number, selector)?;
    if number == seg::SS {
        cpu.shadow = shadow::MOV_SS;
    }
    Err(Stop::Done)
}

/// MOV from a segment register.
pub fn mov_from(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if insn.has_memory() {
        let selector = cpu.segments[usize::from(insn.dst & 7)].selector;
        return Ok(cpu.store_operand(insn, selector)?);
    }
    let selector = cpu.segments[usize::from(insn.src & 7)].selector;
    cpu.write_gpr(insn.dst, insn.operand_size, u64::from(selector));
    Ok(())
}

fn stack_size(insn: &Insn) -> u8 {
    if insn.code_size() == 64 && insn.operand_size == 4 { 8 } else { insn.operand_size }
}

/// PUSH of a segment register.
pub fn push(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let selector = cpu.segments[usize::from(insn.dst & 7)].selector;
    let size = stack_size(insn);
    if size != 4 {
        return Ok(cpu.push(u64::from(selector), size)?);
    }
    // With 32-bit operands only the selector's two bytes are written (SDM 2B PUSH: all recent processors).
    let offset = cpu.stack_offset(cpu.regs[4].wrapping_sub(4));
    cpu.store::<u16>(seg::SS, offset, selector)?;
    cpu.set_stack_pointer(offset);
    Ok(())
}

/// POP of a segment register.
pub fn pop(cpu: &mut Cpu, insn: &Insn) -> Flow {
    // Only the selector's two bytes are read.
    let offset = cpu.stack_offset(cpu.regs[4]);
    let selector = cpu.load::<u16>(seg::SS, offset)?;
    let (old, after) = (cpu.regs[4], offset.wrapping_add(u64::from(stack_size(insn))));
    // The size of the old stack counts, not that of a new one.
    cpu.set_stack_pointer(after);
    if let Err(fault) = cpu.load_segment(insn.dst, selector) {
        cpu.regs[4] = old;
        return Err(fault.into());
    }
    if insn.dst == seg::SS {
        cpu.shadow = shadow::MOV_SS;
    }
    Err(Stop::Done)
}

/// LDS, LES, LFS, LGS, LSS; `insn.extra` is the segment.
pub fn load_far_pointer(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let (selector, offset) = super::far::far_operand(cpu, insn)?;
    cpu.load_segment(insn.extra, selector)?;
    cpu.write_gpr(insn.dst, insn.operand_size, offset);
    Err(Stop::Done)
}
