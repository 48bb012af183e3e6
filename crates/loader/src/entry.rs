//! The registers a kernel is entered with.

use crate::LoadError;
use crate::fields::put;
use crate::layout::{GDT, PAGE_TABLES};
use guest_memory::GuestMemory;
use x86::{
    CpuState, Cr0, Cr4, DescriptorTable, Efer, MpState, PageFlags, Segment, SegmentAttributes, Segments, msr,
};

/// Selector of the flat code segment (Linux boot protocol: `__BOOT_CS`).
const CODE: u16 = 0x10;
/// Selector of the flat data segment (`__BOOT_DS`).
const DATA: u16 = 0x18;
/// Selector of a task-state segment that is never used, but that hardware virtualisation wants to see.
const TASK: u16 = 0x20;

/// Present, DPL 0, code: executable, readable, accessed, 64-bit.
const CODE64: u16 = 0xa09b;
/// As above, 32-bit.
const CODE32: u16 = 0xc09b;
/// Present, DPL 0, data: writable, accessed, 32-bit.
const DATA32: u16 = 0xc093;
/// Present busy TSS.
const BUSY_TSS: u16 = 0x008b;

/// MTRRs on, everything write-back by default: what firmware leaves behind (SDM 3A 12.11.2.1).
const MTRR_WRITE_BACK: u64 = 0x806;

/// Where and how the boot processor starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the protocol, for messages.
    pub protocol: &'static str,
    /// First instruction.
    pub rip: u64,
    /// Enters 64-bit mode with paging; otherwise flat 32-bit protected mode without.
    pub long_mode: bool,
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RSI.
    pub rsi: u64,
}

impl Entry {
    /// Changes a processor's state after reset to that at the entry.
    pub fn apply(&self, state: &mut CpuState) {
        let flat = |selector, attributes| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            attributes: SegmentAttributes(attributes),
        };
        let data = flat(DATA, DATA32);
        state.gprs = [0; 16];
        (state.gprs[0], state.gprs[3], state.gprs[6]) = (self.rax, self.rbx, self.rsi);
        state.rip = self.rip;
        state.rflags = 2;
        state.segments = Segments {
            cs: flat(CODE, if self.long_mode { CODE64 } else { CODE32 }),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            ldtr: Segment::default(),
            tr: Segment { selector: TASK, base: 0, limit: 0x67, attributes: SegmentAttributes(BUSY_TSS) },
        };
        state.gdtr = DescriptorTable { base: GDT, limit: 6 * 8 - 1 };
        state.idtr = DescriptorTable::default();
        let mut cr0 = Cr0::PE | Cr0::ET;
        (state.cr3, state.cr4, state.efer) = (0, 0, 0);
        if self.long_mode {
            cr0 |= Cr0::PG;
            state.cr3 = PAGE_TABLES;
            state.cr4 = Cr4::PAE.bits();
            state.efer = (Efer::LME | Efer::LMA).bits();
        }
        state.cr0 = cr0.bits();
        state.mp_state = MpState::Runnable;
        state.set_msr(msr::MTRR_DEF_TYPE, MTRR_WRITE_BACK);
    }

    /// Writes the descriptor table and, for 64-bit entries, the page tables that [`Entry::apply`] points to.
    pub(crate) fn write_tables(&self, memory: &GuestMemory) -> Result<(), LoadError> {
        let code = if self.long_mode { CODE64 } else { CODE32 };
        let mut gdt = Vec::new();
        for descriptor in [0, 0, flat_descriptor(code), flat_descriptor(DATA32), task_descriptor(), 0] {
            gdt.extend_from_slice(&u64::to_le_bytes(descriptor));
        }
        memory.write(GDT, &gdt)?;
        if self.long_mode {
            memory.write(PAGE_TABLES, &identity_tables())?;
        }
        Ok(())
    }
}

/// A descriptor with base 0 and limit 4 GiB (SDM 3A 3.4.5).
fn flat_descriptor(attributes: u16) -> u64 {
    let attributes = u64::from(attributes);
    0xffff | 0xf << 48 | (attributes & 0xff) << 40 | (attributes >> 12) << 52
}

fn task_descriptor() -> u64 {
    0x67 | u64::from(BUSY_TSS) << 40
}

/// Maps the first 4 GiB to themselves with 2 MiB pages: one level-4, one level-3, four level-2 tables.
fn identity_tables() -> Vec<u8> {
    const TABLE: u64 = 4096;
    let mut tables = vec![0; 6 * TABLE as usize];
    let link = (PageFlags::PRESENT | PageFlags::WRITE).bits();
    let large = link | PageFlags::LARGE.bits();
    put(&mut tables, 0, &(PAGE_TABLES + TABLE | link).to_le_bytes());
    for quarter in 0..4_u64 {
        let directory = PAGE_TABLES + (2 + quarter) * TABLE;
        put(&mut tables, (TABLE + quarter * 8) as usize, &(directory | link).to_le_bytes());
    }
    for page in 0..2048_u64 {
        put(&mut tables, (2 * TABLE + page * 8) as usize, &(page << 21 | large).to_le_bytes());
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_agree_with_the_hidden_parts() {
        // The values every boot loader uses.
        assert_eq!(flat_descriptor(CODE64), 0x00af_9b00_0000_ffff);
        assert_eq!(flat_descriptor(CODE32), 0x00cf_9b00_0000_ffff);
        assert_eq!(flat_descriptor(DATA32), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn the_tables_map_four_gib_to_itself() {
        let tables = identity_tables();
        let entry = |address: u64| {
            let at = (address - PAGE_TABLES) as usize;
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        for linear in [0, 0x1234_5678, 0xffff_ffff_u64] {
            let level3 = entry(PAGE_TABLES) & !0xfff;
            let level2 = entry(level3 + (linear >> 30) * 8) & !0xfff;
            let page = entry(level2 + (linear >> 21 & 511) * 8);
            assert_eq!(page & 0x83, 0x83);
            assert_eq!((page & !0x1f_ffff) | (linear & 0x1f_ffff), linear);
        }
    }
}
