//! IRET and far RET (SDM 2A IRET, SDM 2B RET).

use super::descriptor::{Descriptor, code_of, is_null};
use super::segments::{null_segment, v86_segment};
use crate::cpu::{Cpu, Fault, Flow, Stop, seg};
use crate::insn::Insn;
use x86::{Cr0, Cr4, RFlags, Segment, Vector};

/// Reads the stack upwards without changing RSP.
struct Popper {
    sp: u64,
    size: u8,
}

impl Popper {
    /// The word at a position above the top, which stays.
    fn peek(&self, cpu: &mut Cpu, position: u64) -> Result<u64, Fault> {
        let sp = self.sp.wrapping_add(position * u64::from(self.size));
        Popper { sp, size: self.size }.pop(cpu)
    }

    /// The selector at a position above the top: only its two bytes are read.
    fn peek_selector(&self, cpu: &mut Cpu, position: u64) -> Result<u16, Fault> {
        let sp = self.sp.wrapping_add(position * u64::from(self.size));
        let offset = cpu.stack_offset(sp);
        cpu.load::<u16>(seg::SS, offset)
    }

    fn skip(&mut self, cpu: &Cpu, words: u64) {
        self.sp = cpu.stack_offset(self.sp).wrapping_add(words * u64::from(self.size));
    }

    /// RIP, CS and RFLAGS of IRET, read in silicon's order: from the top down.
    fn frame(&mut self, cpu: &mut Cpu) -> Result<(u64, u16, u64), Fault> {
        let flags = self.peek(cpu, 2)?;
        let selector = self.peek_selector(cpu, 1)?;
        let rip = self.peek(cpu, 0)?;
        self.skip(cpu, 3);
        Ok((rip, selector, flags))
    }

    /// RIP and CS of a far RET, or RSP and SS of an outer return.
    fn pair(&mut self, cpu: &mut Cpu) -> Result<(u64, u16), Fault> {
        let selector = self.peek_selector(cpu, 1)?;
        let offset = self.peek(cpu, 0)?;
        self.skip(cpu, 2);
        Ok((offset, selector))
    }

    /// RSP and SS of IRET. Silicon checks their alignment by the AC that IRET has popped already; the fault shows the
    /// flags from before.
    fn pair_under(&mut self, cpu: &mut Cpu, popped: u64) -> Result<(u64, u16), Fault> {
        let flags = cpu.rflags();
        if cpu.cpl != 3 || self.size == 2 || popped & !flags & RFlags::AC.bits() == 0 {
            return self.pair(cpu);
        }
        cpu.set_rflags(flags | RFlags::AC.bits());
        let pair = self.pair(cpu);
        cpu.set_rflags(flags);
        pair
    }

    fn pop(&mut self, cpu: &mut Cpu) -> Result<u64, Fault> {
        let offset = cpu.stack_offset(self.sp);
        self.sp = offset.wrapping_add(u64::from(self.size));
        Ok(match self.size {
            8 => cpu.load::<u64>(seg::SS, offset)?,
            4 => u64::from(cpu.load::<u32>(seg::SS, offset)?),
            _ => u64::from(cpu.load::<u16>(seg::SS, offset)?),
        })
    }
}

/// Where a return goes.
struct Return {
    cs: Segment,
    rip: u64,
    /// New stack, for outer returns and for IRET in 64-bit mode.
    stack: Option<(Segment, u64)>,
}

