//! Tests of paging and of the TLB. The expectations are the manual's (SDM 3A 4.3–4.10).

use super::{Access, Accessor};
use crate::cpu::{Cpu, seg};
use crate::interp::harness::{cpu_in, flat, long_state};
use guest_memory::GuestMemory;
use std::sync::Arc;
use x86::{CpuState, Cr0, Cr4, Efer, PageFlags, Vector};

pub(super) const ROOT: u64 = 0x10_0000;
pub(super) const PRESENT: u64 = 1;
pub(super) const WRITE: u64 = 2;
pub(super) const USER: u64 = 4;
pub(super) const ACCESSED: u64 = 0x20;
pub(super) const DIRTY: u64 = 0x40;
pub(super) const LARGE: u64 = 0x80;
const GLOBAL: u64 = 0x100;
pub(super) const ALL: u64 = PRESENT | WRITE | USER;
const TARGET: u64 = 0x20_0000;

/// A processor with tables to be filled in.
struct Bench {
    memory: Arc<GuestMemory>,
    cpu: Cpu,
}

fn state(cr4: Cr4, efer: Efer) -> CpuState {
    let mut state = long_state();
    state.cr3 = ROOT;
    state.cr4 = cr4.bits();
    state.efer = efer.bits();
    if !efer.contains(Efer::LMA) {
        state.segments.cs = flat(8, 0xc09b);
    }
    state
}

impl Bench {
    fn new(cr4: Cr4, efer: Efer) -> Self {
        let memory = Arc::new(GuestMemory::new(&[(0, 16 << 20)]).expect("the host has memory"));
        let cpu = cpu_in(Arc::clone(&memory), &state(cr4, efer));
        Bench { memory, cpu }
    }
    /// 4-level paging with one mapping of `linear` by a 4 KiB page.
    fn long(extra: Cr4, linear: u64, leaf: u64) -> Self {
        let bench = Bench::new(Cr4::PAE | extra, Efer::LME | Efer::LMA | Efer::NXE);
        bench.map(linear, 4, 1, leaf);
        bench
    }
    /// Writes a chain of 8-byte entries from a root of `levels` down to level `last`.
    fn map(&self, linear: u64, levels: u32, last: u32, leaf: u64) {
        let mut table = ROOT;
        for level in (last..=levels).rev() {
            let index = linear >> (12 + 9 * (level - 1)) & 0x1ff;
            let entry = if level == last { leaf } else { table + 0x1000 | ALL };
            self.put(table + 8 * index, entry);
            table += 0x1000;
        }
    }
    fn put(&self, address: u64, entry: u64) {
        self.memory.write(address, &entry.to_le_bytes()).expect("is RAM");
    }
    fn get(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(address, &mut bytes).expect("is RAM");
        u64::from_le_bytes(bytes)
    }
    fn try_at(&mut self, linear: u64, access: Access, accessor: Accessor) -> Result<u64, u32> {
        match self.cpu.walk(linear, access, accessor) {
            Ok(found) => Ok(found.physical),
            Err(_) => {
                assert_eq!(self.cpu.exception.vector, Vector::PageFault);
                assert_eq!(self.cpu.exception.payload, linear);
                Err(self.cpu.exception.error_code)
            }
        }
    }
}

#[test]
fn four_and_five_levels_reach_pages_of_every_size() {
    let linear = 0xffff_8012_3456_7abc;
    for (cr4, levels) in [(Cr4::empty(), 4), (Cr4::LA57, 5)] {
        for (last, mask) in [(1, 0xfff), (2, 0x1f_ffff), (3, 0x3fff_ffff)] {
            let mut bench = Bench::new(Cr4::PAE | cr4, Efer::LME | Efer::LMA | Efer::NXE);
            let large = if last > 1 { LARGE } else { 0 };
            let frame = 0x40_0000_0000_u64;
            bench.map(linear, levels, last, frame | large | ALL);
            let found = bench.try_at(linear, Access::Write, Accessor::User);
            assert_eq!(found, Ok(frame | linear & mask), "{levels} levels, leaf at {last}");
        }
    }
}

