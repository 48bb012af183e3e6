//! Paging, entry by entry and level by level (SDM 3A 4.3 to 4.8).

use super::tests::{ACCESSED, ALL, DIRTY, LARGE, PRESENT, ROOT, USER, WRITE};
use super::{Access, Accessor};
use crate::cpu::Cpu;
use crate::interp::harness::{cpu_in, flat, long_state};
use guest_memory::GuestMemory;
use std::sync::Arc;
use x86::{Cr0, Cr4, Efer, Vector};

const TARGET: u64 = 0x4000_0000;
const NX: u64 = 1 << 63;
/// The processor's physical address width.
const WIDTH: u32 = 46;
/// Different indices at every level, and all-zero page offset.
const LINEAR: u64 = 0x0000_1234_5670_0000;

/// A paging mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Bits32,
    Pae,
    Four,
    Five,
}

struct Bench {
    memory: Arc<GuestMemory>,
    cpu: Cpu,
    mode: Mode,
    linear: u64,
}

impl Bench {
    /// A mode with `leaf` at level `last` (1 is the page table) and all rights above.
    fn new(mode: Mode, nxe: bool, last: u32, leaf: u64) -> Self {
        let memory = Arc::new(GuestMemory::new(&[(0, 4 << 20)]).expect("the host has memory"));
        let mut state = long_state();
        let long = matches!(mode, Mode::Four | Mode::Five);
        let mut efer = if long { Efer::LME | Efer::LMA } else { Efer::empty() };
        efer.set(Efer::NXE, nxe);
        state.efer = efer.bits();
        state.cr4 = match mode {
            Mode::Bits32 => Cr4::PSE,
            Mode::Pae | Mode::Four => Cr4::PAE,
            Mode::Five => Cr4::PAE | Cr4::LA57,
        }
        .bits();
        if !long {
            state.segments.cs = flat(8, 0xc09b);
        }
        state.cr3 = ROOT;
        let linear = if long { LINEAR } else { LINEAR & 0xffff_ffff };
        let cpu = cpu_in(Arc::clone(&memory), &state);
        let mut bench = Bench { memory, cpu, mode, linear };
        for level in (last..=bench.levels()).rev() {
            let table = bench.table(level - 1) | if mode == Mode::Pae && level == 3 { PRESENT } else { ALL };
            bench.set(level, if level == last { leaf } else { table });
        }
        if mode == Mode::Pae {
            bench.cpu.load_pdptes(ROOT).expect("legal");
        }
        bench
    }

    fn levels(&self) -> u32 {
        match self.mode {
            Mode::Bits32 => 2,
            Mode::Pae => 3,
            Mode::Four => 4,
            Mode::Five => 5,
        }
    }

    /// Address of the table of a level.
    fn table(&self, level: u32) -> u64 {
        ROOT + 0x1000 * u64::from(self.levels() - level)
    }

    fn entry_address(&self, level: u32) -> u64 {
        if self.mode == Mode::Bits32 {
            return self.table(level) + (self.linear >> (12 + 10 * (level - 1)) & 0x3ff) * 4;
        }
        self.table(level) + (self.linear >> (12 + 9 * (level - 1)) & 0x1ff) * 8
    }

    fn set(&mut self, level: u32, entry: u64) {
        let bytes = entry.to_le_bytes();
        let len = if self.mode == Mode::Bits32 { 4 } else { 8 };
        self.memory.write(self.entry_address(level), &bytes[..len]).expect("is RAM");
    }

    fn get(&self, level: u32) -> u64 {
        let mut bytes = [0; 8];
        let len = if self.mode == Mode::Bits32 { 4 } else { 8 };
        self.memory.read(self.entry_address(level), &mut bytes[..len]).expect("is RAM");
        u64::from_le_bytes(bytes)
    }

    fn walk(&mut self, access: Access, accessor: Accessor) -> Result<u64, u32> {
        match self.cpu.walk(self.linear, access, accessor) {
            Ok(found) => Ok(found.physical),
            Err(_) => {
                assert_eq!(self.cpu.exception.vector, Vector::PageFault);
                Err(self.cpu.exception.error_code)
            }
        }
    }
}

