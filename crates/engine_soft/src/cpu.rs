//! [`Cpu`]: one logical processor's state and the ways handlers end.

use crate::code::CodeCache;
use crate::debug::Debug;
use crate::flags::LazyFlags;
use crate::interp::simd::VectorState;
use crate::interp::x87::FpuState;
use crate::mmu::Mmu;
use crate::system::SystemState;
use crate::translate::Translator;
use crate::translate::kind::CodeKind;
use crate::translate::shared::Shared;
use crate::translate::verify::StoreLog;
use engine::{VcpuIo, VmExit};
use guest_memory::GuestMemory;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use x86::{Cr0, Cr4, DescriptorTable, Efer, Exception, MpState, PendingInterrupt, RFlags, Segment, Vector};

/// Byte offsets of general registers in [`Cpu::regs`].
pub mod gpr {
    #![expect(missing_docs, reason = "register names")]
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 8;
    pub const RDX: u8 = 16;
    pub const RBX: u8 = 24;
    pub const RSP: u8 = 32;
    pub const RBP: u8 = 40;
    pub const RSI: u8 = 48;
    pub const RDI: u8 = 56;
    /// Always zero: a missing base or index.
    pub const ZERO: u8 = 128;
    /// The instruction pointer, as a base of RIP-relative operands.
    pub const RIP: u8 = 136;
    /// Always 2³¹: the index of RIP-relative operands whose displacement from the start is too large for 32 bits.
    pub const HALF: u8 = 144;
}

/// Segment numbers, in encoding order.
pub mod seg {
    #![expect(missing_docs, reason = "register names")]
    pub const ES: u8 = 0;
    pub const CS: u8 = 1;
    pub const SS: u8 = 2;
    pub const DS: u8 = 3;
    pub const FS: u8 = 4;
    pub const GS: u8 = 5;
    pub const LDTR: u8 = 6;
    pub const TR: u8 = 7;
}

/// Proof that an exception is waiting in [`Cpu::exception`].
#[derive(Debug)]
#[must_use]
pub struct Fault(());

impl Fault {
    /// No exception: [`Cpu::exit`] is set.
    pub(crate) fn to_exit() -> Self {
        Fault(())
    }
}

/// Why straight-line execution stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// The instruction is complete and has set RIP itself.
    Jump,
    /// The instruction is complete, the loop shall advance RIP, and then look at modes and events anew.
    Done,
    /// An exception waits in [`Cpu::exception`]; RIP is still at the instruction.
    Fault,
    /// [`Cpu::exit`] is set; the instruction is complete and has set RIP.
    Exit,
    /// The same instruction goes on after events were looked at (REP between iterations).
    Again,
}

impl From<Fault> for Stop {
    #[inline(always)]
    fn from(_: Fault) -> Stop {
        Stop::Fault
    }
}

/// How a handler ends: `Ok` goes on to the next instruction.
pub type Flow = Result<(), Stop>;

/// Interrupt shadows.
pub mod shadow {
    /// The instruction before was STI with IF clear.
    pub const STI: u8 = 1;
    /// The instruction before was MOV SS or POP SS.
    pub const MOV_SS: u8 = 2;
}

/// Entries of [`Cpu::regs`]: more than a byte offset can pass.
pub const REGISTER_WORDS: usize = 33;

