//! What the fast path cannot do: TLB misses, page-crossing accesses, MMIO, alignment checks and breakpoints.
#![expect(unsafe_code, reason = "copies between values and guest RAM")]

use super::access::Plain;
use super::walk::Translation;
use super::{Access, Accessor, FetchEntry, Mmu, OFFSET, TlbEntry};
use crate::cpu::{Cpu, Fault};
use std::sync::atomic::{Ordering, compiler_fence};
use x86::{Exception, Vector};

/// Small pages that are filled at once for an access to a larger one. A power of two.
const NEIGHBOURS: u64 = 16;
/// The longest access, in bytes.
const LONGEST: usize = 64;

impl Cpu {
    #[cold]
    #[inline(never)]
    pub(super) fn load_slow<T: Plain>(&mut self, segment: u8, linear: u64) -> Result<T, Fault> {
        let len = size_of::<T>();
        self.check_access(segment, linear, len as u64, Access::Read)?;
        let accessor = self.mmu.accessor;
        let mut bytes = [0; LONGEST];
        self.read_linear(linear, &mut bytes[..len], accessor)?;
        // SAFETY: `T` is plain and no longer than the buffer (checked by the slice above).
        Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    #[cold]
    #[inline(never)]
    pub(super) fn store_slow<T: Plain>(&mut self, segment: u8, linear: u64, value: T) -> Result<(), Fault> {
        let len = size_of::<T>();
        self.check_access(segment, linear, len as u64, Access::Write)?;
        let accessor = self.mmu.accessor;
        let mut bytes = [0; LONGEST];
        assert!(len <= LONGEST);
        // SAFETY: `T` is plain and fits the buffer.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
        self.write_linear(linear, &bytes[..len], accessor)
    }

    /// Faults as a store (or load) of `len` bytes would, without making it.
    pub fn probe(&mut self, segment: u8, offset: u64, len: u32, write: bool) -> Result<(), Fault> {
        let access = if write { Access::Write } else { Access::Read };
        let linear = self.linear(segment, offset, len, access)?;
        self.probe_linear(segment, linear, u64::from(len), access)
    }

    pub(super) fn probe_linear(
        &mut self,
        segment: u8,
        linear: u64,
        len: u64,
        access: Access,
    ) -> Result<(), Fault> {
        self.check_access(segment, linear, len, access)?;
        let accessor = self.mmu.accessor;
        self.probe_pages(linear, len, access, accessor)
    }

    fn probe_pages(
        &mut self,
        linear: u64,
        len: u64,
        access: Access,
        accessor: Accessor,
    ) -> Result<(), Fault> {
        let mut page = linear;
        loop {
            self.physical(page, access, accessor)?;
            let next = (page | OFFSET).wrapping_add(1);
            if next.wrapping_sub(linear) >= len {
                return Ok(());
            }
            page = self.wrap(next);
        }
    }

    /// Implicit supervisor load (descriptor tables, TSS).
    pub fn system_load<T: Plain>(&mut self, linear: u64) -> Result<T, Fault> {
        self.access_load(linear, false)
    }

    /// Implicit supervisor store.
    pub fn system_store<T: Plain>(&mut self, linear: u64, value: T) -> Result<(), Fault> {
        self.access_store(linear, value, false)
    }

    /// Faults as an implicit supervisor access would.
    pub fn system_probe(&mut self, linear: u64, len: u64, write: bool) -> Result<(), Fault> {
        let access = if write { Access::Write } else { Access::Read };
        self.probe_pages(self.wrap(linear), len, access, Accessor::Supervisor)
    }

    /// Load at a linear address with the given privilege, not the current one.
    pub fn access_load<T: Plain>(&mut self, linear: u64, user: bool) -> Result<T, Fault> {
        let accessor = if user { Accessor::User } else { Accessor::Supervisor };
        let mut bytes = [0; LONGEST];
        self.check_canonical(linear, size_of::<T>() as u64)?;
        self.read_linear(self.wrap(linear), &mut bytes[..size_of::<T>()], accessor)?;
        // SAFETY: as in `load_slow`.
        Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    /// Store at a linear address with the given privilege, not the current one.
    pub fn access_store<T: Plain>(&mut self, linear: u64, value: T, user: bool) -> Result<(), Fault> {
        let accessor = if user { Accessor::User } else { Accessor::Supervisor };
        let mut bytes = [0; LONGEST];
        assert!(size_of::<T>() <= LONGEST);
        // SAFETY: as in `store_slow`.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
        self.check_canonical(linear, size_of::<T>() as u64)?;
        self.write_linear(self.wrap(linear), &bytes[..size_of::<T>()], accessor)
    }

    fn check_canonical(&mut self, linear: u64, len: u64) -> Result<(), Fault> {
        let last = linear.wrapping_add(len - 1);
        if self.is_long() && !(self.is_canonical(linear) && self.is_canonical(last)) {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Linear addresses outside IA-32e mode have 32 bits.
    fn wrap(&self, linear: u64) -> u64 {
        if self.is_long() { linear } else { linear & 0xffff_ffff }
    }

    fn check_access(&mut self, segment: u8, linear: u64, len: u64, access: Access) -> Result<(), Fault> {
        self.mmu.counts.slow += 1;
        let last = linear.wrapping_add(len.max(1) - 1);
        if self.long64 && !self.is_canonical(linear) {
            return Err(self.segment_fault(segment));
        }
        // Silicon does not check wider operands.
        if matches!(len, 2 | 4 | 8) {
            self.check_operand_alignment(linear, len)?;
        }
        if self.long64 && !self.is_canonical(last) {
            return Err(self.segment_fault(segment));
        }
        if self.debug.is_some() {
            self.note_watched(linear, len, access);
        }
        if self.mmu.check_breakpoints {
            self.watch(linear, len, access);
        }
        Ok(())
    }

    /// `#AC` where alignment is checked and `linear` is not a multiple of `size`, for operands whose parts are accessed
    /// one by one.
    pub(crate) fn check_operand_alignment(&mut self, linear: u64, size: u64) -> Result<(), Fault> {
        if self.mmu.check_alignment && linear & (size - 1) != 0 {
            return Err(self.raise(Exception::with_code(Vector::Alignment, 0)));
        }
        Ok(())
    }

    /// Runs accesses that silicon does not check for alignment: those of masked vector moves.
    pub(crate) fn without_alignment<R>(&mut self, access: impl FnOnce(&mut Cpu) -> R) -> R {
        let checked = std::mem::take(&mut self.mmu.check_alignment);
        let result = access(self);
        self.mmu.check_alignment = checked;
        result
    }

    /// Notes data breakpoints (SDM 3B 17.2.4).
    fn watch(&mut self, linear: u64, len: u64, access: Access) {
        for number in 0..4 {
            let enabled = self.dr7 >> (2 * number) & 3 != 0;
            let kind = self.dr7 >> (16 + 4 * number) & 3;
            let matches = kind == 3 || kind == 1 && access == Access::Write;
            let size = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * number) & 3) as usize];
            let start = self.dr[number as usize] & !(size - 1);
            let overlap = linear < start.wrapping_add(size) && start < linear.wrapping_add(len);
            if enabled && matches && overlap {
                self.mmu.breakpoints_hit |= 1 << number;
            }
        }
    }

    fn read_linear(&mut self, linear: u64, bytes: &mut [u8], accessor: Accessor) -> Result<(), Fault> {
        let first = (OFFSET + 1 - (linear & OFFSET)).min(bytes.len() as u64) as usize;
        let physical = self.physical(linear, Access::Read, accessor)?;
        if first == bytes.len() {
            self.read_physical(physical, bytes);
            return Ok(());
        }
        let second = self.physical(self.wrap(linear.wrapping_add(first as u64)), Access::Read, accessor)?;
        let (low, high) = bytes.split_at_mut(first);
        self.read_physical(physical, low);
        self.read_physical(second, high);
        Ok(())
    }

    fn write_linear(&mut self, linear: u64, bytes: &[u8], accessor: Accessor) -> Result<(), Fault> {
        let first = (OFFSET + 1 - (linear & OFFSET)).min(bytes.len() as u64) as usize;
        let physical = self.physical(linear, Access::Write, accessor)?;
        if first == bytes.len() {
            self.write_physical(physical, bytes);
            return Ok(());
        }
        let second = self.physical(self.wrap(linear.wrapping_add(first as u64)), Access::Write, accessor)?;
        let (low, high) = bytes.split_at(first);
        self.write_physical(physical, low);
        self.write_physical(second, high);
        Ok(())
    }

    /// Reads guest-physical memory: RAM, local APIC or devices. Must not cross a page.
    pub(crate) fn read_physical(&mut self, physical: u64, bytes: &mut [u8]) {
        let Ok(host) = self.memory.host_range(physical, bytes.len() as u64) else {
            return self.read_mmio(physical, bytes);
        };
        // SAFETY: the range is mapped guest RAM. Sizes of powers of two are one host load each.
        unsafe {
            match bytes.len() {
                1 => bytes.copy_from_slice(&[host.read_volatile()]),
                2 => bytes.copy_from_slice(&host.cast::<[u8; 2]>().read()),
                4 => bytes.copy_from_slice(&host.cast::<u32>().read_unaligned().to_ne_bytes()),
                8 => bytes.copy_from_slice(&host.cast::<u64>().read_unaligned().to_ne_bytes()),
                len => std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), len),
            }
        }
    }

    /// Writes guest-physical memory. Must not cross a page.
    pub(crate) fn write_physical(&mut self, physical: u64, bytes: &[u8]) {
        let Ok(host) = self.memory.host_range(physical, bytes.len() as u64) else {
            return self.write_mmio(physical, bytes);
        };
        self.log_store(physical, bytes.len());
        // SAFETY: as in `read_physical`.
        unsafe {
            match *bytes {
                [a] => host.write_volatile(a),
                [a, b] => host.cast::<u16>().write_unaligned(u16::from_ne_bytes([a, b])),
                [a, b, c, d] => host.cast::<u32>().write_unaligned(u32::from_ne_bytes([a, b, c, d])),
                [a, b, c, d, e, f, g, h] => {
                    host.cast::<u64>().write_unaligned(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
                }
                _ => std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len()),
            }
        }
        compiler_fence(Ordering::SeqCst);
        self.note_physical_store(physical, bytes.len() as u64);
    }

    /// After a store to RAM: tells the trackers, and ends the running block if code became stale.
    pub(crate) fn note_physical_store(&mut self, physical: u64, len: u64) {
        if self.memory.note_write(physical, len) {
            self.block_end = 0;
            if let Some(log) = &mut self.store_log {
                log.code = true;
            }
        }
    }

    #[cold]
    fn read_mmio(&mut self, physical: u64, bytes: &mut [u8]) {
        if let Some(log) = &mut self.store_log {
            log.device = true;
            return bytes.fill(0xff);
        }
        self.mmu.counts.mmio += 1;
        let mut at = physical;
        for chunk in pieces(bytes.len(), physical) {
            let piece = &mut bytes[chunk.clone()];
            if !self.apic_read(at, piece) {
                piece.fill(0xff);
                if let Some(io) = self.io_reference() {
                    io.mmio_read(at, piece);
                }
            }
            at += chunk.len() as u64;
        }
    }

    #[cold]
    fn write_mmio(&mut self, physical: u64, bytes: &[u8]) {
        if let Some(log) = &mut self.store_log {
            log.device = true;
            return;
        }
        self.mmu.counts.mmio += 1;
        let mut at = physical;
        for chunk in pieces(bytes.len(), physical) {
            let piece = &bytes[chunk.clone()];
            if !self.apic_write(at, piece)
                && let Some(io) = self.io_reference()
            {
                io.mmio_write(at, piece);
            }
            at += chunk.len() as u64;
        }
        // A device may have raised an interrupt or the APIC changed: look before the next block.
        self.block_end = 0;
    }

    /// Translates one byte's address for an access, filling the TLB.
    pub(crate) fn physical(&mut self, linear: u64, access: Access, accessor: Accessor) -> Result<u64, Fault> {
        let array = self.mmu.tlb.array(accessor as usize);
        let entry = array.entry(linear);
        let held = if access == Access::Write { entry.write } else { entry.read };
        if linear ^ held <= OFFSET {
            return Ok(array.physical(linear) | linear & OFFSET);
        }
        let found = self.walk(linear, access, accessor)?;
        self.check_foreign_apic(found.physical)?;
        self.fill(accessor, linear, &found);
        Ok(found.physical)
    }

    fn fill(&mut self, accessor: Accessor, linear: u64, found: &Translation) {
        let mmu = &mut self.mmu;
        if found.page_shift > 12 {
            let (word, bit) = Mmu::large_bit(linear);
            mmu.large[word] |= bit;
            mmu.huge |= if found.page_shift > 22 { Mmu::huge_bit(linear) } else { 0 };
        }
        let number = accessor as usize;
        let watched = self.is_watched_page(linear);
        let page = super::tlb::page_of(&self.memory, linear, found).filter(|_| !watched);
        let Some(page) = page else {
            self.mmu.tlb.array_mut(number).drop_entry(linear);
            self.update_array();
            return;
        };
        self.mmu.tlb.array_mut(number).put(&page);
        if found.page_shift > 12 && self.debug.is_none() && self.system.foreign_apic.is_none() {
            self.fill_around(number, linear, found);
        }
        if self.mmu.tlb.grow(number) {
            self.update_array();
        }
    }

    /// Fills empty slots for the neighbours of a small piece of a larger page, which its entry maps as well.
    fn fill_around(&mut self, number: usize, linear: u64, found: &Translation) {
        for neighbour in 1..NEIGHBOURS {
            let change = neighbour << 12;
            let found = Translation { physical: found.physical ^ change, ..*found };
            let Some(page) = super::tlb::page_of(&self.memory, linear ^ change, &found) else { continue };
            self.mmu.tlb.array_mut(number).offer(&page);
        }
    }

    /// Physical address of the next instruction byte.
    pub(crate) fn fetch_physical(&mut self, linear: u64) -> Result<u64, Fault> {
        let slot = (linear >> 12) as usize % super::FETCH_SIZE;
        let key = self.mmu.fetch_key;
        let held = self.mmu.fetch[slot];
        if held.linear == linear & !OFFSET && held.key == key {
            return Ok(held.physical | linear & OFFSET);
        }
        if self.is_long() && !self.is_canonical(linear) {
            return Err(self.gp(0));
        }
        let accessor = if self.cpl == 3 { Accessor::User } else { Accessor::Supervisor };
        let found = self.walk(linear, Access::Execute, accessor)?;
        let physical = found.physical & !OFFSET;
        if found.page_shift > 12 {
            let (word, bit) = Mmu::large_bit(linear);
            self.mmu.large[word] |= bit;
            self.mmu.huge |= if found.page_shift > 22 { Mmu::huge_bit(linear) } else { 0 };
        }
        let (word, bit) = Mmu::fetched_bit(linear);
        self.mmu.fetched[word] |= bit;
        if !found.global && accessor != Accessor::User {
            self.fetched_outside_global_pages();
        }
        let key = self.mmu.fetch_key;
        self.mmu.fetch[slot] = FetchEntry { linear: linear & !OFFSET, key, physical };
        Ok(found.physical)
    }

    /// Host address of `linear` for up to the rest of its page, if that is RAM and the access is allowed
    /// on the fast path; fills the TLB. `Ok(None)` asks for element-wise accesses.
    pub(crate) fn page_run(
        &mut self,
        segment: u8,
        linear: u64,
        access: Access,
    ) -> Result<Option<*mut u8>, Fault> {
        if self.mmu.check_alignment || self.mmu.check_breakpoints || self.store_log.is_some() {
            return Ok(None);
        }
        let hit = |entry: TlbEntry| {
            linear ^ (if access == Access::Write { entry.write } else { entry.read }) <= OFFSET
        };
        if !hit(self.entry(linear)) {
            self.probe_linear(segment, linear, 1, access)?;
        }
        let entry = self.entry(linear);
        Ok(hit(entry).then(|| linear.wrapping_add(entry.addend) as *mut u8))
    }

    /// After stores through [`Cpu::page_run`].
    pub(crate) fn stored_run(&mut self, linear: u64, len: usize) {
        self.stored(linear, len);
    }
}

/// Cuts an access into naturally aligned device accesses of at most eight bytes.
fn pieces(len: usize, address: u64) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let left = len - done;
        if left == 0 {
            return None;
        }
        let whole = left == len && matches!(len, 1 | 2 | 4 | 8);
        let aligned = 1_usize << (address + done as u64).trailing_zeros().min(3);
        let largest = 1 << left.ilog2().min(3);
        let size = if whole { len } else { aligned.min(largest) };
        done += size;
        Some(done - size..done)
    })
}
