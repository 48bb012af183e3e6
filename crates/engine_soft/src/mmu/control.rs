//! What instructions and mode changes do to the TLB.

use super::{Accessor, LAST_SPACE, Mmu, OFFSET};
use crate::cpu::{Cpu, Fault};
use crate::translate::kind::CodeKind;
use x86::{Cr0, Cr4, Efer, RFlags};

/// In a fetch key: no address space, but global pages.
const EVERY_SPACE: u64 = 0x800;
const _: () = assert!(EVERY_SPACE > LAST_SPACE as u64);

/// DR7's enable bits and the R/W fields that ask for data accesses.
fn watches_data(dr7: u64) -> bool {
    (0..4).any(|n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 1 != 0)
}

impl Cpu {
    /// Recomputes what the TLB compares; part of [`Cpu::mode_changed`], and needed after DR7 changed.
    pub fn update_translation_mode(&mut self) {
        let smap = self.cr4.contains(Cr4::SMAP) && self.cr0.contains(Cr0::PG);
        let accessor = match self.cpl {
            3 => Accessor::User,
            _ if smap && self.has_flag(RFlags::AC) => Accessor::SupervisorAc,
            _ => Accessor::Supervisor,
        };
        let mmu = &mut self.mmu;
        mmu.accessor = accessor;
        mmu.check_alignment =
            self.cpl == 3 && self.cr0.contains(Cr0::AM) && self.system_flags & RFlags::AC.bits() != 0;
        mmu.check_breakpoints = watches_data(self.dr7);
        self.update_tags();
    }

    /// Looks where the current array is. To be called whenever entries of it are void: there may be a copy of one, and pointers
    /// into an array that is no longer the current one.
    pub(super) fn update_array(&mut self) {
        let mmu = &mut self.mmu;
        // A block that is rehearsed has its stores noted on the slow path.
        let open = !(mmu.check_alignment || mmu.check_breakpoints) && self.store_log.is_none();
        let (array, mask) = mmu.tlb.start(mmu.accessor as usize, open);
        mmu.stack.limit = 0;
        if (array, mask) != (mmu.array, mmu.mask) {
            mmu.hints.enter((array, mask), mmu.accessor == Accessor::User);
        }
        (mmu.array, mmu.mask) = (array, mask);
    }

    /// Before the processor goes idle at `now` nanoseconds: now and then, the TLB gives memory back.
    pub(crate) fn settle_tlb(&mut self, now: u64) {
        const INTERVAL_NS: u64 = 250_000_000;
        if now >= self.mmu.next_settling {
            self.mmu.next_settling = now.saturating_add(INTERVAL_NS);
            self.mmu.tlb.settle();
            self.update_array();
        }
    }

    fn update_tags(&mut self) {
        const WIDTH: u32 = CodeKind::WIDTH;
        self.update_array();
        let kind = u64::from(self.kind.bits());
        let mmu = &mut self.mmu;
        let user = self.cpl == 3;
        let space = if !user && mmu.global_code { EVERY_SPACE } else { u64::from(mmu.space) };
        mmu.fetch_key =
            mmu.fetch_epoch << (WIDTH + 13) | space << (WIDTH + 1) | u64::from(user) << WIDTH | kind;
    }

    /// Code was fetched at CPL 0 to 2 from a page that is not global: from now on, until the next flush of global
    /// translations, fetch keys name the address space.
    pub(super) fn fetched_outside_global_pages(&mut self) {
        if self.mmu.global_code {
            self.mmu.global_code = false;
            self.update_tags();
        }
    }

    /// Forgets all translations, or all but those of global pages.
    pub fn flush_tlb(&mut self, keep_global: bool) {
        self.mmu.counts.flushes += 1;
        if !keep_global {
            self.mmu.tlb.flush_global();
            self.mmu.new_fetch_epoch();
            self.mmu.global_code = true;
        }
        self.mmu.spaces_of_pcid.fill(0);
        self.mmu.tlb.release_all();
        self.enter_space(self.cr3, false);
    }

