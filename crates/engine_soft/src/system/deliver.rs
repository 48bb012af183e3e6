//! Exceptions and interrupts through the IDT (SDM 3A chapter 6).
//!
//! Nothing the guest can see changes before the last check of a delivery has passed: a fault in the middle
//! finds the state of before and joins the first one by the rules of [`combine`].

use super::descriptor::{Descriptor, code_of, is_null, system_type};
use super::segments::null_segment;
use crate::cpu::{Cpu, Fault, Stop, seg};
use crate::mmu::access::Plain;
use engine::VmExit;
use x86::{Cr0, Exception, RFlags, Segment, Vector};

/// DR7.GD.
pub(super) const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// DR6 bits that instruction breakpoints set.
const DR6_BREAKPOINTS: u64 = 0xf;
/// DR6 bits that traps, single step and task switch, set.
const DR6_TRAPS: u64 = 3 << 14;

/// One delivery.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// Vector.
    pub vector: u8,
    /// Error code to push.
    pub error_code: Option<u32>,
    /// By INT n, INT3 or INTO: the gate's DPL is checked.
    pub software: bool,
    /// RIP to push; the current one if `None`.
    pub return_rip: Option<u64>,
    /// Push RFLAGS with RF set.
    pub resume: bool,
}

impl Delivery {
    /// An external interrupt.
    pub fn external(vector: u8) -> Self {
        Delivery { vector, error_code: None, software: false, return_rip: None, resume: false }
    }
    /// INT n and its kin.
    pub fn software(vector: u8, return_rip: u64) -> Self {
        Delivery { software: true, return_rip: Some(return_rip), ..Self::external(vector) }
    }
    fn of(exception: &Exception) -> Self {
        let trap = match exception.vector {
            Vector::Breakpoint
            | Vector::Overflow
            | Vector::DoubleFault
            | Vector::MachineCheck
            | Vector::Nmi => true,
            Vector::Debug => exception.payload & (DR6_TRAPS | DR6_BREAKPOINTS) != 0,
            _ => false,
        };
        let error_code = exception.vector.has_error_code().then_some(exception.error_code);
        Delivery { error_code, resume: !trap, ..Self::external(exception.vector as u8) }
    }
    /// The EXT bit of error codes that this delivery's faults have.
    fn ext(&self) -> u32 {
        u32::from(!self.software)
    }
    /// Error code that names the IDT entry.
    fn entry_code(&self) -> u32 {
        u32::from(self.vector) << 3 | 2 | self.ext()
    }
}

/// What two exceptions make (SDM 3A table 6-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combined {
    /// The second one is delivered.
    Second,
    /// `#DF`.
    Double,
    /// Shutdown.
    Triple,
}

/// The class rules for a second exception while the first was being delivered.
pub fn combine(first: Vector, second: Vector) -> Combined {
    let contributory = |vector| {
        matches!(
            vector,
            Vector::Divide
                | Vector::InvalidTss
                | Vector::SegmentNotPresent
                | Vector::Stack
                | Vector::GeneralProtection
        )
    };
    let (one, two) = (contributory(first), contributory(second));
    let fault = second == Vector::PageFault;
    match first {
        Vector::DoubleFault if two || fault => Combined::Triple,
        Vector::PageFault if two || fault => Combined::Double,
        _ if one && two => Combined::Double,
        _ => Combined::Second,
    }
}

/// Where a delivery or far call pushes.
pub struct NewStack {
    segment: Segment,
    sp: u64,
    mask: u64,
    user: bool,
    fault: Exception,
}

impl NewStack {
    /// A stack; `fault` is what a push outside of the segment raises.
    pub fn new(segment: Segment, sp: u64, long: bool, user: bool, fault: Exception) -> Self {
        let mask = match (long, segment.attributes.big()) {
            (true, _) => u64::MAX,
            (false, true) => 0xffff_ffff,
            _ => 0xffff,
        };
        NewStack { segment, sp, mask, user, fault }
    }

    /// Pushes `size` bytes.
    pub fn push(&mut self, cpu: &mut Cpu, value: u64, size: u8) -> Result<(), Fault> {
        self.sp = self.sp & !self.mask | self.sp.wrapping_sub(u64::from(size)) & self.mask;
        match size {
            8 => self.store(cpu, value),
            4 => self.store(cpu, value as u32),
            _ => self.store(cpu, value as u16),
        }
    }

