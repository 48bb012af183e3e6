//! Loads and stores of the guest: the fast path through the TLB.
//!
//! Ordering: each access that fits the fast path is one host load or store of the same size, so a guest sees
//! the host's TSO. A store is followed by a look at the page's tracker byte; see
//! [`guest_memory::tracker`] for why that order suffices.
#![expect(unsafe_code, reason = "reaches guest RAM through host addresses held in TLB entries")]

use super::{Access, OFFSET, TlbEntry};
use crate::cpu::{Cpu, Fault, seg};
use crate::insn::Insn;
use std::sync::atomic::{Ordering, compiler_fence};

/// Values that guest memory can hold.
///
/// # Safety
/// Any bit pattern is a value, and there is no padding.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: integers and arrays of integers.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for u128 {}
// SAFETY: as above.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Whether an access of a `T` lies in the page that a TLB entry names.
#[inline(always)]
pub(super) fn fits<T>(linear: u64, page: u64) -> bool {
    linear ^ page <= OFFSET + 1 - size_of::<T>() as u64
}

impl Cpu {
    /// A register at a byte offset, at the width of `T`.
    #[inline(always)]
    pub fn reg<T: Plain>(&self, offset: u8) -> T {
        const { assert!(size_of::<T>() <= 8) };
        // SAFETY: `regs` is longer than the largest byte offset plus eight bytes.
        unsafe { self.regs.as_ptr().cast::<u8>().add(usize::from(offset)).cast::<T>().read_unaligned() }
    }

    /// Sets a register at a byte offset, at the width of `T`, leaving the rest.
    #[inline(always)]
    pub fn set_reg<T: Plain>(&mut self, offset: u8, value: T) {
        const { assert!(size_of::<T>() <= 8) };
        // SAFETY: as in `reg`.
        unsafe {
            self.regs.as_mut_ptr().cast::<u8>().add(usize::from(offset)).cast::<T>().write_unaligned(value);
        }
    }

    /// Sets a 32-bit register, which clears the upper half.
    #[inline(always)]
    pub fn set_reg32(&mut self, offset: u8, value: u32) {
        self.set_reg::<u64>(offset, u64::from(value));
    }

    /// Sets a general register of `size` bytes as instructions do: 4 clears the upper half.
    #[inline(always)]
    pub fn write_gpr(&mut self, offset: u8, size: u8, value: u64) {
        match size {
            1 => self.set_reg(offset, value as u8),
            2 => self.set_reg(offset, value as u16),
            4 => self.set_reg32(offset, value as u32),
            _ => self.set_reg(offset, value),
        }
    }

    /// A general register of `size` bytes, zero-extended.
    #[inline(always)]
    pub fn read_gpr(&self, offset: u8, size: u8) -> u64 {
        match size {
            1 => u64::from(self.reg::<u8>(offset)),
            2 => u64::from(self.reg::<u16>(offset)),
            4 => u64::from(self.reg::<u32>(offset)),
            _ => self.reg(offset),
        }
    }

    /// Effective address (offset in the segment) of the memory operand.
    #[inline(always)]
    pub fn address(&self, insn: &Insn) -> u64 {
        let base = self.reg::<u64>(insn.base);
        let index = self.reg::<u64>(insn.index);
        base.wrapping_add(index << insn.scale()).wrapping_add(insn.disp as u64) & insn.address_mask()
    }

    /// Offset of a later part of an operand that is accessed in parts. In 64-bit mode only the operand's own address
    /// has the instruction's address size: the part behind 4 GiB is there, not at zero.
    #[inline(always)]
    pub(crate) fn part(&self, insn: &Insn, operand: u64, at: usize) -> u64 {
        let offset = operand.wrapping_add(at as u64);
        if self.long64 { offset } else { offset & insn.address_mask() }
    }

    /// Loads the memory operand.
    #[inline(always)]
    pub fn load_operand<T: Plain>(&mut self, insn: &Insn) -> Result<T, Fault> {
        self.load(insn.segment, self.address(insn))
    }

    /// Stores the memory operand.
    #[inline(always)]
    pub fn store_operand<T: Plain>(&mut self, insn: &Insn, value: T) -> Result<(), Fault> {
        self.store(insn.segment, self.address(insn), value)
    }

    /// Loads at an offset in a segment.
    #[inline(always)]
    pub fn load<T: Plain>(&mut self, segment: u8, offset: u64) -> Result<T, Fault> {
        let linear = self.linear(segment, offset, size_of::<T>() as u32, Access::Read)?;
        let entry = self.entry(linear);
        if fits::<T>(linear, entry.read) {
            // SAFETY: a TLB entry that fits maps the whole page, which holds all bytes of the access,
            // into guest RAM; the regions live as long as `self.memory`.
            return Ok(unsafe { (linear.wrapping_add(entry.addend) as *const T).read_unaligned() });
        }
        self.load_slow(segment, linear)
    }

    /// Stores at an offset in a segment.
    #[inline(always)]
    pub fn store<T: Plain>(&mut self, segment: u8, offset: u64, value: T) -> Result<(), Fault> {
        let linear = self.linear(segment, offset, size_of::<T>() as u32, Access::Write)?;
        let entry = self.entry(linear);
        if fits::<T>(linear, entry.write) {
            // SAFETY: as in `load`; a write tag is only set for pages that the accessor may write.
            unsafe { (linear.wrapping_add(entry.addend) as *mut T).write_unaligned(value) };
            self.stored(linear, size_of::<T>());
            return Ok(());
        }
        self.store_slow(segment, linear, value)
    }

