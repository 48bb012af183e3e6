//! [`CpuState`]: everything a processor is, in one form that every engine loads and stores.

use crate::{Exception, LapicState};
use serde::{Deserialize, Serialize};

/// Attributes of a segment's hidden part: bits 40–55 of the descriptor (type in 0–3, S in 4, DPL in 5–6,
/// P in 7, AVL in 12, L in 13, D/B in 14, G in 15), as VMX access rights place them (SDM 3C 24.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentAttributes(pub u16);

impl SegmentAttributes {
    /// Descriptor type, four bits.
    pub const fn kind(self) -> u8 {
        (self.0 & 0xf) as u8
    }
    /// Whether it is a code or data segment (S).
    pub const fn is_code_or_data(self) -> bool {
        self.0 & 1 << 4 != 0
    }
    /// Descriptor privilege level.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }
    /// Present.
    pub const fn present(self) -> bool {
        self.0 & 1 << 7 != 0
    }
    /// 64-bit code (L).
    pub const fn long(self) -> bool {
        self.0 & 1 << 13 != 0
    }
    /// 32-bit default size, or big stack (D/B).
    pub const fn big(self) -> bool {
        self.0 & 1 << 14 != 0
    }
    /// Limit counted in pages (G).
    pub const fn granular(self) -> bool {
        self.0 & 1 << 15 != 0
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Linear base.
    pub base: u64,
    /// Limit in bytes, already scaled by G: the highest offset (for expand-down: the lowest, minus one).
    pub limit: u32,
    /// Type, DPL and friends. Not present means unusable (a null selector).
    pub attributes: SegmentAttributes,
}

/// The eight segment registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "register names")]
pub struct Segments {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base.
    pub base: u64,
    /// Highest valid byte offset.
    pub limit: u16,
}

/// What a processor is doing (SDM 3A 8.4; the names are KVM's).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// Executes instructions.
    #[default]
    Runnable,
    /// An application processor before its first INIT.
    Uninitialized,
    /// After INIT, waits for a start-up IPI.
    InitReceived,
    /// In HLT (or MWAIT) until an interrupt.
    Halted,
}

/// An exception to be delivered before the next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingException {
    /// Which, with its payload. The payload is not yet in CR2 or DR6.
    pub exception: Exception,
}

/// An interrupt that was acknowledged but whose delivery has not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingInterrupt {
    /// Vector number.
    pub vector: u8,
    /// Raised by INT n rather than by hardware.
    pub software: bool,
}

/// Events between instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvents {
    /// Exception to deliver.
    pub exception: Option<PendingException>,
    /// Interrupt to deliver.
    pub interrupt: Option<PendingInterrupt>,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// The instruction before was STI.
    pub sti_shadow: bool,
    /// The instruction before was MOV SS or POP SS.
    pub mov_ss_shadow: bool,
    /// An INIT waits; it comes before everything else here.
    #[serde(default)]
    pub init: bool,
    /// A start-up IPI waits, with this vector; it comes after INIT.
    #[serde(default)]
    pub start_up: Option<u8>,
    /// A message asked for an interrupt of the PIC (delivery mode ExtINT).
    #[serde(default)]
    pub ext_int: bool,
    /// Data breakpoints (bits 0 to 3 of DR6) that the MOV SS or POP SS before hit: its shadow holds the trap back.
    #[serde(default)]
    pub breakpoints: u8,
}

/// The XSAVE area in the standard (non-compacted) format (SDM 1 13.4): 512 bytes of FXSAVE image, the
/// 64-byte header, then the components at the offsets of [`XsaveArea::YMM_OFFSET`] and CPUID leaf 0xd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XsaveArea {
    /// Bytes; at least [`XsaveArea::MIN_LEN`].
    pub bytes: Vec<u8>,
}

impl XsaveArea {
    /// FXSAVE image, header and the high halves of YMM0–15.
    pub const MIN_LEN: usize = 832;
    /// Offset of XSTATE_BV.
    pub const HEADER_OFFSET: usize = 512;
    /// Offset of the high halves of YMM0–15.
    pub const YMM_OFFSET: usize = 576;
}

impl Default for XsaveArea {
    /// The state after reset: FCW 0x37f, FTW empty (abridged 0), MXCSR 0x1f80.
    fn default() -> Self {
        let mut bytes = vec![0; Self::MIN_LEN];
        bytes[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        bytes[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        bytes[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
        XsaveArea { bytes }
    }
}

/// One model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrValue {
    /// Number.
    pub index: u32,
    /// Content.
    pub value: u64,
}

/// The whole architectural state of one logical processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8–R15 (the order of instruction encodings).
    pub gprs: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags; bit 1 is one.
    pub rflags: u64,
    /// Segment registers.
    pub segments: Segments,
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// Control register 0.
    pub cr0: u64,
    /// Page-fault address.
    pub cr2: u64,
    /// Page-table base and PCID.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Task priority (also in the LAPIC's TPR, which wins if they differ).
    pub cr8: u64,
    /// Extended control register 0.
    pub xcr0: u64,
    /// Extended features.
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Breakpoint addresses.
    pub dr: [u64; 4],
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// x87, SSE and AVX.
    pub xsave: XsaveArea,
    /// All other MSRs, sorted by number. FS_BASE and GS_BASE live in the segments, EFER and APIC_BASE above.
    pub msrs: Vec<MsrValue>,
    /// Local APIC.
    pub lapic: LapicState,
    /// Events between instructions.
    pub events: PendingEvents,
    /// Running, halted or waiting.
    pub mp_state: MpState,
}

impl CpuState {
    /// The value of an MSR in [`CpuState::msrs`].
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|m| m.index == index).map(|m| m.value)
    }

    /// Sets an MSR in [`CpuState::msrs`], keeping the order.
    pub fn set_msr(&mut self, index: u32, value: u64) {
        match self.msrs.binary_search_by_key(&index, |m| m.index) {
            Ok(at) => self.msrs[at].value = value,
            Err(at) => self.msrs.insert(at, MsrValue { index, value }),
        }
    }

    /// The state after RESET (SDM 3A 9.1.1): real mode at 0xffff_fff0. `bootstrap` says whether this is the
    /// boot processor; the others wait for INIT and SIPI.
    pub fn reset(bootstrap: bool) -> Self {
        let data = |attributes| Segment {
            selector: 0,
            base: 0,
            limit: 0xffff,
            attributes: SegmentAttributes(attributes),
        };
        let cs = Segment { selector: 0xf000, base: 0xffff_0000, ..data(0x9b) };
        let mut state = CpuState {
            rip: 0xfff0,
            rflags: 2,
            segments: Segments {
                es: data(0x93),
                cs,
                ss: data(0x93),
                ds: data(0x93),
                fs: data(0x93),
                gs: data(0x93),
                ldtr: data(0x82),
                tr: data(0x8b),
            },
            gdtr: DescriptorTable { base: 0, limit: 0xffff },
            idtr: DescriptorTable { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            xcr0: 1,
            apic_base: 0xfee0_0800 | u64::from(bootstrap) << 8,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            mp_state: if bootstrap { MpState::Runnable } else { MpState::Uninitialized },
            ..CpuState::default()
        };
        state.gprs[2] = 0x600; // RDX: family 6 in the stepping signature
        state.set_msr(crate::msr::PAT, 0x0007_0406_0007_0406);
        state
    }
}