/// Modes with the levels that can be a leaf, and the lowest bits of a large page's frame.
const LEAVES: [(Mode, u32, u64); 11] = [
    (Mode::Bits32, 1, 0),
    (Mode::Bits32, 2, LARGE),
    (Mode::Pae, 1, 0),
    (Mode::Pae, 2, LARGE),
    (Mode::Four, 1, 0),
    (Mode::Four, 2, LARGE),
    (Mode::Four, 3, LARGE),
    (Mode::Five, 1, 0),
    (Mode::Five, 2, LARGE),
    (Mode::Five, 3, LARGE),
    (Mode::Four, 1, 1 << 58),
];

/// 4.6: rights are those of all levels together. A PDPTE of PAE paging has none.
#[test]
fn every_level_restricts() {
    for (mode, last, bits) in LEAVES {
        let top = Bench::new(mode, true, last, 0).levels();
        for level in (last..=top).filter(|level| mode != Mode::Pae || *level != 3) {
            for (access, accessor, missing, code) in [
                (Access::Write, Accessor::User, WRITE, 0b111),
                (Access::Write, Accessor::Supervisor, WRITE, 0b011),
                (Access::Read, Accessor::User, USER, 0b101),
                (Access::Execute, Accessor::User, USER, 0b1_0101),
                (Access::Write, Accessor::User, PRESENT, 0b110),
                (Access::Read, Accessor::Supervisor, PRESENT, 0b000),
            ] {
                let nx = mode != Mode::Bits32;
                let mut bench = Bench::new(mode, nx, last, TARGET | bits | ALL);
                assert_eq!(bench.walk(access, accessor).map(|at| at & !0x3fff_ffff), Ok(TARGET));
                let entry = bench.get(level);
                bench.set(level, entry & !missing);
                let code = if nx { code } else { code & !0b1_0000 };
                assert_eq!(
                    bench.walk(access, accessor),
                    Err(code),
                    "{mode:?} {level} {access:?} {accessor:?}"
                );
            }
            if mode != Mode::Bits32 {
                for accessor in [Accessor::User, Accessor::Supervisor] {
                    let mut bench = Bench::new(mode, true, last, TARGET | bits | ALL);
                    let entry = bench.get(level);
                    bench.set(level, entry | NX);
                    let user = if accessor == Accessor::User { 0b100 } else { 0 };
                    assert_eq!(
                        bench.walk(Access::Execute, accessor),
                        Err(0b1_0001 | user),
                        "{mode:?} {level}"
                    );
                    assert!(bench.walk(Access::Write, accessor).is_ok());
                }
            }
        }
    }
}

/// Tables 4-2 to 4-20: reserved bits, which fault with P and RSVD, and ignored ones, which do not.
#[test]
fn reserved_bits() {
    let beyond: u64 = (WIDTH..52).map(|bit| 1 << bit).sum();
    let upper: u64 = (52..63).map(|bit| 1 << bit).sum();
    let between = |from: u32, to: u32| (from..=to).map(|bit| 1_u64 << bit).sum::<u64>();
    // Mode, EFER.NXE, leaf's level, level of the bit, reserved bits.
    let table: [(Mode, bool, u32, u32, u64); 17] = [
        (Mode::Bits32, false, 1, 1, 0),
        (Mode::Bits32, false, 1, 2, 0),
        (Mode::Bits32, false, 2, 2, 1 << 21),
        (Mode::Pae, true, 1, 1, beyond | upper),
        (Mode::Pae, true, 1, 2, beyond | upper),
        (Mode::Pae, false, 1, 1, beyond | upper | NX),
        (Mode::Pae, true, 2, 2, beyond | upper | between(13, 20)),
        (Mode::Four, true, 1, 1, beyond),
        (Mode::Four, false, 1, 1, beyond | NX),
        (Mode::Four, true, 1, 2, beyond),
        (Mode::Four, true, 1, 3, beyond),
        (Mode::Four, true, 1, 4, beyond | LARGE),
        (Mode::Four, true, 2, 2, beyond | between(13, 20)),
        (Mode::Four, true, 3, 3, beyond | between(13, 29)),
        (Mode::Four, false, 3, 4, beyond | LARGE | NX),
        (Mode::Five, true, 1, 5, beyond | LARGE),
        (Mode::Five, false, 2, 5, beyond | LARGE | NX),
    ];
    for (mode, nxe, last, level, reserved) in table {
        for bit in 8..64 {
            if mode == Mode::Bits32 && bit > 31 {
                continue;
            }
            let value = 1_u64 << bit;
            let large = if last > 1 { LARGE } else { 0 };
            let mut bench = Bench::new(mode, nxe, last, TARGET | large | ALL);
            let entry = bench.get(level);
            // Bits of an address would lead elsewhere; they are not reserved, and no concern of this test.
            let address_bits = if level == last { 0x3f_ffff_ffff_f000 } else { 0x3fff_ffff_f000 };
            if value & reserved == 0 && value & address_bits != 0 {
                continue;
            }
            bench.set(level, entry | value);
            let walked = bench.walk(Access::Read, Accessor::User);
            let wanted_fault = value & reserved != 0;
            assert_eq!(
                walked == Err(0b1101),
                wanted_fault,
                "{mode:?} NXE {nxe} leaf {last} level {level} bit {bit}"
            );
        }
        if reserved & LARGE != 0 {
            let mut bench = Bench::new(mode, nxe, last, TARGET | if last > 1 { LARGE } else { 0 } | ALL);
            let entry = bench.get(level);
            bench.set(level, entry | LARGE);
            assert_eq!(
                bench.walk(Access::Write, Accessor::Supervisor),
                Err(0b1011),
                "{mode:?}, level {level}"
            );
        }
    }
}

