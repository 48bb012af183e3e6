//! What translated code shares with the rest of the processor: fields of [`Cpu`] reached through GS.

use super::count::Counted;
use super::jumps::JumpEntry;
use crate::cpu::{Cpu, seg};
use crate::interp::simd::VectorState;
use crate::mmu::{Hints, Mmu, StackPage};
use crate::msr::MsrFile;
use crate::system::SystemState;
use std::mem::offset_of;
use std::sync::atomic::AtomicU32;
use x86::Segment;

/// The part of [`Cpu`] that only translated code and its runtime use.
#[repr(C)]
pub(crate) struct Shared {
    /// The processor itself.
    pub own: *mut Cpu,
    /// Guest flags as LAHF and SETO leave them in EAX.
    pub flags: u64,
    /// Linear address of the page of the running code.
    pub rip_page: u64,
    /// The jump cache.
    pub jumps: *const JumpEntry,
    /// The event word.
    pub events: *const AtomicU32,
    /// What a way out is about: a link, an instruction's site, or a linear address.
    pub argument: u64,
    /// Holds a value over a few instructions.
    pub spare: u64,
    /// As `spare`, for RAX.
    pub spare_rax: u64,
    /// What the vector registers of the host are: nothing of the guest's (0), the guest's (more); then it tells
    /// which instructions may use them: [`vector`].
    pub vector: u64,
    /// Whether the x87 registers of the host are the guest's.
    pub x87: u64,
    /// Address of the guest's last x87 instruction, while they are.
    pub fip: u64,
    /// The host's MXCSR.
    pub host_mxcsr: u32,
    /// What the checks of a block's groups found: addend, and pointer to the tracker byte.
    pub shares: [[u64; 2]; SHARES],
    /// Of the loop that runs: how many more iterations its checks allow, while they are made; see [`super::loops`].
    pub budget: u64,
    /// What its counting register holds when they are to be made again.
    pub limit: u64,
    /// The host's stack pointer in `enter`; see [`super::returns`] for this and the next ones.
    pub frame: u64,
    /// Bottom of the frames of calls.
    pub returns: u64,
    /// Where there are too many of them.
    pub deepest: u64,
    /// The fetch key while they were made.
    pub returns_key: u64,
    /// Misses of hints until one is looked at.
    pub unseen_misses: u32,
    /// What ran, if it is counted.
    pub counted: Counted,
}

/// Groups that a block can have.
pub(super) const SHARES: usize = 8;

/// Levels of `Shared::vector`.
pub(super) mod vector {
    /// SSE instructions may run.
    pub const SSE: u8 = 1;
    /// AVX instructions, too.
    pub const AVX: u8 = 2;
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            own: std::ptr::null_mut(),
            flags: 0,
            rip_page: 0,
            jumps: std::ptr::null(),
            events: std::ptr::null(),
            argument: 0,
            spare: 0,
            spare_rax: 0,
            vector: 0,
            x87: 0,
            fip: 0,
            host_mxcsr: 0x1f80,
            shares: [[0; 2]; SHARES],
            budget: 0,
            limit: 0,
            frame: 0,
            returns: 0,
            deepest: 0,
            returns_key: 0,
            unseen_misses: super::hints::MISSES,
            counted: Counted::default(),
        }
    }
}

impl Shared {
    /// The arithmetic flags at their RFLAGS positions.
    pub fn arithmetic(&self) -> u64 {
        self.flags >> 8 & 0xd5 | (self.flags & 1) << 11
    }

    /// Sets the arithmetic flags from RFLAGS positions.
    pub fn set_arithmetic(&mut self, bits: u64) {
        self.flags = (bits & 0xd5) << 8 | bits >> 11 & 1;
    }
}

const SHARED: usize = offset_of!(Cpu, shared);