/// One logical processor.
#[repr(C)]
pub struct Cpu {
    /// RAX…R15 by encoding, then the zero register, RIP and 2³¹; the rest is padding. See [`gpr`].
    pub regs: [u64; REGISTER_WORDS],
    /// The six arithmetic flags.
    pub flags: LazyFlags,
    /// All other RFLAGS bits, with bit 1 set. Change only through [`Cpu::set_rflags`].
    pub(crate) system_flags: u64,
    /// End of the running block's instructions; zero makes the loop stop after the current one.
    pub(crate) block_end: usize,
    /// Bases as the current mode applies them: zero for ES, CS, SS, DS in 64-bit mode.
    pub segment_base: [u64; 8],
    /// First offsets behind ES to GS for reads, and for writes, in legacy modes; zero if each access has to be looked at.
    pub(crate) segment_ends: [[u64; 8]; 2],
    /// The highest start of a page whose code all lies inside the limit of CS, counted from its base.
    pub(crate) last_code_page: i64,
    /// What translated code takes for granted.
    pub(crate) kind: CodeKind,
    /// Segments (bit = number) that are readable, based at zero and 4 GiB long, in legacy modes.
    pub(crate) flat_read: u8,
    /// As `flat_read`, and writable.
    pub(crate) flat_write: u8,
    /// 64-bit mode: no limits, no types.
    pub long64: bool,
    /// Current privilege level.
    pub cpl: u8,
    /// Code size of the running mode: 16, 32 or 64.
    pub code_size: u8,
    /// Bits of [`shadow`]; cleared by the loop after the next instruction.
    pub shadow: u8,
    /// Address translation.
    pub mmu: Mmu,
    /// Segment registers with their hidden parts, by [`seg`].
    pub segments: [Segment; 8],
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// Control register 0.
    pub cr0: Cr0,
    /// Page-fault address.
    pub cr2: u64,
    /// Page-table base and PCID.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: Cr4,
    /// Extended features.
    pub efer: Efer,
    /// Extended control register 0.
    pub xcr0: u64,
    /// Breakpoint addresses.
    pub dr: [u64; 4],
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// The exception that [`Fault`] speaks of.
    pub exception: Exception,
    /// Why `run` shall return ([`Stop::Exit`]).
    pub exit: Option<VmExit>,
    /// Running, halted or waiting.
    pub mp_state: MpState,
    /// Instructions executed.
    pub instructions: u64,
    /// Value of `instructions` at which a step-limited run ends.
    pub(crate) step_end: u64,
    /// Value of `instructions` at which to look at the clock.
    pub(crate) next_tick: u64,
    /// IN and OUT that passed their checks.
    pub(crate) pio_accesses: u64,
    /// HLT instructions.
    pub(crate) halts: u64,
    /// The running instruction delivered an interrupt or exception.
    pub(crate) delivered: bool,
    /// A repeated string instruction stands between two iterations: what is delivered now pushes RFLAGS with RF
    /// (SDM 3B 17.3.1.1).
    pub(crate) repeating: bool,
    /// The instruction loaded RFLAGS.RF itself (IRET): it stays for the next instruction.
    pub kept_resume_flag: bool,
    /// An exception of a loaded state, to be delivered before the first instruction.
    pub(crate) pending_exception: Option<Exception>,
    /// An interrupt of a loaded state that was acknowledged already: delivered before the first instruction.
    pub(crate) pending_interrupt: Option<PendingInterrupt>,
    /// XMM/YMM/ZMM, masks and MXCSR.
    pub vector: VectorState,
    /// x87 and MMX.
    pub fpu: FpuState,
    /// MSRs, local APIC, CPUID: what `system` keeps.
    pub system: SystemState,
    /// Guest RAM.
    pub memory: Arc<GuestMemory>,
    /// Events from other threads; see [`Cpu::event_mask`].
    pub events: Arc<AtomicU32>,
    /// The events that matter now: `system` leaves out those that flags or shadows block.
    pub event_mask: u32,
    /// What the processor reaches outside of itself, during `run`.
    pub(crate) io: Option<NonNull<dyn VcpuIo>>,
    /// Decoded code.
    pub(crate) code: CodeCache,
    /// What translated code reaches.
    pub(crate) shared: Shared,
    /// Translated code.
    pub(crate) translator: Option<Box<Translator>>,
    /// What writes its instructions down.
    pub(crate) tracer: Option<Box<crate::trace::Tracer>>,
    /// Where the time goes.
    pub(crate) times: crate::times::Times,
    /// Stores of a block that is rehearsed.
    pub(crate) store_log: Option<Box<StoreLog>>,
    /// What stops the processor for a debugger, if anything.
    pub(crate) debug: Option<Box<Debug>>,
    /// Address that was entered last without finding what waits there.
    pub(crate) last_stale: u64,
}

// Handlers index `regs` with a byte.
const _: () = assert!(REGISTER_WORDS * 8 >= 256 + 8);

impl Cpu {
    /// RIP of the running instruction.
    #[inline(always)]
    pub fn rip(&self) -> u64 {
        self.regs[17]
    }
    /// Sets RIP; a handler that does so returns [`Stop::Jump`].
    #[inline(always)]
    pub fn set_rip(&mut self, rip: u64) {
        self.regs[17] = rip;
    }
    /// A 64-bit register by encoding number.
    #[inline(always)]
    pub fn gpr(&self, number: usize) -> u64 {
        self.regs[number & 15]
    }
    /// Sets a 64-bit register by encoding number.
    #[inline(always)]
    pub fn set_gpr(&mut self, number: usize, value: u64) {
        self.regs[number & 15] = value;
    }