/// 4.8: accessed flags at every level that was used, the dirty flag in the leaf of a write.
#[test]
fn accessed_and_dirty_flags() {
    for (mode, last, bits) in LEAVES {
        for (access, leaf_flags) in
            [(Access::Read, ACCESSED), (Access::Execute, ACCESSED), (Access::Write, ACCESSED | DIRTY)]
        {
            let mut bench = Bench::new(mode, mode != Mode::Bits32, last, TARGET | bits | ALL);
            assert!(bench.walk(access, Accessor::Supervisor).is_ok());
            for level in last..=bench.levels() {
                // PDPTEs of PAE paging have no such flags.
                let wanted = match level {
                    _ if level == last => leaf_flags,
                    3 if mode == Mode::Pae => 0,
                    _ => ACCESSED,
                };
                assert_eq!(
                    bench.get(level) & (ACCESSED | DIRTY),
                    wanted,
                    "{mode:?}, level {level}, {access:?}"
                );
            }
        }
    }
}

/// 4.6.1, SMEP, SMAP and WP together: (page is the user's, page is writable, CR0.WP, SMEP, SMAP, AC) by access.
#[test]
fn the_supervisors_rights() {
    for case in 0..64_u32 {
        let [user, writable, wp, smep, smap, ac] = std::array::from_fn(|bit| case >> bit & 1 != 0);
        let leaf = TARGET | PRESENT | if user { USER } else { 0 } | if writable { WRITE } else { 0 };
        let accessor = if smap && ac { Accessor::SupervisorAc } else { Accessor::Supervisor };
        for access in [Access::Read, Access::Write, Access::Execute] {
            let mut bench = Bench::new(Mode::Four, true, 1, leaf);
            bench.cpu.cr4.set(Cr4::SMEP, smep);
            bench.cpu.cr4.set(Cr4::SMAP, smap);
            bench.cpu.cr0.set(Cr0::WP, wp);
            let legal = match access {
                Access::Execute => !(user && smep),
                Access::Read => !(user && smap && !ac),
                Access::Write => !(user && smap && !ac) && (writable || !wp),
            };
            assert_eq!(bench.walk(access, accessor).is_ok(), legal, "case {case:#b} {access:?}");
        }
    }
}

/// Without CR4.PSE bit 7 of a page-directory entry is ignored (table 4-5).
#[test]
fn small_pages_only_without_pse() {
    let mut bench = Bench::new(Mode::Bits32, false, 1, TARGET | ALL);
    bench.cpu.cr4 = Cr4::empty();
    let entry = bench.get(2);
    bench.set(2, entry | LARGE);
    assert_eq!(bench.walk(Access::Read, Accessor::User), Ok(TARGET));
}