    fn store<T: Plain>(&self, cpu: &mut Cpu, value: T) -> Result<(), Fault> {
        let offset = self.sp & self.mask;
        if self.mask == u64::MAX {
            if !cpu.is_canonical(offset) {
                return Err(cpu.raise(self.fault));
            }
            return cpu.access_store(offset, value, self.user);
        }
        let last = offset + size_of::<T>() as u64 - 1;
        let down = self.segment.attributes.is_code_or_data() && self.segment.attributes.kind() & 0xc == 4;
        let limit = u64::from(self.segment.limit);
        let inside = if down { offset > limit && last <= self.mask } else { last <= limit };
        if !inside {
            return Err(cpu.raise(self.fault));
        }
        cpu.access_store(self.segment.base.wrapping_add(offset) & 0xffff_ffff, value, self.user)
    }

    /// Makes it the processor's stack.
    pub fn commit(self, cpu: &mut Cpu) {
        cpu.segments[usize::from(seg::SS)] = self.segment;
        let old = cpu.regs[4];
        cpu.regs[4] = match self.mask {
            0xffff => old & !0xffff | self.sp & 0xffff,
            mask => self.sp & mask,
        };
    }
}

/// A checked gate's target.
struct Target {
    cs: Segment,
    rip: u64,
    cpl: u8,
    ist: u8,
}

impl Cpu {
    /// Delivers an exception, with what follows if that fails.
    pub fn deliver_exception(&mut self, exception: Exception) -> Result<(), Stop> {
        let mut current = exception;
        loop {
            self.note_exception(&current);
            if self.interrupt(Delivery::of(&current)).is_ok() {
                return Ok(());
            }
            let second = self.exception;
            if second.vector == Vector::PageFault {
                // CR2 tells of the page fault even if another exception comes of it.
                self.cr2 = second.payload;
            }
            current = match combine(current.vector, second.vector) {
                Combined::Second => second,
                Combined::Double => Exception::with_code(Vector::DoubleFault, 0),
                Combined::Triple => {
                    tracing::debug!(?exception, ?second, rip = self.rip(), "triple fault");
                    self.exit = Some(VmExit::TripleFault);
                    return Err(Stop::Exit);
                }
            };
        }
    }

    /// CR2 and the debug registers, which are written before delivery.
    fn note_exception(&mut self, exception: &Exception) {
        match exception.vector {
            Vector::PageFault => self.cr2 = exception.payload,
            Vector::Debug => {
                self.dr6 = self.dr6 & !DR6_BREAKPOINTS | exception.payload;
                self.dr7 &= !DR7_GENERAL_DETECT;
            }
            _ => {}
        }
    }

    /// Delivers through the IDT. On a fault nothing has changed.
    pub(crate) fn interrupt(&mut self, mut delivery: Delivery) -> Result<(), Fault> {
        self.delivered = true;
        delivery.resume |= std::mem::take(&mut self.repeating);
        if !self.cr0.contains(Cr0::PE) {
            return self.interrupt_real(delivery);
        }
        let gate = self.load_gate(&delivery)?;
        if gate.kind() == system_type::TASK {
            return self.interrupt_task(&delivery, gate);
        }
        let target = self.gate_target(&delivery, gate)?;
        if self.is_long() {
            self.enter_long(&delivery, gate, target)
        } else {
            self.enter_legacy(&delivery, gate, target)
        }
    }

    /// Real mode: the IVT.
    pub(crate) fn interrupt_real(&mut self, delivery: Delivery) -> Result<(), Fault> {
        let entry = u64::from(delivery.vector) * 4;
        if entry + 3 > u64::from(self.idtr.limit) {
            return Err(self.gp(delivery.entry_code()));
        }
        let pointer = self.system_load::<u32>(self.idtr.base.wrapping_add(entry))?;
        self.enter_real(&delivery, (pointer >> 16) as u16, u64::from(pointer & 0xffff))
    }