    /// Stashes an exception.
    #[cold]
    #[inline(never)]
    pub fn raise(&mut self, exception: Exception) -> Fault {
        self.exception = exception;
        Fault(())
    }
    /// `#UD`.
    #[cold]
    pub fn ud(&mut self) -> Fault {
        self.raise(Exception::ud())
    }
    /// `#GP(code)`.
    #[cold]
    pub fn gp(&mut self, code: u32) -> Fault {
        self.raise(Exception::gp(code))
    }
    /// `#SS(code)`.
    #[cold]
    pub fn ss(&mut self, code: u32) -> Fault {
        self.raise(Exception::with_code(Vector::Stack, code))
    }

    /// RFLAGS, all of them.
    pub fn rflags(&self) -> u64 {
        self.system_flags | self.flags.bits()
    }
    /// Sets RFLAGS, all of them, without any check, and what hangs on them. The handler ends with
    /// [`Stop::Done`] or [`Stop::Jump`] if anything but arithmetic flags may have changed.
    pub fn set_rflags(&mut self, rflags: u64) {
        self.flags.set_bits(rflags);
        let old = self.system_flags;
        self.system_flags = rflags & !RFlags::ARITHMETIC.bits() | RFlags::FIXED.bits();
        let changed = old ^ self.system_flags;
        if changed & (RFlags::VM | RFlags::AC).bits() != 0 {
            self.mode_changed();
        }
        if changed & (RFlags::IF | RFlags::VIF | RFlags::VIP).bits() != 0 {
            self.update_event_mask();
        }
    }
    /// Whether a non-arithmetic flag is set.
    #[inline(always)]
    pub fn has_flag(&self, flag: RFlags) -> bool {
        self.system_flags & flag.bits() != 0
    }
    /// Sets or clears one non-arithmetic flag, with what hangs on it.
    pub fn set_flag(&mut self, flag: RFlags, on: bool) {
        let rflags = if on { self.rflags() | flag.bits() } else { self.rflags() & !flag.bits() };
        self.set_rflags(rflags);
    }
    /// I/O privilege level.
    pub fn iopl(&self) -> u8 {
        (self.system_flags >> 12 & 3) as u8
    }
    /// Protected mode, not virtual-8086.
    pub fn is_protected(&self) -> bool {
        self.cr0.contains(Cr0::PE) && !self.has_flag(RFlags::VM)
    }
    /// Virtual-8086 mode.
    pub fn is_v86(&self) -> bool {
        self.has_flag(RFlags::VM)
    }
    /// IA-32e mode (64-bit or compatibility).
    pub fn is_long(&self) -> bool {
        self.efer.contains(Efer::LMA)
    }
    /// Whether an address is canonical with the current number of address bits.
    #[inline(always)]
    pub fn is_canonical(&self, address: u64) -> bool {
        let spare = if self.cr4.contains(Cr4::LA57) { 7 } else { 16 };
        ((address << spare) as i64 >> spare) as u64 == address
    }

    /// To be called after CR0, CR4, EFER, CS, a segment base, CPL, or RFLAGS.VM/AC changed. Cheap. Does not
    /// flush the TLB: that is [`Cpu::flush_tlb`] and friends. The handler ends with [`Stop::Done`] or
    /// [`Stop::Jump`].
    pub fn mode_changed(&mut self) {
        let cs = self.segments[usize::from(seg::CS)].attributes;
        self.long64 = self.is_long() && cs.long() && !self.has_flag(RFlags::VM);
        self.code_size = if self.long64 {
            64
        } else if cs.big() && !self.has_flag(RFlags::VM) {
            32
        } else {
            16
        };
        for number in 0..6 {
            let applies = !self.long64 || number >= usize::from(seg::FS);
            self.segment_base[number] = if applies { self.segments[number].base } else { 0 };
        }
        self.update_flat_segments();
        self.update_code_kind();
        self.update_translation_mode();
    }

    /// The callbacks of the current run.
    pub fn io(&self) -> Option<&dyn VcpuIo> {
        self.io_reference()
    }

    /// Whether an event that matters now is waiting.
    #[inline(always)]
    pub fn event_waiting(&self) -> bool {
        self.events.load(Ordering::Relaxed) & self.event_mask != 0
    }
}
