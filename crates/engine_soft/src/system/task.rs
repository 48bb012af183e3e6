//! Task switches (SDM 3A 7.3).

use super::deliver::Delivery;
use super::descriptor::{Descriptor, code_of, is_null, system_type};
use super::segments::{null_segment, v86_segment};
use crate::cpu::{Cpu, Fault, Flow, seg};
use crate::insn::Insn;
use x86::{Cr0, Exception, RFlags, Segment, Vector};

/// What starts a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Jump,
    /// CALL, interrupt or exception: nests.
    Call,
    Return,
}

/// Offsets in a TSS (SDM 3A figures 7-2 and 7-8).
struct Layout {
    wide: bool,
}

impl Layout {
    fn size(&self) -> u64 {
        if self.wide { 4 } else { 2 }
    }
    /// EIP or IP; EFLAGS and the eight general registers follow.
    fn rip(&self) -> u64 {
        if self.wide { 0x20 } else { 0x0e }
    }
    /// ES; CS, SS, DS (and FS, GS) follow, then the LDT selector.
    fn segments(&self) -> u64 {
        if self.wide { 0x48 } else { 0x22 }
    }
    fn segment_count(&self) -> u64 {
        if self.wide { 6 } else { 4 }
    }
    fn limit(&self) -> u32 {
        if self.wide { 0x67 } else { 0x2b }
    }
}

/// The incoming task's saved registers.
struct Image {
    cr3: u32,
    rip: u64,
    flags: u64,
    registers: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

const CR3_OFFSET: u64 = 0x1c;
const TRAP_OFFSET: u64 = 0x64;
/// DR6.BT: a task switch with the debug trap flag.
const DR6_TASK: u64 = 1 << 15;

impl Cpu {
    /// Interrupt through a task gate.
    pub(super) fn interrupt_task(&mut self, delivery: &Delivery, gate: Descriptor) -> Result<(), Fault> {
        let ext = u32::from(!delivery.software);
        let selector = gate.gate_selector();
        let tss = self.task_of_gate(selector, ext)?;
        let old = self.rip();
        let back = delivery.return_rip.unwrap_or(old);
        if delivery.resume {
            self.set_rflags(self.rflags() | RFlags::RF.bits());
        }
        let trap = self.switch_task(selector, tss, Source::Call, back, ext)?;
        if let Some(code) = delivery.error_code {
            let size = if tss.kind() & 8 != 0 { 4 } else { 2 };
            self.push(u64::from(code), size)?;
        }
        self.task_trap(trap)
    }

    fn task_of_gate(&mut self, selector: u16, ext: u32) -> Result<Descriptor, Fault> {
        if selector & 4 != 0 || is_null(selector) {
            return Err(self.gp(code_of(selector) | ext));
        }
        let tss = self.descriptor(selector, ext)?;
        let available = matches!(tss.kind(), system_type::TSS | system_type::TSS16);
        if !tss.is_system() || !available {
            return Err(self.gp(code_of(selector) | ext));
        }
        if !tss.present() {
            return Err(self.np(code_of(selector) | ext));
        }
        Ok(tss)
    }

    /// Far CALL or JMP to a TSS or task gate.
    pub(super) fn far_to_task(&mut self, selector: u16, found: Descriptor, insn: &Insn, call: bool) -> Flow {
        let level = self.cpl.max(selector as u8 & 3);
        let gate = found.kind() == system_type::TASK;
        let direct = matches!(found.kind(), system_type::TSS | system_type::TSS16);
        if !found.is_system() || self.is_long() || !(gate || direct) || found.dpl() < level {
            return Err(self.gp(code_of(selector)).into());
        }
        if !found.present() {
            return Err(self.np(code_of(selector)).into());
        }
        let (selector, tss) = if gate {
            let selector = found.gate_selector();
            (selector, self.task_of_gate(selector, 0)?)
        } else {
            (selector, self.task_of_gate(selector, 0)?)
        };
        let back = self.rip().wrapping_add(u64::from(insn.len));
        let source = if call { Source::Call } else { Source::Jump };
        let trap = self.switch_task(selector, tss, source, back, 0)?;
        self.task_trap(trap)?;
        super::far_return::jumped(self, true)
    }

