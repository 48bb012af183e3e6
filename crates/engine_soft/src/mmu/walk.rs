//! The page-table walk: 32-bit, PAE, 4-level and 5-level paging (SDM 3A 4.3–4.5).

use super::{Access, Accessor, OFFSET};
use crate::cpu::{Cpu, Fault};
use std::sync::atomic::Ordering;
use x86::{Cr0, Cr4, Efer, Exception, PageFlags};

/// Bits of a page-fault error code (SDM 3A 4.7).
mod code {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// A translation.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    /// Guest-physical address.
    pub physical: u64,
    /// log2 of the page's size.
    pub page_shift: u32,
    /// Stores by the same accessor are allowed, and the dirty flag is set.
    pub writable: bool,
    /// In every address space.
    pub global: bool,
}

/// One step of a walk.
struct Level {
    address: u64,
    entry: u64,
    wide: bool,
}

/// Rights collected on the way.
struct Rights {
    write: bool,
    user: bool,
    execute: bool,
}

impl Cpu {
    /// Translates or stashes a page fault. `linear` must be canonical.
    pub(crate) fn walk(
        &mut self,
        linear: u64,
        access: Access,
        accessor: Accessor,
    ) -> Result<Translation, Fault> {
        if !self.cr0.contains(Cr0::PG) {
            let physical = linear & self.mmu.physical_mask;
            return Ok(Translation { physical, page_shift: 12, writable: true, global: true });
        }
        self.mmu.counts.walks += 1;
        self.walk_tables(linear, access, accessor)
            .map_err(|cause| self.page_fault(linear, access, accessor, cause))
    }

    /// Translates without faults, for debuggers. May set accessed flags.
    pub fn translate(&mut self, linear: u64) -> Option<u64> {
        if !self.cr0.contains(Cr0::PG) {
            return Some(linear);
        }
        let saved = self.exception;
        let found = self.walk_tables(linear, Access::Read, Accessor::SupervisorAc);
        self.exception = saved;
        found.ok().map(|translation| translation.physical)
    }

    #[cold]
    fn page_fault(&mut self, linear: u64, access: Access, accessor: Accessor, cause: u32) -> Fault {
        let mut code = cause;
        if access == Access::Write {
            code |= code::WRITE;
        }
        if accessor == Accessor::User {
            code |= code::USER;
        }
        let nx = self.efer.contains(Efer::NXE) && self.cr4.contains(Cr4::PAE);
        if access == Access::Execute && (nx || self.cr4.contains(Cr4::SMEP)) {
            code |= code::FETCH;
        }
        self.raise(Exception::page_fault(code, linear))
    }

    fn walk_tables(&mut self, linear: u64, access: Access, accessor: Accessor) -> Result<Translation, u32> {
        let wide = self.cr4.contains(Cr4::PAE);
        let mut rights = Rights { write: true, user: true, execute: true };
        let (mut table, mut level) = self.root(linear)?;
        let bits = if wide { 9 } else { 10 };
        loop {
            let shift = 12 + bits * (level - 1);
            let index = linear >> shift & ((1 << bits) - 1);
            let address = table + index * if wide { 8 } else { 4 };
            let entry = self.read_entry(address, wide);
            let at = Level { address, entry, wide };
            let flags = PageFlags::from_bits_retain(entry);
            if !flags.contains(PageFlags::PRESENT) {
                return Err(0);
            }
            let leaf = level == 1 || self.is_large(flags, level, wide);
            if entry & self.reserved_bits(level, leaf, wide) != 0 {
                return Err(code::PRESENT | code::RESERVED);
            }
            rights.write &= flags.contains(PageFlags::WRITE);
            rights.user &= flags.contains(PageFlags::USER);
            rights.execute &= !(wide && flags.contains(PageFlags::NO_EXECUTE));
            if leaf {
                return self.finish(linear, access, accessor, &at, shift, &rights);
            }
            if !flags.contains(PageFlags::ACCESSED) && !self.set_flags(&at, PageFlags::ACCESSED) {
                continue;
            }
            table = entry & if wide { self.mmu.physical_mask & !OFFSET } else { 0xffff_f000 };
            level -= 1;
        }
    }

    /// The first table and its level (1 is the page table).
    fn root(&self, linear: u64) -> Result<(u64, u32), u32> {
        if !self.cr4.contains(Cr4::PAE) {
            return Ok((self.cr3 & 0xffff_f000, 2));
        }
        if self.efer.contains(Efer::LMA) {
            let levels = if self.cr4.contains(Cr4::LA57) { 5 } else { 4 };
            return Ok((self.cr3 & self.mmu.physical_mask & !OFFSET, levels));
        }
        let pdpte = self.mmu.pdptes[(linear >> 30 & 3) as usize];
        if pdpte & 1 == 0 {
            return Err(0);
        }
        Ok((pdpte & self.mmu.physical_mask & !OFFSET, 2))
    }