pub(super) const OWN: usize = SHARED + offset_of!(Shared, own);
pub(super) const FLAGS: usize = SHARED + offset_of!(Shared, flags);
pub(super) const RIP_PAGE: usize = SHARED + offset_of!(Shared, rip_page);
pub(super) const JUMPS: usize = SHARED + offset_of!(Shared, jumps);
pub(super) const EVENTS: usize = SHARED + offset_of!(Shared, events);
pub(super) const ARGUMENT: usize = SHARED + offset_of!(Shared, argument);
pub(super) const SPARE: usize = SHARED + offset_of!(Shared, spare);
pub(super) const SPARE_RAX: usize = SHARED + offset_of!(Shared, spare_rax);
pub(super) const VECTOR: usize = SHARED + offset_of!(Shared, vector);
pub(super) const X87: usize = SHARED + offset_of!(Shared, x87);
pub(super) const FIP: usize = SHARED + offset_of!(Shared, fip);
/// The x87 image, in the format of XSAVE64.
pub(super) const FPU: usize = offset_of!(Cpu, fpu);
pub(super) const HOST_MXCSR: usize = SHARED + offset_of!(Shared, host_mxcsr);
/// First of [`SHARES`] addends, 16 bytes apart, and of pointers to tracker bytes.
pub(super) const SHARE_ADDEND: usize = SHARED + offset_of!(Shared, shares);
pub(super) const SHARE_TRACKER: usize = SHARE_ADDEND + 8;
pub(super) const BUDGET: usize = SHARED + offset_of!(Shared, budget);
pub(super) const LIMIT: usize = SHARED + offset_of!(Shared, limit);
pub(super) const FRAME: usize = SHARED + offset_of!(Shared, frame);
pub(super) const RETURNS: usize = SHARED + offset_of!(Shared, returns);
pub(super) const DEEPEST: usize = SHARED + offset_of!(Shared, deepest);
pub(super) const RETURNS_KEY: usize = SHARED + offset_of!(Shared, returns_key);
pub(super) const UNSEEN_MISSES: usize = SHARED + offset_of!(Shared, unseen_misses);
const COUNTED: usize = SHARED + offset_of!(Shared, counted);
pub(super) const BLOCKS_RUN: usize = COUNTED + offset_of!(Counted, blocks);
pub(super) const INSNS_RUN: usize = COUNTED + offset_of!(Counted, insns);
pub(super) const ACCESSES_RUN: usize = COUNTED + offset_of!(Counted, accesses);
pub(super) const JUMPS_TAKEN: usize = COUNTED + offset_of!(Counted, jumps);
pub(super) const RETURNS_TAKEN: usize = COUNTED + offset_of!(Counted, returns);
pub(super) const YMM: usize = offset_of!(Cpu, vector) + offset_of!(VectorState, ymm);
pub(super) const MXCSR: usize = offset_of!(Cpu, vector) + offset_of!(VectorState, mxcsr);
pub(super) const LAST_CODE_PAGE: usize = offset_of!(Cpu, last_code_page);
/// Limit of CS, 32 bits.
pub(super) const CODE_LIMIT: usize =
    offset_of!(Cpu, segments) + seg::CS as usize * size_of::<Segment>() + offset_of!(Segment, limit);
/// Where RFLAGS.DF is: a byte, and the bit in it.
pub(super) const DIRECTION: (usize, u8) = (offset_of!(Cpu, system_flags) + 1, 1 << 2);
pub(super) const EVENT_MASK: usize = offset_of!(Cpu, event_mask);
pub(super) const TLB: usize = offset_of!(Cpu, mmu) + offset_of!(Mmu, array);
pub(super) const TLB_MASK: usize = offset_of!(Cpu, mmu) + offset_of!(Mmu, mask);
/// The stack's [`TlbEntry`](crate::mmu::TlbEntry), and the limit of offsets in its page.
pub(super) const STACK_ENTRY: usize =
    offset_of!(Cpu, mmu) + offset_of!(Mmu, stack) + offset_of!(StackPage, entry);
pub(super) const STACK_LIMIT: usize =
    offset_of!(Cpu, mmu) + offset_of!(Mmu, stack) + offset_of!(StackPage, limit);
/// The first of the [`Hints`].
pub(super) const HINTS: usize = offset_of!(Cpu, mmu) + offset_of!(Mmu, hints) + offset_of!(Hints, entries);
pub(super) const CPL: usize = offset_of!(Cpu, cpl);
pub(super) const SYSTEM_FLAGS: usize = offset_of!(Cpu, system_flags);
/// Where CR4.TSD is: a byte, and the bit in it.
pub(super) const RDTSC_RESTRICTED: (usize, u8) = (offset_of!(Cpu, cr4), 1 << 2);
const MSRS: usize = offset_of!(Cpu, system) + offset_of!(SystemState, msrs);
pub(super) const KERNEL_GS_BASE: usize = MSRS + offset_of!(MsrFile, kernel_gs_base);
pub(super) const TSC_AUX: usize = MSRS + offset_of!(MsrFile, tsc_aux);
/// The GS base that a saved state has.
pub(super) const SEGMENT_GS_BASE: usize =
    offset_of!(Cpu, segments) + seg::GS as usize * size_of::<Segment>() + offset_of!(Segment, base);
pub(super) const FETCH_KEY: usize = offset_of!(Cpu, mmu) + offset_of!(Mmu, fetch_key);
/// RIP in [`Cpu::regs`].
pub(super) const RIP: usize = offset_of!(Cpu, regs) + 17 * 8;

/// A guest register in [`Cpu::regs`], by number.
pub(super) const fn home(number: u8) -> usize {
    offset_of!(Cpu, regs) + number as usize * 8
}

/// First offset behind a segment, by number, for reads or writes.
pub(super) const fn segment_end(number: u8, store: bool) -> usize {
    offset_of!(Cpu, segment_ends) + (store as usize * 8 + number as usize) * 8
}

/// Base of a segment, by number.
pub(super) const fn segment_base(number: u8) -> usize {
    offset_of!(Cpu, segment_base) + number as usize * 8
}
