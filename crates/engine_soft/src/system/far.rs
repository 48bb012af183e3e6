//! Far JMP and CALL, through gates too (SDM 2A CALL, JMP).

use super::deliver::NewStack;
use super::descriptor::{Descriptor, code_of, is_null, system_type};
use super::segments::null_segment;
use crate::cpu::{Cpu, Fault, Flow, Stop, seg};
use crate::insn::Insn;
use x86::{Exception, Segment, Vector};

/// Selector and offset of an instruction's far pointer in memory.
pub fn far_operand(cpu: &mut Cpu, insn: &Insn) -> Result<(u16, u64), Fault> {
    let at = cpu.address(insn);
    let behind = at.wrapping_add(u64::from(insn.operand_size)) & insn.address_mask();
    let offset = match insn.operand_size {
        8 => cpu.load::<u64>(insn.segment, at)?,
        4 => u64::from(cpu.load::<u32>(insn.segment, at)?),
        _ => u64::from(cpu.load::<u16>(insn.segment, at)?),
    };
    Ok((cpu.load::<u16>(insn.segment, behind)?, offset))
}

fn target<const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Result<(u16, u64), Fault> {
    if MEMORY { far_operand(cpu, insn) } else { Ok(((insn.imm >> 32) as u16, insn.imm & 0xffff_ffff)) }
}

/// A checked call gate.
struct CallGate {
    code: Descriptor,
    selector: u16,
    rip: u64,
    /// Bytes of each pushed value.
    size: u8,
    parameters: u8,
}

impl Cpu {
    fn enter_code(&mut self, cs: Segment, rip: u64) {
        let was_long = self.long64;
        self.segments[usize::from(seg::CS)] = cs;
        self.mode_changed();
        if was_long && !self.long64 {
            // Of all registers only the stack pointer loses its upper half (SDM 1 3.4.1.1 leaves that open).
            self.regs[4] &= 0xffff_ffff;
        }
        self.set_rip(if self.long64 { rip } else { rip & 0xffff_ffff });
    }

    fn real_far(&mut self, selector: u16, offset: u64) -> Result<(), Fault> {
        let limit = u64::from(self.segments[usize::from(seg::CS)].limit);
        if offset > limit {
            return Err(self.gp(0));
        }
        let cs = self.real_segment(seg::CS, selector);
        self.enter_code(cs, offset);
        Ok(())
    }

    /// The descriptor that a far pointer names.
    fn far_descriptor(&mut self, selector: u16) -> Result<Descriptor, Fault> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        self.descriptor(selector, 0)
    }

    /// A code segment as a direct target: privilege stays.
    fn direct_code(&mut self, selector: u16, code: Descriptor) -> Result<Segment, Fault> {
        let rpl = selector as u8 & 3;
        let level = if code.is_conforming() {
            code.dpl() <= self.cpl
        } else {
            rpl <= self.cpl && code.dpl() == self.cpl
        };
        if !level || self.is_long() && code.has_long_and_big() {
            return Err(self.gp(code_of(selector)));
        }
        if !code.present() {
            return Err(self.np(code_of(selector)));
        }
        let code = self.mark_accessed(selector, code)?;
        Ok(code.segment(selector & !3 | u16::from(self.cpl)))
    }

    /// A call gate's target, checked; a JMP (not `call`) cannot change the privilege level.
    fn call_gate(&mut self, selector: u16, gate: Descriptor, call: bool) -> Result<CallGate, Fault> {
        let rpl = selector as u8 & 3;
        if gate.dpl() < self.cpl.max(rpl) {
            return Err(self.gp(code_of(selector)));
        }
        if !gate.present() {
            return Err(self.np(code_of(selector)));
        }
        let long = self.is_long();
        let mut rip = gate.gate_offset();
        if long {
            rip |= self.descriptor_upper(selector, 0)?;
        } else if gate.kind() == system_type::CALL16 {
            rip &= 0xffff;
        }
        let target = gate.gate_selector();
        if is_null(target) {
            return Err(self.gp(0));
        }
        let code = self.descriptor(target, 0)?;
        let bad_mode = long && (!code.attributes().long() || code.has_long_and_big());
        let inner = !code.is_conforming() && code.dpl() != self.cpl;
        if !code.is_code() || code.dpl() > self.cpl || bad_mode || inner && !call {
            return Err(self.gp(code_of(target)));
        }
        if !code.present() {
            return Err(self.np(code_of(target)));
        }
        self.check_target(code, rip)?;
        let size = match gate.kind() {
            _ if long => 8,
            system_type::CALL16 => 2,
            _ => 4,
        };
        let parameters = if long { 0 } else { (gate.0 >> 32 & 0x1f) as u8 };
        Ok(CallGate { code, selector: target, rip, size, parameters })
    }

    /// CALL through a gate.
    fn call_through(&mut self, gate: &CallGate, back: u64) -> Result<(), Fault> {
        let inner = !gate.code.is_conforming() && gate.code.dpl() < self.cpl;
        let cpl = if inner { gate.code.dpl() } else { self.cpl };
        let old = self.segments;
        let held = |number: u8| u64::from(old[usize::from(number)].selector);
        let long = self.is_long();
        let mut stack = if inner {
            let mut parameters = [0; 31];
            let parameters = &mut parameters[..usize::from(gate.parameters)];
            for (at, value) in (0_u64..).zip(parameters.iter_mut()) {
                let offset = self.stack_offset(self.regs[4].wrapping_add(at * u64::from(gate.size)));
                *value = match gate.size {
                    4 => u64::from(self.load::<u32>(seg::SS, offset)?),
                    _ => u64::from(self.load::<u16>(seg::SS, offset)?),
                };
            }
            let (ss, sp) = if long {
                let sp = self.tss_stack64(4 + 8 * u64::from(cpl), 0)?;
                (null_segment(u16::from(cpl), cpl), sp)
            } else {
                self.tss_stack(cpl, 0)?
            };
            let fault = Exception::with_code(Vector::Stack, code_of(ss.selector));
            let mut stack = NewStack::new(ss, sp, long, cpl == 3, fault);
            stack.push(self, held(seg::SS), gate.size)?;
            stack.push(self, self.regs[4], gate.size)?;
            for value in parameters.iter().rev() {
                stack.push(self, *value, gate.size)?;
            }
            stack
        } else {
            let fault = Exception::with_code(Vector::Stack, 0);
            NewStack::new(old[usize::from(seg::SS)], self.regs[4], long, cpl == 3, fault)
        };
        stack.push(self, held(seg::CS), gate.size)?;
        stack.push(self, back, gate.size)?;
        let code = self.mark_accessed(gate.selector, gate.code)?;
        stack.commit(self);
        self.cpl = cpl;
        self.enter_code(code.segment(gate.selector & !3 | u16::from(cpl)), gate.rip);
        Ok(())
    }

    /// Whether a descriptor is a gate or TSS of the kind that the mode allows.
    fn is_call_gate(&self, descriptor: Descriptor) -> bool {
        descriptor.kind() == system_type::CALL || descriptor.kind() == system_type::CALL16 && !self.is_long()
    }
}