impl Cpu {
    /// CS of a return, checked (the same for IRET and RET).
    fn return_code_segment(&mut self, selector: u16) -> Result<Descriptor, Fault> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let code = self.descriptor(selector, 0)?;
        let rpl = selector as u8 & 3;
        let level = if code.is_conforming() { code.dpl() <= rpl } else { code.dpl() == rpl };
        let bad_mode = self.is_long() && code.has_long_and_big();
        if rpl < self.cpl || !code.is_code() || !level || bad_mode {
            return Err(self.gp(code_of(selector)));
        }
        if !code.present() {
            return Err(self.np(code_of(selector)));
        }
        self.mark_accessed(selector, code)
    }

    /// `#GP(0)` if `rip` is outside of a code segment. Returns it as the segment's mode has it: 32 bits, but for 64-bit
    /// code.
    pub(crate) fn check_target(&mut self, code: Descriptor, rip: u64) -> Result<u64, Fault> {
        let long = self.is_long() && code.attributes().long();
        let rip = if long { rip } else { rip & 0xffff_ffff };
        let inside = if long { self.is_canonical(rip) } else { rip <= u64::from(code.limit()) };
        if inside { Ok(rip) } else { Err(self.gp(0)) }
    }

    /// SS of a return to `code`, behind selector `cs`.
    fn return_stack_segment(&mut self, selector: u16, cs: u16, code: Descriptor) -> Result<Segment, Fault> {
        let rpl = cs as u8 & 3;
        if is_null(selector) {
            if self.is_long() && code.attributes().long() && rpl != 3 && selector as u8 & 3 == rpl {
                return Ok(null_segment(selector, rpl));
            }
            return Err(self.gp(0));
        }
        let descriptor = self.stack_descriptor(selector, rpl, 0, Vector::GeneralProtection)?;
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    fn commit_return(&mut self, back: Return, sp: u64, release: u64) {
        let outer = back.cs.selector as u8 & 3 != self.cpl;
        self.segments[usize::from(seg::CS)] = back.cs;
        self.set_rip(back.rip);
        self.cpl = back.cs.selector as u8 & 3;
        if let Some((ss, outer_sp)) = back.stack {
            self.segments[usize::from(seg::SS)] = ss;
            self.mode_changed();
            let sp = outer_sp.wrapping_add(release);
            // A 16-bit stack keeps the upper bits of what was popped.
            if self.long64 || !ss.attributes.present() || ss.attributes.big() {
                self.regs[4] = if self.long64 { sp } else { sp & 0xffff_ffff };
            } else {
                self.regs[4] = self.regs[4] & !0xffff | sp & 0xffff;
            }
        } else {
            // The words leave the old mode's stack; what is released besides, the new mode's.
            self.set_stack_pointer(sp);
            self.mode_changed();
            self.set_stack_pointer(self.regs[4].wrapping_add(release));
        }
        if outer {
            self.drop_inner_segments();
            self.mode_changed();
        }
    }

    /// Loads the flags that a return at privilege `cpl` may change. Tells whether the run loop must look at
    /// them before the next instruction.
    fn return_flags(&mut self, popped: u64, size: u8, cpl: u8) -> bool {
        let mut writable = RFlags::ARITHMETIC | RFlags::TF | RFlags::DF | RFlags::NT | RFlags::RF;
        writable |= RFlags::AC | RFlags::ID;
        if cpl == 0 {
            writable |= RFlags::IOPL | RFlags::VIF | RFlags::VIP;
        }
        if cpl <= self.iopl() {
            writable |= RFlags::IF;
        }
        let mask = if size == 2 { writable.bits() & 0xffff } else { writable.bits() };
        let had_resume = self.has_flag(RFlags::RF);
        self.set_rflags(self.rflags() & !mask | popped & mask);
        self.kept_resume_flag = had_resume && self.has_flag(RFlags::RF);
        self.has_flag(RFlags::TF) || self.has_flag(RFlags::RF)
    }

    fn end_of_nmi(&mut self) {
        if self.system.nmi_blocked {
            self.system.nmi_blocked = false;
            self.update_event_mask();
        }
    }
}

/// Ends a transfer: `Again`, which counts no instruction, makes the loop look at flags first.
pub(super) fn jumped(cpu: &mut Cpu, look: bool) -> Flow {
    cpu.instructions += u64::from(look);
    Err(if look { Stop::Again } else { Stop::Jump })
}

/// IRET.
pub fn iret(cpu: &mut Cpu, insn: &Insn) -> Flow {
    if !cpu.is_protected() {
        return iret_real(cpu, insn);
    }
    if cpu.has_flag(RFlags::NT) {
        if cpu.is_long() {
            return Err(cpu.gp(0).into());
        }
        cpu.end_of_nmi();
        return cpu.return_from_task(insn);
    }
    let size = insn.operand_size;
    let mut popper = Popper { sp: cpu.regs[4], size };
    let (rip, selector, flags) = popper.frame(cpu)?;
    if size == 4 && flags & RFlags::VM.bits() != 0 && cpu.cpl == 0 && !cpu.is_long() {
        return return_to_v86(cpu, popper, rip, selector, flags);
    }
    let code = cpu.return_code_segment(selector)?;
    let outer = selector as u8 & 3 > cpu.cpl;
    let stack = if outer || cpu.long64 {
        let (sp, ss) = popper.pair_under(cpu, flags)?;
        Some((cpu.return_stack_segment(ss, selector, code)?, sp))
    } else {
        None
    };
    // The target comes after the stack, here and in RET: its #GP(0) is not seen where SS is bad too.
    let (cs, rip) = (code.segment(selector), cpu.check_target(code, rip)?);
    let cpl = cpu.cpl;
    cpu.commit_return(Return { cs, rip, stack }, popper.sp, 0);
    let look = cpu.return_flags(flags, size, cpl);
    cpu.end_of_nmi();
    jumped(cpu, look)
}