    fn current_pcid(&self, cr3: u64) -> usize {
        if self.cr4.contains(Cr4::PCIDE) { (cr3 & OFFSET) as usize } else { 0 }
    }

    fn enter_space(&mut self, cr3: u64, keep: bool) {
        let pcid = self.current_pcid(cr3);
        let known = self.mmu.spaces_of_pcid[pcid];
        self.mmu.space = if keep && known != 0 {
            known
        } else {
            self.mmu.tlb.release(known);
            self.mmu.new_space()
        };
        self.mmu.tlb.enter(self.mmu.space);
        self.mmu.spaces_of_pcid[pcid] = self.mmu.space;
        self.update_tags();
    }

    /// After a MOV to CR3. `keep` is bit 63 of the written value under CR4.PCIDE: the new PCID's
    /// translations stay (SDM 3A 4.10.4.1).
    pub fn cr3_loaded(&mut self, keep: bool) {
        self.mmu.counts.flushes += u64::from(!keep);
        let keep = keep && self.cr4.contains(Cr4::PCIDE);
        self.enter_space(self.cr3, keep);
    }

    /// INVLPG: forgets the page of a linear address in the current address space, and if it is global.
    pub fn invalidate_page(&mut self, linear: u64) {
        let mmu = &mut self.mmu;
        mmu.counts.flushes += 1;
        let (word, bit) = Mmu::large_bit(linear);
        let (fetched_word, fetched_bit) = Mmu::fetched_bit(linear);
        let huge = mmu.huge & Mmu::huge_bit(linear) != 0;
        let large = huge || mmu.large[word] & bit != 0;
        if large || mmu.fetched[fetched_word] & fetched_bit != 0 {
            mmu.new_fetch_epoch();
        }
        if huge {
            mmu.tlb.forget(linear >> 30 << 30, 1 << 30);
        } else if large {
            // 4 MiB pages of 32-bit paging span two regions.
            mmu.tlb.forget(linear >> 22 << 22, 1 << 22);
        } else {
            mmu.tlb.forget(linear & !OFFSET, OFFSET + 1);
        }
        self.update_tags();
    }

    /// INVPCID (SDM 2A). Checks of operands and privileges are the instruction's.
    pub fn invpcid(&mut self, kind: u64, pcid: u16, linear: u64) {
        let current = self.current_pcid(self.cr3);
        let pcid = usize::from(pcid & 0xfff);
        match kind {
            0 if pcid == current => self.invalidate_page(linear),
            0 | 1 if pcid != current => {
                let space = std::mem::take(&mut self.mmu.spaces_of_pcid[pcid]);
                self.mmu.tlb.release(space);
            }
            1 => {
                self.mmu.counts.flushes += 1;
                self.enter_space(self.cr3, false);
            }
            2 => self.flush_tlb(false),
            _ => self.flush_tlb(true),
        }
    }

    /// Loads the four PDPTEs of PAE paging (SDM 3A 4.4.1): `#GP(0)` on reserved bits. Needed when CR3 is
    /// loaded, or CR0.PG, CR4.PAE and such change, with PAE paging on.
    pub fn load_pdptes(&mut self, cr3: u64) -> Result<(), Fault> {
        let base = cr3 & 0xffff_ffe0;
        let mut pdptes = [0; 4];
        let reserved = !self.mmu.physical_mask | 0b1_1110_0110;
        for (index, pdpte) in (0..).zip(&mut pdptes) {
            *pdpte = self.read_entry64(base + 8 * index);
            if *pdpte & 1 != 0 && *pdpte & reserved != 0 {
                return Err(self.gp(0));
            }
        }
        self.mmu.pdptes = pdptes;
        Ok(())
    }

    /// Whether PAE paging (three-level) is in force with these registers.
    pub fn is_pae_paging(&self) -> bool {
        self.cr0.contains(Cr0::PG) && self.cr4.contains(Cr4::PAE) && !self.efer.contains(Efer::LMA)
    }
}