    /// Pushes FLAGS, CS and IP and goes to a real-mode (or virtual-8086) handler.
    pub(crate) fn enter_real(&mut self, delivery: &Delivery, selector: u16, ip: u64) -> Result<(), Fault> {
        self.delivered = true;
        let old = self.regs[4];
        let flags = self.pushed_flags(delivery);
        let back = delivery.return_rip.unwrap_or(self.rip());
        let cs = self.segments[usize::from(seg::CS)].selector;
        for value in [flags, u64::from(cs), back] {
            if let Err(fault) = self.push(value, 2) {
                self.regs[4] = old;
                return Err(fault);
            }
        }
        self.segments[usize::from(seg::CS)] = self.real_segment(seg::CS, selector);
        self.set_rip(ip);
        self.mode_changed();
        let cleared = RFlags::IF | RFlags::TF | RFlags::AC | RFlags::RF;
        self.set_rflags(self.rflags() & !cleared.bits());
        Ok(())
    }

    fn pushed_flags(&self, delivery: &Delivery) -> u64 {
        let flags = self.rflags();
        if delivery.resume { flags | RFlags::RF.bits() } else { flags }
    }

    /// The IDT entry, with type, DPL and presence checked. In IA-32e mode its upper half is read later.
    fn load_gate(&mut self, delivery: &Delivery) -> Result<Descriptor, Fault> {
        let size = if self.is_long() { 16 } else { 8 };
        let entry = u64::from(delivery.vector) * size;
        if entry + size - 1 > u64::from(self.idtr.limit) {
            return Err(self.gp(delivery.entry_code()));
        }
        let gate = Descriptor(self.system_load(self.idtr.base.wrapping_add(entry))?);
        let legal = match gate.kind() {
            system_type::INTERRUPT | system_type::TRAP => true,
            system_type::TASK | system_type::INTERRUPT16 | system_type::TRAP16 => !self.is_long(),
            _ => false,
        };
        if !legal || !gate.is_system() || delivery.software && gate.dpl() < self.cpl {
            return Err(self.gp(delivery.entry_code()));
        }
        if !gate.present() {
            return Err(self.np(delivery.entry_code()));
        }
        Ok(gate)
    }

    fn gate_target(&mut self, delivery: &Delivery, gate: Descriptor) -> Result<Target, Fault> {
        let ext = delivery.ext();
        let selector = gate.gate_selector();
        if is_null(selector) {
            return Err(self.gp(ext));
        }
        let code = self.descriptor(selector, ext)?;
        let bad_mode = self.is_long() && (!code.attributes().long() || code.has_long_and_big());
        if !code.is_code() || code.dpl() > self.cpl || bad_mode {
            return Err(self.gp(code_of(selector) | ext));
        }
        if !code.present() {
            return Err(self.np(code_of(selector) | ext));
        }
        let cpl = if code.is_conforming() { self.cpl } else { code.dpl() };
        if self.is_v86() && cpl != 0 {
            return Err(self.gp(code_of(selector) | ext));
        }
        let code = self.mark_accessed(selector, code)?;
        let cs = code.segment(selector & !3 | u16::from(cpl));
        let mut rip = gate.gate_offset();
        let mut ist = 0;
        if self.is_long() {
            let entry = u64::from(delivery.vector) * 16;
            let upper = self.system_load::<u32>(self.idtr.base.wrapping_add(entry + 8))?;
            rip |= u64::from(upper) << 32;
            ist = (gate.0 >> 32 & 7) as u8;
            if !self.is_canonical(rip) {
                return Err(self.gp(ext));
            }
        } else if gate.kind() & 8 == 0 {
            rip &= 0xffff;
        }
        if !self.is_long() && rip > u64::from(cs.limit) {
            return Err(self.gp(ext));
        }
        Ok(Target { cs, rip, cpl, ist })
    }

    fn enter_long(&mut self, delivery: &Delivery, gate: Descriptor, target: Target) -> Result<(), Fault> {
        let changes = target.cpl != self.cpl;
        let mut sp = self.regs[4];
        let mut ss = self.segments[usize::from(seg::SS)];
        if target.ist != 0 {
            sp = self.tss_stack64(0x1c + 8 * u64::from(target.ist), delivery.ext())?;
        } else if changes {
            sp = self.tss_stack64(4 + 8 * u64::from(target.cpl), delivery.ext())?;
        }
        if changes {
            ss = null_segment(u16::from(target.cpl), target.cpl);
        }
        let fault = Exception::with_code(Vector::Stack, delivery.ext());
        let mut stack = NewStack::new(ss, sp & !0xf, true, target.cpl == 3, fault);
        let flags = self.pushed_flags(delivery);
        let old = &self.segments;
        let (cs, ss) = (old[usize::from(seg::CS)].selector, old[usize::from(seg::SS)].selector);
        let back = delivery.return_rip.unwrap_or(self.rip());
        let frame = [u64::from(ss), self.regs[4], flags, u64::from(cs), back];
        for value in frame {
            stack.push(self, value, 8)?;
        }
        if let Some(code) = delivery.error_code {
            stack.push(self, u64::from(code), 8)?;
        }
        stack.commit(self);
        self.enter_handler(gate, target);
        Ok(())
    }