#[test]
fn thirty_two_bit_paging_reaches_small_and_large_pages() {
    let linear = 0xc123_4567_u64;
    let mut bench = Bench::new(Cr4::PSE, Efer::empty());
    let word = |bench: &Bench, address, entry: u32| {
        bench.memory.write(address, &entry.to_le_bytes()).expect("is RAM")
    };
    word(&bench, ROOT + 4 * (linear >> 22), (ROOT + 0x1000) as u32 | 7);
    word(&bench, ROOT + 0x1000 + 4 * (linear >> 12 & 0x3ff), 0x0080_0007);
    assert_eq!(bench.try_at(linear, Access::Write, Accessor::User), Ok(0x80_0567));
    // PSE-36: physical bits 39–32 in bits 20–13.
    word(&bench, ROOT + 4 * (linear >> 22), 0x0180_0000 | 0x12 << 13 | 0x87);
    assert_eq!(bench.try_at(linear, Access::Read, Accessor::User), Ok(0x12_0180_0000 | linear & 0x3f_ffff));
    // Bit 21 is reserved in a 4 MiB page.
    word(&bench, ROOT + 4 * (linear >> 22), 0x01a0_0087);
    assert_eq!(bench.try_at(linear, Access::Read, Accessor::User), Err(0b1101));
}

#[test]
fn pae_paging_uses_the_loaded_pdptes() {
    let linear = 0xc123_4567_u64;
    let mut bench = Bench::new(Cr4::PAE, Efer::NXE);
    bench.put(ROOT + 24, (ROOT + 0x1000) | 1);
    bench.put(ROOT + 0x1000 + 8 * (linear >> 21 & 0x1ff), (ROOT + 0x2000) | ALL);
    bench.put(ROOT + 0x2000 + 8 * (linear >> 12 & 0x1ff), TARGET | ALL | 1 << 63);
    assert_eq!(bench.try_at(linear, Access::Read, Accessor::User), Err(0b100), "not loaded yet");
    assert!(bench.cpu.load_pdptes(ROOT).is_ok());
    assert_eq!(bench.try_at(linear, Access::Write, Accessor::User), Ok(TARGET | 0x567));
    assert_eq!(bench.try_at(linear, Access::Execute, Accessor::User), Err(0b1_0101));
    bench.put(ROOT + 0x1000 + 8 * (linear >> 21 & 0x1ff), 0x60_0000 | LARGE | ALL);
    assert_eq!(bench.try_at(linear, Access::Read, Accessor::User), Ok(0x60_0000 | linear & 0x1f_ffff));
    // Write permission is reserved in a PDPTE.
    bench.put(ROOT + 24, (ROOT + 0x1000) | 3);
    assert!(bench.cpu.load_pdptes(ROOT).is_err());
    assert_eq!(bench.cpu.exception.vector, Vector::GeneralProtection);
}

#[test]
fn faults_carry_the_manuals_error_codes() {
    let linear = 0x1234_5000;
    let user = Accessor::User;
    let kernel = Accessor::Supervisor;
    let none = Cr4::empty();
    let nx = PageFlags::NO_EXECUTE.bits();
    for (extra, leaf, access, accessor, wanted) in [
        (none, 0, Access::Read, kernel, Err(0)),
        (none, 0, Access::Write, user, Err(0b110)),
        (none, 0, Access::Execute, user, Err(0b1_0100)),
        (none, TARGET | PRESENT, Access::Read, user, Err(0b101)),
        (none, TARGET | PRESENT | USER, Access::Write, user, Err(0b111)),
        (none, TARGET | PRESENT, Access::Write, kernel, Err(0b011)),
        (none, TARGET | ALL | nx, Access::Execute, user, Err(0b1_0101)),
        (none, TARGET | ALL | 1 << 51, Access::Read, user, Err(0b1101)),
        (Cr4::SMEP, TARGET | ALL, Access::Execute, kernel, Err(0b1_0001)),
        (Cr4::SMEP, TARGET | ALL, Access::Execute, user, Ok(TARGET)),
        (Cr4::SMAP, TARGET | ALL, Access::Read, kernel, Err(0b001)),
        (Cr4::SMAP, TARGET | ALL, Access::Write, Accessor::SupervisorAc, Ok(TARGET)),
        (none, TARGET | ALL, Access::Read, kernel, Ok(TARGET)),
    ] {
        let mut bench = Bench::long(extra, linear, leaf);
        assert_eq!(bench.try_at(linear, access, accessor), wanted, "{leaf:#x} {access:?} {accessor:?}");
    }
}

#[test]
fn write_protection_of_the_supervisor_hangs_on_cr0_wp() {
    let mut bench = Bench::long(Cr4::empty(), 0x1000, TARGET | PRESENT);
    assert_eq!(bench.try_at(0x1000, Access::Write, Accessor::Supervisor), Err(0b11));
    bench.cpu.cr0 -= Cr0::WP;
    assert_eq!(bench.try_at(0x1000, Access::Write, Accessor::Supervisor), Ok(TARGET));
}

