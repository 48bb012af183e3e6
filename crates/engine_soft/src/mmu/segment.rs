//! Segmentation: from an offset to a linear address (SDM 3A 5.3).

use super::Access;
use crate::cpu::{Cpu, Fault, seg};
use x86::Segment;

impl Cpu {
    /// Linear address of `len` bytes at an offset in a segment, after checks of type and limit.
    #[inline(always)]
    pub(crate) fn linear(
        &mut self,
        segment: u8,
        offset: u64,
        len: u32,
        access: Access,
    ) -> Result<u64, Fault> {
        let linear = offset.wrapping_add(self.segment_base[usize::from(segment & 7)]);
        if self.long64 {
            return Ok(linear);
        }
        let flat = if access == Access::Write { self.flat_write } else { self.flat_read };
        let fits = offset.wrapping_add(u64::from(len)) <= 1 << 32;
        if flat >> segment & 1 != 0 && fits {
            return Ok(offset);
        }
        self.linear_checked(segment, offset, len, access)
    }

    /// Linear address of `len` bytes, after checks of type and limit; canonical addresses are checked too.
    pub fn linear_of(&mut self, segment: u8, offset: u64, len: u32, write: bool) -> Result<u64, Fault> {
        let access = if write { Access::Write } else { Access::Read };
        let linear = self.linear(segment, offset, len, access)?;
        let last = linear.wrapping_add(u64::from(len.max(1)) - 1);
        if self.long64 && !(self.is_canonical(linear) && self.is_canonical(last)) {
            return Err(self.segment_fault(segment));
        }
        Ok(linear)
    }

    #[inline(never)]
    fn linear_checked(&mut self, segment: u8, offset: u64, len: u32, access: Access) -> Result<u64, Fault> {
        let held = self.segments[usize::from(segment & 7)];
        let typed = self.is_protected();
        let last = offset.wrapping_add(u64::from(len.max(1)) - 1);
        let inside = if expands_down(&held) {
            let top = if held.attributes.big() { u64::from(u32::MAX) } else { 0xffff };
            offset > u64::from(held.limit) && last <= top
        } else {
            // Behind the last byte of a 4 GiB segment the first one follows.
            last <= u64::from(held.limit) || held.limit == u32::MAX
        };
        if !inside || typed && !type_allows(&held, access) {
            return Err(self.segment_fault(segment));
        }
        Ok(held.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// `#SS(0)` for the stack segment, else `#GP(0)`.
    #[cold]
    pub(crate) fn segment_fault(&mut self, segment: u8) -> Fault {
        if segment == seg::SS { self.ss(0) } else { self.gp(0) }
    }

    /// Recomputes which segments need no check.
    pub(crate) fn update_flat_segments(&mut self) {
        (self.flat_read, self.flat_write) = (0, 0);
        if self.long64 {
            return;
        }
        self.segment_ends = [[0; 8]; 2];
        let typed = self.is_protected();
        for number in 0..6 {
            let held = self.segments[number];
            if !expands_down(&held) {
                let end = u64::from(held.limit) + 1;
                let may = |access| !typed || type_allows(&held, access);
                self.segment_ends[0][number] = if may(Access::Read) { end } else { 0 };
                self.segment_ends[1][number] = if may(Access::Write) { end } else { 0 };
            }
            if held.base != 0 || held.limit != u32::MAX || expands_down(&held) {
                continue;
            }
            self.flat_read |= u8::from(!typed || type_allows(&held, Access::Read)) << number;
            self.flat_write |= u8::from(!typed || type_allows(&held, Access::Write)) << number;
        }
    }

    /// A stack pointer as the stack's address size has it.
    #[inline(always)]
    pub fn stack_offset(&self, rsp: u64) -> u64 {
        if self.long64 {
            rsp
        } else if self.segments[usize::from(seg::SS)].attributes.big() {
            rsp & 0xffff_ffff
        } else {
            rsp & 0xffff
        }
    }

    /// Sets RSP, ESP or SP by the stack's address size.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, rsp: u64) {
        if self.long64 {
            self.regs[4] = rsp;
        } else if self.segments[usize::from(seg::SS)].attributes.big() {
            self.regs[4] = rsp & 0xffff_ffff;
        } else {
            self.regs[4] = self.regs[4] & !0xffff | rsp & 0xffff;
        }
    }
}

fn expands_down(held: &Segment) -> bool {
    held.attributes.is_code_or_data() && held.attributes.kind() & 0xc == 4
}

fn type_allows(held: &Segment, access: Access) -> bool {
    let (kind, code) = (held.attributes.kind(), held.attributes.kind() & 8 != 0);
    let readable = !code || kind & 2 != 0;
    let writable = !code && kind & 2 != 0;
    held.attributes.present()
        && match access {
            Access::Read => readable,
            Access::Write => writable,
            Access::Execute => code,
        }
}