    /// A stack pointer of the 64-bit TSS.
    pub(crate) fn tss_stack64(&mut self, offset: u64, ext: u32) -> Result<u64, Fault> {
        let tss = self.segments[usize::from(seg::TR)];
        if offset + 7 > u64::from(tss.limit) {
            return Err(self.ts(code_of(tss.selector) | ext));
        }
        let sp = self.system_load::<u64>(tss.base.wrapping_add(offset))?;
        if !self.is_canonical(sp) {
            return Err(self.ss(ext));
        }
        Ok(sp)
    }

    /// SS and ESP for an inner privilege level from a legacy TSS, checked.
    pub(crate) fn tss_stack(&mut self, cpl: u8, ext: u32) -> Result<(Segment, u64), Fault> {
        let tss = self.segments[usize::from(seg::TR)];
        let wide = tss.attributes.kind() & 8 != 0;
        let (offset, len) = if wide { (4 + 8 * u64::from(cpl), 6) } else { (2 + 4 * u64::from(cpl), 4) };
        if offset + len - 1 > u64::from(tss.limit) {
            return Err(self.ts(code_of(tss.selector) | ext));
        }
        let at = tss.base.wrapping_add(offset);
        let (sp, selector) = if wide {
            (u64::from(self.system_load::<u32>(at)?), self.system_load::<u16>(at.wrapping_add(4))?)
        } else {
            (u64::from(self.system_load::<u16>(at)?), self.system_load::<u16>(at.wrapping_add(2))?)
        };
        if is_null(selector) {
            return Err(self.ts(ext));
        }
        let descriptor = self.stack_descriptor(selector, cpl, ext, Vector::InvalidTss)?;
        let descriptor = self.mark_accessed(selector, descriptor)?;
        Ok((descriptor.segment(selector), sp))
    }

    fn enter_legacy(&mut self, delivery: &Delivery, gate: Descriptor, target: Target) -> Result<(), Fault> {
        let size = if gate.kind() & 8 != 0 { 4 } else { 2 };
        let v86 = self.is_v86();
        let inner = target.cpl != self.cpl;
        let old = self.segments;
        let held = |number: u8| u64::from(old[usize::from(number)].selector);
        let mut stack = if inner {
            let (ss, sp) = self.tss_stack(target.cpl, delivery.ext())?;
            let fault = Exception::with_code(Vector::Stack, code_of(ss.selector) | delivery.ext());
            NewStack::new(ss, sp, false, target.cpl == 3, fault)
        } else {
            let fault = Exception::with_code(Vector::Stack, delivery.ext());
            NewStack::new(old[usize::from(seg::SS)], self.regs[4], false, target.cpl == 3, fault)
        };
        if v86 {
            for number in [seg::GS, seg::FS, seg::DS, seg::ES] {
                stack.push(self, held(number), size)?;
            }
        }
        if inner {
            stack.push(self, held(seg::SS), size)?;
            stack.push(self, self.regs[4], size)?;
        }
        stack.push(self, self.pushed_flags(delivery), size)?;
        stack.push(self, held(seg::CS), size)?;
        stack.push(self, delivery.return_rip.unwrap_or(self.rip()), size)?;
        if let Some(code) = delivery.error_code {
            stack.push(self, u64::from(code), size)?;
        }
        stack.commit(self);
        if v86 {
            for number in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.segments[usize::from(number)] = null_segment(0, 0);
            }
        }
        self.enter_handler(gate, target);
        Ok(())
    }

    fn enter_handler(&mut self, gate: Descriptor, target: Target) {
        self.segments[usize::from(seg::CS)] = target.cs;
        self.cpl = target.cpl;
        self.set_rip(target.rip);
        let mut cleared = RFlags::TF | RFlags::NT | RFlags::VM | RFlags::RF;
        if gate.kind() & 1 == 0 {
            cleared |= RFlags::IF;
        }
        self.set_rflags(self.rflags() & !cleared.bits());
        self.mode_changed();
    }
}