    /// Reads, changes and writes memory without LOCK. `change` may write flags: nothing can fail after it.
    #[inline(always)]
    pub fn modify<T: Plain>(
        &mut self,
        segment: u8,
        offset: u64,
        change: impl FnOnce(&mut Cpu, T) -> T,
    ) -> Result<(), Fault> {
        let linear = self.linear(segment, offset, size_of::<T>() as u32, Access::Write)?;
        let entry = self.entry(linear);
        if fits::<T>(linear, entry.write) {
            let cell = linear.wrapping_add(entry.addend) as *mut T;
            // SAFETY: as in `store`.
            let old = unsafe { cell.read_unaligned() };
            let new = change(self, old);
            // SAFETY: as in `store`; `change` cannot reach the TLB's arrays or guest RAM's mapping.
            unsafe { cell.write_unaligned(new) };
            self.stored(linear, size_of::<T>());
            return Ok(());
        }
        self.probe_linear(segment, linear, size_of::<T>() as u64, Access::Write)?;
        let old = self.load_slow(segment, linear)?;
        let new = change(self, old);
        self.store_slow(segment, linear, new)
    }

    /// Host address of a memory operand that can be changed with host atomics: RAM, writable, aligned.
    /// `None` if it is writable but not so. After the change call [`Cpu::stored_at`].
    #[inline(always)]
    pub(crate) fn atomic_cell<T: Plain>(
        &mut self,
        segment: u8,
        offset: u64,
    ) -> Result<(u64, Option<*mut T>), Fault> {
        let linear = self.linear(segment, offset, size_of::<T>() as u32, Access::Write)?;
        if !fits::<T>(linear, self.entry(linear).write) {
            self.probe_linear(segment, linear, size_of::<T>() as u64, Access::Write)?;
        }
        let entry = self.entry(linear);
        if linear % size_of::<T>() as u64 != 0 {
            return Ok((linear, None));
        }
        if fits::<T>(linear, entry.write) {
            return Ok((linear, Some(linear.wrapping_add(entry.addend) as *mut T)));
        }
        // Where accesses are watched: other processors' are not, and must not get in between.
        let physical = self.physical(linear, Access::Write, self.mmu.accessor)?;
        self.mmu.aside = physical;
        self.note_watched(linear, size_of::<T>() as u64, Access::Read);
        let cell = self.memory.host_range(physical, size_of::<T>() as u64).ok();
        Ok((linear, cell.filter(|_| self.store_log.is_none()).map(<*mut u8>::cast)))
    }

    /// Tells the tracker of a store through [`Cpu::atomic_cell`].
    #[inline(always)]
    pub(crate) fn stored_at(&mut self, linear: u64, len: usize) {
        if linear ^ self.entry(linear).write <= OFFSET {
            self.stored(linear, len);
        } else {
            self.note_physical_store(self.mmu.aside, len as u64);
        }
    }

    #[inline(always)]
    pub(super) fn entry(&self, linear: u64) -> TlbEntry {
        // SAFETY: `mask` is that of `array`, which the MMU owns.
        unsafe { *self.mmu.array.byte_add(TlbEntry::place(linear, self.mmu.mask)) }
    }

    /// Whether `span` bytes at `linear` lie in one page that may be read, or written while nobody watches it, as far
    /// as the TLB knows.
    pub(crate) fn may_share(&self, linear: u64, span: u16, store: bool) -> bool {
        let entry = self.entry(linear);
        let page = if store { entry.write } else { entry.read };
        // SAFETY: an entry's pointer is to the tracker of a region of `self.memory`, or a static.
        let watched = || store && unsafe { (*entry.flags).load(Ordering::Relaxed) } != 0;
        linear ^ page <= OFFSET + 1 - u64::from(span) && !watched()
    }

    /// After a store through the current entry of `linear`.
    #[inline(always)]
    pub(super) fn stored(&mut self, linear: u64, len: usize) {
        compiler_fence(Ordering::SeqCst);
        let flags = self.entry(linear).flags;
        // SAFETY: an entry's pointer is to the tracker of a region of `self.memory`, or a static.
        if unsafe { (*flags).load(Ordering::Relaxed) } != 0 {
            self.note_store(linear, len);
        }
    }

    #[cold]
    #[inline(never)]
    fn note_store(&mut self, linear: u64, len: usize) {
        let array = self.mmu.tlb.array(self.mmu.accessor as usize);
        let physical = array.physical(linear) | linear & OFFSET;
        self.note_physical_store(physical, len as u64);
    }

    /// Pushes `size` bytes (2, 4 or 8) on the stack.
    #[inline(always)]
    pub fn push(&mut self, value: u64, size: u8) -> Result<(), Fault> {
        let rsp = self.stack_offset(self.regs[4].wrapping_sub(u64::from(size)));
        match size {
            8 => self.store::<u64>(seg::SS, rsp, value)?,
            4 => self.store::<u32>(seg::SS, rsp, value as u32)?,
            _ => self.store::<u16>(seg::SS, rsp, value as u16)?,
        }
        self.set_stack_pointer(rsp);
        Ok(())
    }

    /// Pops `size` bytes (2, 4 or 8) from the stack.
    #[inline(always)]
    pub fn pop(&mut self, size: u8) -> Result<u64, Fault> {
        let rsp = self.stack_offset(self.regs[4]);
        let value = match size {
            8 => self.load::<u64>(seg::SS, rsp)?,
            4 => u64::from(self.load::<u32>(seg::SS, rsp)?),
            _ => u64::from(self.load::<u16>(seg::SS, rsp)?),
        };
        self.set_stack_pointer(rsp.wrapping_add(u64::from(size)));
        Ok(value)
    }
}