/// Far JMP; the pointer is in memory if `MEMORY`.
pub fn jmp<const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let (selector, offset) = target::<MEMORY>(cpu, insn)?;
    if !cpu.is_protected() {
        cpu.real_far(selector, offset)?;
        return Err(Stop::Jump);
    }
    let descriptor = cpu.far_descriptor(selector)?;
    if descriptor.is_code() {
        let cs = cpu.direct_code(selector, descriptor)?;
        cpu.check_target(descriptor, offset)?;
        cpu.enter_code(cs, offset);
        return Err(Stop::Jump);
    }
    if descriptor.is_system() && cpu.is_call_gate(descriptor) {
        let gate = cpu.call_gate(selector, descriptor, false)?;
        let code = cpu.mark_accessed(gate.selector, gate.code)?;
        let cs = code.segment(gate.selector & !3 | u16::from(cpu.cpl));
        cpu.enter_code(cs, gate.rip);
        return Err(Stop::Jump);
    }
    cpu.far_to_task(selector, descriptor, insn, false)
}

/// Far CALL.
pub fn call<const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let (selector, offset) = target::<MEMORY>(cpu, insn)?;
    let back = cpu.rip().wrapping_add(u64::from(insn.len));
    let size = insn.operand_size;
    let old = cpu.segments[usize::from(seg::CS)].selector;
    let descriptor = if cpu.is_protected() { Some(cpu.far_descriptor(selector)?) } else { None };
    match descriptor {
        Some(gate) if gate.is_system() && cpu.is_call_gate(gate) => {
            let gate = cpu.call_gate(selector, gate, true)?;
            cpu.call_through(&gate, back)?;
            return Err(Stop::Jump);
        }
        Some(other) if !other.is_code() => return cpu.far_to_task(selector, other, insn, true),
        _ => {}
    }
    let cs = match descriptor {
        Some(code) => cpu.direct_code(selector, code)?,
        None => cpu.real_segment(seg::CS, selector),
    };
    if descriptor.is_none() && offset > u64::from(cpu.segments[usize::from(seg::CS)].limit) {
        return Err(cpu.gp(0).into());
    }
    // The stack is the new mode's: from a 32-bit segment into a 64-bit one, SS has no base any more.
    let (sp, rip, from) = (cpu.regs[4], cpu.rip(), cpu.segments[usize::from(seg::CS)]);
    cpu.enter_code(cs, offset);
    // Silicon sees a target outside of its segment after it has pushed.
    let pushed = cpu.push(u64::from(old), size).and_then(|()| cpu.push(back, size));
    let entered = pushed.and_then(|()| descriptor.map_or(Ok(0), |code| cpu.check_target(code, offset)));
    if let Err(fault) = entered {
        cpu.regs[4] = sp;
        cpu.enter_code(from, rip);
        return Err(fault.into());
    }
    Err(Stop::Jump)
}