    /// IRET with NT: back to the task of the link field.
    pub(super) fn return_from_task(&mut self, insn: &Insn) -> Flow {
        let base = self.segments[usize::from(seg::TR)].base;
        let selector = self.system_load::<u16>(base)?;
        if selector & 4 != 0 || is_null(selector) {
            return Err(self.ts(code_of(selector)).into());
        }
        let Some(tss) = self.find_descriptor(selector)? else {
            return Err(self.ts(code_of(selector)).into());
        };
        let busy = matches!(tss.kind(), system_type::TSS_BUSY | system_type::TSS16_BUSY);
        if !tss.is_system() || !busy {
            return Err(self.ts(code_of(selector)).into());
        }
        if !tss.present() {
            return Err(self.np(code_of(selector)).into());
        }
        let back = self.rip().wrapping_add(u64::from(insn.len));
        let trap = self.switch_task(selector, tss, Source::Return, back, 0)?;
        self.task_trap(trap)?;
        super::far_return::jumped(self, true)
    }

    /// `#DB` of the debug trap flag, before the first instruction of the new task.
    fn task_trap(&mut self, trap: bool) -> Result<(), Fault> {
        if trap {
            return Err(self.raise(Exception { vector: Vector::Debug, error_code: 0, payload: DR6_TASK }));
        }
        Ok(())
    }

    fn tss_word(&mut self, layout: &Layout, at: u64) -> Result<u64, Fault> {
        if layout.wide {
            Ok(u64::from(self.system_load::<u32>(at)?))
        } else {
            Ok(u64::from(self.system_load::<u16>(at)?))
        }
    }

    /// Tells whether the new task's debug trap flag is set.
    fn switch_task(
        &mut self,
        selector: u16,
        tss: Descriptor,
        source: Source,
        back: u64,
        ext: u32,
    ) -> Result<bool, Fault> {
        let layout = Layout { wide: tss.kind() & 8 != 0 };
        if tss.limit() < layout.limit() {
            return Err(self.ts(code_of(selector) | ext));
        }
        let old = self.segments[usize::from(seg::TR)];
        let old_layout = Layout { wide: old.attributes.kind() & 8 != 0 };
        let base = tss.base();
        let image = self.read_task(&layout, base)?;
        self.system_probe(old.base, u64::from(old_layout.limit()) + 1, true)?;
        self.system_probe(base, 2, true)?;
        self.save_task(&old_layout, old.base, source, back)?;
        if source != Source::Call
            && let Some(descriptor) = self.find_descriptor(old.selector)?
        {
            self.set_descriptor_type(old.selector, descriptor, descriptor.kind() & !2)?;
        }
        if source == Source::Call {
            self.system_store::<u16>(base, old.selector)?;
        }
        let tss = if source == Source::Return {
            tss
        } else {
            self.set_descriptor_type(selector, tss, tss.kind() | 2)?
        };
        self.segments[usize::from(seg::TR)] = tss.segment(selector);
        self.cr0 |= Cr0::TS;
        let trap = image.trap;
        self.load_task(&layout, image, source, ext)?;
        Ok(trap)
    }

    fn read_task(&mut self, layout: &Layout, base: u64) -> Result<Image, Fault> {
        let size = layout.size();
        let cr3 = if layout.wide { self.system_load::<u32>(base + CR3_OFFSET)? } else { 0 };
        let rip = self.tss_word(layout, base + layout.rip())?;
        let flags = self.tss_word(layout, base + layout.rip() + size)?;
        let mut registers = [0; 8];
        for (at, value) in (0..).zip(&mut registers) {
            *value = self.tss_word(layout, base + layout.rip() + size * (2 + at))?;
        }
        let mut selectors = [0; 6];
        let count = layout.segment_count();
        for (at, value) in (0..count).zip(&mut selectors) {
            *value = self.tss_word(layout, base + layout.segments() + size * at)? as u16;
        }
        let ldt = self.tss_word(layout, base + layout.segments() + size * count)? as u16;
        let trap = layout.wide && self.system_load::<u16>(base + TRAP_OFFSET)? & 1 != 0;
        Ok(Image { cr3, rip, flags, registers, selectors, ldt, trap })
    }

    fn save_task(&mut self, layout: &Layout, base: u64, source: Source, back: u64) -> Result<(), Fault> {
        let mut flags = self.rflags();
        if source == Source::Return {
            flags &= !RFlags::NT.bits();
        }
        let size = layout.size();
        let mut values = vec![back, flags];
        values.extend_from_slice(&self.regs[..8]);
        for (at, value) in (0..).zip(values) {
            let address = base + layout.rip() + size * at;
            if layout.wide {
                self.system_store::<u32>(address, value as u32)?;
            } else {
                self.system_store::<u16>(address, value as u16)?;
            }
        }
        for at in 0..layout.segment_count() {
            let selector = self.segments[at as usize].selector;
            self.system_store::<u16>(base + layout.segments() + size * at, selector)?;
        }
        Ok(())
    }

