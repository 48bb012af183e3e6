//! Bits of control registers, flags and page-table entries.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// RFLAGS (SDM 1 3.4.3).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct RFlags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Reserved, always one.
        const FIXED = 1 << 1;
        /// Parity of the low byte.
        const PF = 1 << 2;
        /// Carry out of bit 3.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Single step.
        const TF = 1 << 8;
        /// Maskable interrupts accepted.
        const IF = 1 << 9;
        /// Direction of string instructions.
        const DF = 1 << 10;
        /// Signed overflow.
        const OF = 1 << 11;
        /// I/O privilege level, two bits.
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: instruction breakpoints ignored for one instruction.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check, and SMAP override.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID available.
        const ID = 1 << 21;
        /// The six flags arithmetic writes.
        const ARITHMETIC = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11;
    }

    /// CR0 (SDM 3A 2.5).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Cr0: u64 {
        /// Protected mode.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulation: no x87.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type, always one.
        const ET = 1 << 4;
        /// Native x87 errors.
        const NE = 1 << 5;
        /// Write protect in supervisor mode.
        const WP = 1 << 16;
        /// Alignment mask.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }

    /// CR4 (SDM 3A 2.5).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Cr4: u64 {
        /// Virtual-8086 extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// RDTSC only at CPL 0.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// 4 MiB pages in 32-bit paging.
        const PSE = 1 << 4;
        /// Physical address extension.
        const PAE = 1 << 5;
        /// Machine check.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC at any CPL.
        const PCE = 1 << 8;
        /// FXSAVE and SSE.
        const OSFXSR = 1 << 9;
        /// Unmasked SIMD floating-point exceptions.
        const OSXMMEXCPT = 1 << 10;
        /// SGDT, SIDT, SLDT, SMSW, STR only at CPL 0.
        const UMIP = 1 << 11;
        /// Five-level paging.
        const LA57 = 1 << 12;
        /// VMX.
        const VMXE = 1 << 13;
        /// SMX.
        const SMXE = 1 << 14;
        /// RDFSBASE and friends.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE.
        const OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
        /// Control-flow enforcement.
        const CET = 1 << 23;
    }

    /// IA32_EFER (SDM 3A 2.2.1).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Efer: u64 {
        /// SYSCALL enabled.
        const SCE = 1 << 0;
        /// IA-32e mode enabled.
        const LME = 1 << 8;
        /// IA-32e mode active.
        const LMA = 1 << 10;
        /// No-execute enabled.
        const NXE = 1 << 11;
    }

    /// Page-table entry (SDM 3A 4.5.4, table 4-20).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PageFlags: u64 {
        /// Present.
        const PRESENT = 1 << 0;
        /// Writable.
        const WRITE = 1 << 1;
        /// Reachable from CPL 3.
        const USER = 1 << 2;
        /// Page-level write-through.
        const PWT = 1 << 3;
        /// Page-level cache disable.
        const PCD = 1 << 4;
        /// Accessed.
        const ACCESSED = 1 << 5;
        /// Dirty.
        const DIRTY = 1 << 6;
        /// Large page (in a PDE or PDPTE).
        const LARGE = 1 << 7;
        /// Global.
        const GLOBAL = 1 << 8;
        /// No execute.
        const NO_EXECUTE = 1 << 63;
    }
}