#[test]
fn accessed_and_dirty_flags_are_set_when_due() {
    let mut bench = Bench::long(Cr4::empty(), 0x1000, TARGET | ALL);
    let leaf = ROOT + 0x3000 + 8;
    assert_eq!(bench.get(leaf) & (ACCESSED | DIRTY), 0);
    assert!(bench.cpu.load::<u8>(seg::DS, 0x1000).is_ok());
    assert_eq!(bench.get(leaf) & (ACCESSED | DIRTY), ACCESSED);
    assert_eq!(bench.get(ROOT) & ACCESSED, ACCESSED);
    // The entry cached by the load must not let the store pass without the dirty flag.
    assert!(bench.cpu.store::<u8>(seg::DS, 0x1001, 1).is_ok());
    assert_eq!(bench.get(leaf) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
}

#[test]
fn a_failed_access_sets_no_dirty_flag() {
    let mut bench = Bench::long(Cr4::empty(), 0x1000, TARGET | PRESENT | USER);
    assert!(bench.cpu.store::<u8>(seg::DS, 0x1000, 1).is_err());
    assert_eq!(bench.get(ROOT + 0x3008) & DIRTY, 0);
}

#[test]
fn accesses_across_pages_fault_before_they_write() {
    let mut bench = Bench::long(Cr4::empty(), 0x1000, TARGET | ALL);
    assert!(bench.cpu.store::<u64>(seg::DS, 0x1ffc, u64::MAX).is_err());
    assert_eq!(bench.cpu.exception.payload, 0x2000);
    assert_eq!(bench.get(TARGET + 0xff8), 0);
    bench.put(ROOT + 0x3010, 0x30_0000 | ALL);
    assert!(bench.cpu.store::<u64>(seg::DS, 0x1ffc, 0x1122_3344_5566_7788).is_ok());
    assert_eq!(bench.get(TARGET + 0xff8) >> 32, 0x5566_7788);
    assert_eq!(bench.get(0x30_0000), 0x1122_3344);
    assert_eq!(bench.cpu.load::<u64>(seg::DS, 0x1ffc).ok(), Some(0x1122_3344_5566_7788));
}

#[test]
fn non_canonical_addresses_raise_gp_or_ss() {
    let mut bench = Bench::long(Cr4::empty(), 0x1000, TARGET | ALL);
    assert!(bench.cpu.load::<u8>(seg::DS, 1 << 47).is_err());
    assert_eq!(bench.cpu.exception.vector, Vector::GeneralProtection);
    assert!(bench.cpu.load::<u8>(seg::SS, 1 << 47).is_err());
    assert_eq!(bench.cpu.exception.vector, Vector::Stack);
    assert!(bench.cpu.load::<u16>(seg::DS, (1 << 47) - 1).is_err());
    assert_eq!(bench.cpu.exception.vector, Vector::GeneralProtection);
}

#[test]
fn old_translations_stay_until_invalidated() {
    let mut bench = Bench::long(Cr4::empty(), 0x1000, TARGET | ALL | DIRTY);
    bench.put(TARGET, 1);
    bench.put(0x30_0000, 2);
    let read = |bench: &mut Bench| bench.cpu.load::<u64>(seg::DS, 0x1000).ok();
    assert_eq!(read(&mut bench), Some(1));
    bench.put(ROOT + 0x3008, 0x30_0000 | ALL);
    bench.cpu.invalidate_page(0x1234);
    assert_eq!(read(&mut bench), Some(2));
    bench.put(ROOT + 0x3008, TARGET | ALL);
    bench.cpu.cr3_loaded(false);
    assert_eq!(read(&mut bench), Some(1));
}

#[test]
fn global_pages_survive_cr3_but_not_a_global_flush() {
    let mut bench = Bench::long(Cr4::PGE, 0x1000, TARGET | ALL | GLOBAL);
    bench.put(TARGET, 1);
    bench.put(0x30_0000, 2);
    let read = |bench: &mut Bench| bench.cpu.load::<u64>(seg::DS, 0x1000).ok();
    assert_eq!(read(&mut bench), Some(1));
    bench.put(ROOT + 0x3008, 0x30_0000 | ALL | GLOBAL);
    bench.cpu.cr3_loaded(false);
    assert_eq!(read(&mut bench), Some(1), "kept by its G flag");
    bench.cpu.flush_tlb(true);
    assert_eq!(read(&mut bench), Some(1), "kept by its G flag");
    bench.cpu.flush_tlb(false);
    assert_eq!(read(&mut bench), Some(2));
    bench.put(ROOT + 0x3008, TARGET | ALL | GLOBAL);
    bench.cpu.invalidate_page(0x1000);
    assert_eq!(read(&mut bench), Some(1), "INVLPG reaches global pages");
}

#[test]
fn process_contexts_keep_their_translations_apart() {
    let mut bench = Bench::long(Cr4::PCIDE, 0x1000, TARGET | ALL);
    let other = ROOT + 0x10_000;
    for (from, to) in [(0, 0), (0x1000, 0x1000), (0x2000, 0x2000)] {
        let entry = bench.get(ROOT + from);
        bench.put(other + to, entry + 0x10_000);
    }
    bench.put(other + 0x3008, 0x30_0000 | ALL);
    bench.put(TARGET, 1);
    bench.put(0x30_0000, 2);
    let switch = |bench: &mut Bench, cr3, keep| {
        bench.cpu.cr3 = cr3;
        bench.cpu.cr3_loaded(keep);
        bench.cpu.load::<u64>(seg::DS, 0x1000).ok()
    };
    assert_eq!(switch(&mut bench, ROOT | 1, false), Some(1));
    assert_eq!(switch(&mut bench, other | 2, false), Some(2));
    assert_eq!(switch(&mut bench, ROOT | 1, true), Some(1));
    // The table changes without invalidation: what PCID 1 has cached is still used with NOFLUSH, even after
    // another context ran (without touching the same TLB slot).
    bench.put(ROOT + 0x3008, 0x30_0000 | ALL);
    bench.cpu.cr3 = other | 2;
    bench.cpu.cr3_loaded(true);
    assert_eq!(switch(&mut bench, ROOT | 1, true), Some(1));
    bench.cpu.cr3 = other | 2;
    bench.cpu.cr3_loaded(true);
    bench.cpu.invpcid(1, 1, 0);
    assert_eq!(switch(&mut bench, ROOT | 1, true), Some(2));
}

#[test]
fn invlpg_of_a_large_page_forgets_all_of_it() {
    let mut bench = Bench::new(Cr4::PAE, Efer::LME | Efer::LMA | Efer::NXE);
    bench.map(0, 4, 2, 0x20_0000 | LARGE | ALL);
    bench.put(0x20_5000, 1);
    bench.put(0x40_5000, 2);
    assert_eq!(bench.cpu.load::<u64>(seg::DS, 0x5000).ok(), Some(1));
    bench.map(0, 4, 2, 0x40_0000 | LARGE | ALL);
    bench.cpu.invalidate_page(0x1f_0000);
    assert_eq!(bench.cpu.load::<u64>(seg::DS, 0x5000).ok(), Some(2));
}

#[test]
fn running_out_of_address_spaces_forgets_everything() {
    let mut bench = Bench::long(Cr4::empty(), 0x1000, TARGET | ALL);
    bench.put(TARGET, 1);
    bench.put(0x30_0000, 2);
    assert_eq!(bench.cpu.load::<u64>(seg::DS, 0x1000).ok(), Some(1));
    bench.put(ROOT + 0x3008, 0x30_0000 | ALL);
    for _ in 0..5000 {
        bench.cpu.cr3_loaded(false);
        assert_eq!(bench.cpu.load::<u64>(seg::DS, 0x1000).ok(), Some(2));
    }
}

#[test]
fn invlpg_reaches_code_where_code_was_fetched() {
    let mut bench = Bench::long(Cr4::PGE, 0x1000, TARGET | ALL | GLOBAL);
    assert_eq!(bench.cpu.fetch_physical(0x1000).ok(), Some(TARGET));
    let key = bench.cpu.mmu.fetch_key;
    bench.put(ROOT + 0x3008, 0x30_0000 | ALL | GLOBAL);
    bench.cpu.invalidate_page(0x2000);
    assert_eq!(bench.cpu.mmu.fetch_key, key, "no code was fetched from there");
    assert_eq!(bench.cpu.fetch_physical(0x1000).ok(), Some(TARGET), "still cached");
    bench.cpu.invalidate_page(0x1fff);
    assert_ne!(bench.cpu.mmu.fetch_key, key);
    assert_eq!(bench.cpu.fetch_physical(0x1000).ok(), Some(0x30_0000));
}

#[test]
fn fetched_code_survives_cr3_only_on_global_pages() {
    for (flag, after) in [(GLOBAL, TARGET), (0, 0x30_0000)] {
        let mut bench = Bench::long(Cr4::PGE, 0x1000, TARGET | ALL | flag);
        assert_eq!(bench.cpu.fetch_physical(0x1000).ok(), Some(TARGET));
        bench.put(ROOT + 0x3008, 0x30_0000 | ALL | flag);
        bench.cpu.cr3_loaded(false);
        assert_eq!(bench.cpu.fetch_physical(0x1000).ok(), Some(after), "G flag {flag:x}");
        bench.cpu.flush_tlb(false);
        assert_eq!(bench.cpu.fetch_physical(0x1000).ok(), Some(0x30_0000));
    }
}