    /// Commits the new task's registers, then loads its segments; faults belong to the new task.
    fn load_task(&mut self, layout: &Layout, image: Image, source: Source, ext: u32) -> Result<(), Fault> {
        if layout.wide && self.cr0.contains(Cr0::PG) {
            if self.is_pae_paging() {
                self.load_pdptes(u64::from(image.cr3))?;
            }
            self.cr3 = u64::from(image.cr3);
            self.cr3_loaded(false);
        }
        let mut flags = image.flags | RFlags::FIXED.bits();
        if source == Source::Call {
            flags |= RFlags::NT.bits();
        }
        for (register, value) in self.regs.iter_mut().zip(image.registers) {
            *register = if layout.wide { value } else { *register & 0xffff_0000 | value };
        }
        self.set_rip(image.rip);
        let kept = if layout.wide { 0x3f_7fd7 } else { 0x7fd7 };
        self.set_rflags(flags & kept);
        self.dr7 &= !0x155;
        for (number, selector) in image.selectors.into_iter().enumerate() {
            self.segments[number] = null_segment(selector, 0);
        }
        self.segments[usize::from(seg::LDTR)] = null_segment(image.ldt, 0);
        if self.is_v86() {
            self.cpl = 3;
            for (number, selector) in image.selectors.into_iter().enumerate() {
                self.segments[number] = v86_segment(selector);
            }
        } else {
            self.cpl = image.selectors[usize::from(seg::CS)] as u8 & 3;
        }
        self.mode_changed();
        self.load_task_ldt(image.ldt, ext)?;
        if !self.is_v86() {
            self.load_task_segments(&image.selectors, ext)?;
        }
        self.mode_changed();
        if self.rip() > u64::from(self.segments[usize::from(seg::CS)].limit) {
            return Err(self.gp(ext));
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: u16, ext: u32) -> Result<(), Fault> {
        if is_null(selector) {
            return Ok(());
        }
        let found = if selector & 4 != 0 { None } else { self.find_descriptor(selector)? };
        match found {
            Some(ldt) if ldt.is_system() && ldt.kind() == system_type::LDT && ldt.present() => {
                self.segments[usize::from(seg::LDTR)] = ldt.segment(selector);
                Ok(())
            }
            _ => Err(self.ts(code_of(selector) | ext)),
        }
    }

    fn load_task_segments(&mut self, selectors: &[u16; 6], ext: u32) -> Result<(), Fault> {
        let cpl = self.cpl;
        let cs = selectors[usize::from(seg::CS)];
        let code = if is_null(cs) { None } else { self.find_descriptor(cs)? };
        let Some(code) = code.filter(|code| {
            code.is_code() && if code.is_conforming() { code.dpl() <= cpl } else { code.dpl() == cpl }
        }) else {
            return Err(self.ts(code_of(cs) | ext));
        };
        if !code.present() {
            return Err(self.np(code_of(cs) | ext));
        }
        let ss = selectors[usize::from(seg::SS)];
        let stack = self.stack_descriptor(ss, cpl, ext, Vector::InvalidTss)?;
        self.segments[usize::from(seg::SS)] = self.mark_accessed(ss, stack)?.segment(ss);
        for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let selector = selectors[usize::from(number)];
            if !is_null(selector) {
                self.segments[usize::from(number)] = self.task_data_segment(selector, ext)?;
            }
        }
        self.segments[usize::from(seg::CS)] = self.mark_accessed(cs, code)?.segment(cs);
        Ok(())
    }

    fn task_data_segment(&mut self, selector: u16, ext: u32) -> Result<Segment, Fault> {
        let level = self.cpl.max(selector as u8 & 3);
        let found = self.find_descriptor(selector)?;
        let legal = |d: &Descriptor| d.is_readable() && (d.is_conforming() || level <= d.dpl());
        let Some(data) = found.filter(legal) else { return Err(self.ts(code_of(selector) | ext)) };
        if !data.present() {
            return Err(self.np(code_of(selector) | ext));
        }
        Ok(self.mark_accessed(selector, data)?.segment(selector))
    }
}