fn iret_real(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let size = insn.operand_size;
    let virtual_flags = cpu.is_v86() && cpu.iopl() < 3;
    if virtual_flags && (size != 2 || !cpu.cr4.contains(Cr4::VME)) {
        return Err(cpu.gp(0).into());
    }
    let mut popper = Popper { sp: cpu.regs[4], size };
    let (rip, selector, flags) = popper.frame(cpu)?;
    if rip > 0xffff {
        return Err(cpu.gp(0).into());
    }
    let wants_if = flags & RFlags::IF.bits() != 0;
    if virtual_flags && (flags & RFlags::TF.bits() != 0 || wants_if && cpu.has_flag(RFlags::VIP)) {
        return Err(cpu.gp(0).into());
    }
    cpu.set_stack_pointer(popper.sp);
    cpu.segments[usize::from(seg::CS)] = cpu.real_segment(seg::CS, selector);
    cpu.set_rip(rip);
    cpu.mode_changed();
    let look = if virtual_flags {
        let writable = (RFlags::ARITHMETIC | RFlags::TF | RFlags::DF | RFlags::NT).bits();
        let kept = cpu.rflags() & !(writable | RFlags::VIF.bits());
        let vif = if wants_if { RFlags::VIF.bits() } else { 0 };
        cpu.set_rflags(kept | flags & writable | vif);
        false
    } else if cpu.is_v86() {
        let mut writable = RFlags::ARITHMETIC | RFlags::TF | RFlags::IF | RFlags::DF | RFlags::NT;
        if size == 4 {
            writable |= RFlags::RF | RFlags::AC | RFlags::ID;
        }
        cpu.set_rflags(cpu.rflags() & !writable.bits() | flags & writable.bits());
        cpu.has_flag(RFlags::TF) || cpu.has_flag(RFlags::RF)
    } else {
        let cpl = if cpu.cr0.contains(Cr0::PE) { cpu.cpl } else { 0 };
        let keep = cpu.rflags() & (RFlags::VIF | RFlags::VIP).bits();
        let look = cpu.return_flags(flags, size, cpl);
        cpu.set_rflags(cpu.rflags() & !(RFlags::VIF | RFlags::VIP).bits() | keep);
        look
    };
    cpu.end_of_nmi();
    jumped(cpu, look)
}

fn return_to_v86(cpu: &mut Cpu, mut popper: Popper, rip: u64, cs: u16, flags: u64) -> Flow {
    let mut values = [0; 6];
    for value in &mut values {
        *value = popper.pop(cpu)?;
    }
    if rip > 0xffff {
        return Err(cpu.gp(0).into());
    }
    let [sp, ss, es, ds, fs, gs] = values;
    for (number, selector) in [(seg::SS, ss), (seg::ES, es), (seg::DS, ds), (seg::FS, fs), (seg::GS, gs)] {
        cpu.segments[usize::from(number)] = v86_segment(selector as u16);
    }
    cpu.segments[usize::from(seg::CS)] = v86_segment(cs);
    cpu.regs[4] = sp;
    cpu.set_rip(rip);
    cpu.cpl = 3;
    let had_resume = cpu.has_flag(RFlags::RF);
    cpu.set_rflags(flags & 0x3f_7fd5 | RFlags::FIXED.bits());
    cpu.kept_resume_flag = had_resume && cpu.has_flag(RFlags::RF);
    cpu.mode_changed();
    cpu.end_of_nmi();
    let look = cpu.has_flag(RFlags::TF) || cpu.has_flag(RFlags::RF);
    jumped(cpu, look)
}

/// Far RET, and far RET imm16.
pub fn ret_far(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let release = insn.imm & 0xffff;
    let mut popper = Popper { sp: cpu.regs[4], size: insn.operand_size };
    let (rip, selector) = popper.pair(cpu)?;
    if !cpu.is_protected() {
        if rip > 0xffff {
            return Err(cpu.gp(0).into());
        }
        cpu.segments[usize::from(seg::CS)] = cpu.real_segment(seg::CS, selector);
        cpu.set_rip(rip);
        cpu.set_stack_pointer(popper.sp.wrapping_add(release));
        cpu.mode_changed();
        return Err(Stop::Jump);
    }
    let code = cpu.return_code_segment(selector)?;
    let stack = if selector as u8 & 3 > cpu.cpl {
        popper.sp = popper.sp.wrapping_add(release);
        let (sp, ss) = popper.pair(cpu)?;
        Some((cpu.return_stack_segment(ss, selector, code)?, sp))
    } else {
        None
    };
    let (cs, rip) = (code.segment(selector), cpu.check_target(code, rip)?);
    cpu.commit_return(Return { cs, rip, stack }, popper.sp, release);
    Err(Stop::Jump)
}