    fn is_large(&self, flags: PageFlags, level: u32, wide: bool) -> bool {
        let possible = match level {
            2 => wide || self.cr4.contains(Cr4::PSE),
            3 => true,
            _ => false,
        };
        possible && flags.contains(PageFlags::LARGE)
    }

    fn reserved_bits(&self, level: u32, leaf: bool, wide: bool) -> u64 {
        if !wide {
            // A 4 MiB page has physical bits 39–32 in bits 20–13 (PSE-36); bit 21 is reserved.
            let high = self.mmu.physical_mask >> 32 & 0xff;
            return if leaf && level == 2 { 1 << 21 | (!high & 0xff) << 13 } else { 0 };
        }
        let mut reserved = !self.mmu.physical_mask & 0x000f_ffff_ffff_f000;
        if !self.efer.contains(Efer::NXE) {
            reserved |= 1 << 63;
        }
        if !self.efer.contains(Efer::LMA) {
            reserved |= 0x7ff << 52;
        }
        match (level, leaf) {
            (2, true) => reserved |= 0xff << 13,
            (3, true) => reserved |= 0x1_ffff << 13,
            (4 | 5, _) => reserved |= PageFlags::LARGE.bits(),
            _ => {}
        }
        reserved
    }

    fn finish(
        &mut self,
        linear: u64,
        access: Access,
        accessor: Accessor,
        at: &Level,
        shift: u32,
        rights: &Rights,
    ) -> Result<Translation, u32> {
        if !self.allowed(access, accessor, rights) {
            return Err(code::PRESENT);
        }
        let flags = PageFlags::from_bits_retain(at.entry);
        let mut wanted = PageFlags::ACCESSED;
        if access == Access::Write {
            wanted |= PageFlags::DIRTY;
        }
        if !flags.contains(wanted) && !self.set_flags(at, wanted) {
            // Somebody changed the entry meanwhile: from the start.
            return self.walk_tables(linear, access, accessor);
        }
        let dirty = (flags | wanted).contains(PageFlags::DIRTY);
        let offset = linear & ((1 << shift) - 1);
        let frame = if at.wide {
            at.entry & self.mmu.physical_mask & (u64::MAX << shift)
        } else if shift == 22 {
            at.entry & 0xffc0_0000 | (at.entry >> 13 & 0xff) << 32
        } else {
            at.entry & 0xffff_f000
        };
        Ok(Translation {
            physical: frame | offset,
            page_shift: shift,
            writable: dirty && self.allowed(Access::Write, accessor, rights),
            global: flags.contains(PageFlags::GLOBAL) && self.cr4.contains(Cr4::PGE),
        })
    }

    /// Access rights (SDM 3A 4.6.1).
    fn allowed(&self, access: Access, accessor: Accessor, rights: &Rights) -> bool {
        let user = accessor == Accessor::User;
        if user && !rights.user {
            return false;
        }
        match access {
            Access::Execute => {
                let smep = !user && rights.user && self.cr4.contains(Cr4::SMEP);
                rights.execute && !smep
            }
            Access::Read | Access::Write => {
                let smap = accessor == Accessor::Supervisor && rights.user && self.cr4.contains(Cr4::SMAP);
                let protected = user || self.cr0.contains(Cr0::WP);
                !smap && (access == Access::Read || rights.write || !protected)
            }
        }
    }

    fn read_entry(&self, address: u64, wide: bool) -> u64 {
        if wide {
            return self.read_entry64(address);
        }
        // Outside of RAM, nobody answers.
        self.memory
            .atomic_u32(address)
            .map_or(u64::from(u32::MAX), |cell| u64::from(cell.load(Ordering::Acquire)))
    }

    pub(super) fn read_entry64(&self, address: u64) -> u64 {
        self.memory.atomic_u64(address).map_or(u64::MAX, |cell| cell.load(Ordering::Acquire))
    }

    /// Sets accessed and dirty flags; false if the entry is no longer what was read.
    fn set_flags(&self, at: &Level, flags: PageFlags) -> bool {
        let new = at.entry | flags.bits();
        let done = if at.wide {
            self.memory.atomic_u64(at.address).map_or(true, |cell| {
                cell.compare_exchange(at.entry, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            })
        } else {
            self.memory.atomic_u32(at.address).map_or(true, |cell| {
                let (old, new) = (at.entry as u32, new as u32);
                cell.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            })
        };
        self.memory.note_write(at.address, if at.wide { 8 } else { 4 });
        done
    }
}
