//! A processor for tests: 64-bit mode, CPL 0, flat, the first MiB mapped to itself.

use crate::cpu::Cpu;
use crate::system::SystemState;
use guest_memory::GuestMemory;
use std::sync::Arc;
use x86::{CpuState, Cr0, Cr4, Efer, Segment, SegmentAttributes};

/// Where code goes.
pub(crate) const CODE: u64 = 0x4000;
/// Top of the stack.
pub(crate) const STACK: u64 = 0x9000;
/// Some mapped, writable data.
pub(crate) const DATA: u64 = 0xf_0000;
/// The first address that is not mapped, right behind mapped RAM.
pub(crate) const UNMAPPED: u64 = 0x10_0000;
/// RAM in bytes.
const RAM: u64 = 0x40_0000;
/// Root of the page tables.
pub(crate) const TABLES: u64 = 0x30_0000;

/// A segment with a base of zero and 4 GiB.
pub(crate) fn flat(selector: u16, attributes: u16) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attributes: SegmentAttributes(attributes) }
}

/// The processor's state, in 64-bit mode at [`CODE`].
pub(crate) fn long_state() -> CpuState {
    let mut state = CpuState::reset(true);
    let data = flat(0x10, 0xc093);
    state.segments.cs = flat(8, 0xa09b);
    (state.segments.ss, state.segments.ds, state.segments.es) = (data, data, data);
    (state.segments.fs, state.segments.gs) = (data, data);
    state.cr0 = (Cr0::PE | Cr0::PG | Cr0::WP | Cr0::NE | Cr0::ET).bits();
    state.cr3 = TABLES;
    state.cr4 = (Cr4::PAE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE).bits();
    state.efer = (Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE).bits();
    state.xcr0 = 7;
    state.rip = CODE;
    state.gprs[4] = STACK;
    state
}

/// RAM with the page tables of [`long_state`].
pub(crate) fn memory() -> Arc<GuestMemory> {
    let memory = GuestMemory::new(&[(0, RAM)]).expect("the host has a little memory");
    let put = |address: u64, value: u64| memory.write(address, &value.to_le_bytes()).expect("is RAM");
    put(TABLES, TABLES + 0x1003);
    put(TABLES + 0x1000, TABLES + 0x2003);
    put(TABLES + 0x2000, TABLES + 0x3003);
    for page in 0..UNMAPPED >> 12 {
        put(TABLES + 0x3000 + 8 * page, page << 12 | 3);
    }
    Arc::new(memory)
}

/// A processor over given RAM, in a given state.
pub(crate) fn cpu_in(memory: Arc<GuestMemory>, state: &CpuState) -> Cpu {
    let mut cpu = Cpu::new(memory, SystemState::default(), Arc::default(), 46);
    cpu.restore(state).expect("the state is legal");
    *cpu
}

/// A processor in [`long_state`].
pub(crate) fn cpu() -> Cpu {
    cpu_in(memory(), &long_state())
}
