//! Model-specific registers (SDM volume 4): what operating systems read and write. Others are `#GP(0)`.

use crate::cpu::{Cpu, seg};
use crate::lapic::Rejected;
use engine::cpu_model::FeatureSet;
use x86::{Efer, msr};

/// Machine-check banks.
const BANKS: u32 = 10;
/// IA32_MCi_CTL of bank 0; four registers a bank.
const BANK_FIRST: u32 = 0x400;
const BANK_LAST: u32 = BANK_FIRST + 4 * BANKS - 1;
const PLATFORM_ID: u32 = 0x17;
const SMI_COUNT: u32 = 0x34;
const CORE_THREAD_COUNT: u32 = 0x35;
const MICROCODE_UPDATE: u32 = 0x79;
const PLATFORM_INFO: u32 = 0xce;
const PERF_STATUS: u32 = 0x198;
const PERF_CTL: u32 = 0x199;
const DEBUGCTL: u32 = 0x1d9;
const MTRR_PHYS_LAST: u32 = msr::MTRR_PHYS_BASE0 + 15;
const MTRR_FIX4K_LAST: u32 = msr::MTRR_FIX4K_C0000 + 7;
/// AMD's hardware configuration registers, which its operating systems read without asking.
const AMD_PLAIN: [u32; 6] = [0xc001_0015, 0xc001_001f, 0xc001_0055, 0xc001_0114, 0xc001_1029, 0xc001_1022];
/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = 8 | 1 << 8 | 1 << 10;
/// IA32_MISC_ENABLE: fast strings, no branch trace, no PEBS.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;
/// The bits of IA32_MISC_ENABLE that the manual has names for, without [`ENABLE_MONITOR`].
const MISC_ENABLE_BITS: u64 =
    1 | 1 << 3 | 1 << 7 | 1 << 11 | 1 << 12 | 1 << 16 | 1 << 22 | 1 << 23 | 1 << 34 | 1 << 38;
/// And those that only tell: no branch trace, no PEBS.
const MISC_ENABLE_TOLD: u64 = 1 << 11 | 1 << 12;
/// IA32_MISC_ENABLE: MONITOR and MWAIT are there, and CPUID tells of them.
pub(crate) const ENABLE_MONITOR: u64 = 1 << 18;
/// IA32_ARCH_CAPABILITIES of a processor that never speculates: RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO,
/// MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO.
const ARCH_CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 7 << 13
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;

/// Contents of the MSRs that are only storage, or whose effect is elsewhere.
#[derive(Clone, Debug)]
pub struct MsrFile {
    pub(crate) tsc_offset: u64,
    pub(crate) tsc_adjust: u64,
    pub(crate) tsc_aux: u64,
    pub(crate) star: u64,
    pub(crate) lstar: u64,
    pub(crate) cstar: u64,
    pub(crate) fmask: u64,
    pub(crate) kernel_gs_base: u64,
    pub(crate) sysenter_cs: u64,
    pub(crate) sysenter_esp: u64,
    pub(crate) sysenter_eip: u64,
    pat: u64,
    misc_enable: u64,
    spec_ctrl: u64,
    debugctl: u64,
    perf_ctl: u64,
    mcg_status: u64,
    banks: [u64; 4 * BANKS as usize],
    mtrr_def_type: u64,
    mtrr_variable: [u64; 16],
    mtrr_fixed: [u64; 11],
    amd: [u64; AMD_PLAIN.len()],
}

impl Default for MsrFile {
    fn default() -> Self {
        MsrFile {
            tsc_offset: 0,
            tsc_adjust: 0,
            tsc_aux: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            misc_enable: MISC_ENABLE,
            spec_ctrl: 0,
            debugctl: 0,
            perf_ctl: 0,
            mcg_status: 0,
            banks: [0; 4 * BANKS as usize],
            mtrr_def_type: 0,
            mtrr_variable: [0; 16],
            mtrr_fixed: [0; 11],
            amd: [0; AMD_PLAIN.len()],
        }
    }
}

/// Index of a fixed-range MTRR.
fn fixed(index: u32) -> Option<usize> {
    Some(match index {
        msr::MTRR_FIX64K_00000 => 0,
        msr::MTRR_FIX16K_80000 => 1,
        msr::MTRR_FIX16K_A0000 => 2,
        msr::MTRR_FIX4K_C0000..=MTRR_FIX4K_LAST => 3 + (index - msr::MTRR_FIX4K_C0000) as usize,
        _ => return None,
    })
}

impl MsrFile {
    /// Values after power-up of a processor with these features.
    pub(crate) fn new(features: FeatureSet) -> Self {
        let monitor = if features.has("monitor") { ENABLE_MONITOR } else { 0 };
        MsrFile { misc_enable: MISC_ENABLE | monitor, ..MsrFile::default() }
    }

    /// IA32_MISC_ENABLE.
    pub(crate) fn misc_enable(&self) -> u64 {
        self.misc_enable
    }

    /// The storage of a register that any value goes into (subject to [`legal`]).
    fn cell(&mut self, index: u32) -> Option<&mut u64> {
        Some(match index {
            msr::TSC_AUX => &mut self.tsc_aux,
            msr::STAR => &mut self.star,
            msr::LSTAR => &mut self.lstar,
            msr::CSTAR => &mut self.cstar,
            msr::FMASK => &mut self.fmask,
            msr::KERNEL_GS_BASE => &mut self.kernel_gs_base,
            msr::SYSENTER_CS => &mut self.sysenter_cs,
            msr::SYSENTER_ESP => &mut self.sysenter_esp,
            msr::SYSENTER_EIP => &mut self.sysenter_eip,
            msr::PAT => &mut self.pat,
            msr::MISC_ENABLE => &mut self.misc_enable,
            msr::SPEC_CTRL => &mut self.spec_ctrl,
            DEBUGCTL => &mut self.debugctl,
            PERF_CTL => &mut self.perf_ctl,
            msr::MCG_STATUS => &mut self.mcg_status,
            msr::MTRR_DEF_TYPE => &mut self.mtrr_def_type,
            BANK_FIRST..=BANK_LAST => &mut self.banks[(index - BANK_FIRST) as usize],
            msr::MTRR_PHYS_BASE0..=MTRR_PHYS_LAST => {
                &mut self.mtrr_variable[(index - msr::MTRR_PHYS_BASE0) as usize]
            }
            _ => return self.other_cell(index),
        })
    }

    /// A stored register.
    pub(crate) fn read(&mut self, index: u32) -> Option<u64> {
        self.cell(index).map(|cell| *cell)
    }
    /// Sets a stored register, without checks.
    pub(crate) fn write(&mut self, index: u32, value: u64) {
        if let Some(cell) = self.cell(index) {
            *cell = value;
        }
    }

    fn other_cell(&mut self, index: u32) -> Option<&mut u64> {
        if let Some(at) = fixed(index) {
            return Some(&mut self.mtrr_fixed[at]);
        }
        let at = AMD_PLAIN.iter().position(|&plain| plain == index)?;
        Some(&mut self.amd[at])
    }
}

/// Every register of [`MsrFile::cell`], for saving.
pub(crate) fn stored() -> impl Iterator<Item = u32> {
    let named = [
        msr::TSC_AUX,
        msr::STAR,
        msr::LSTAR,
        msr::CSTAR,
        msr::FMASK,
        msr::KERNEL_GS_BASE,
        msr::SYSENTER_CS,
        msr::SYSENTER_ESP,
        msr::SYSENTER_EIP,
        msr::PAT,
        msr::MISC_ENABLE,
        msr::SPEC_CTRL,
        PERF_CTL,
        DEBUGCTL,
        msr::MCG_STATUS,
        msr::MTRR_DEF_TYPE,
        msr::MTRR_FIX64K_00000,
        msr::MTRR_FIX16K_80000,
        msr::MTRR_FIX16K_A0000,
    ];
    named
        .into_iter()
        .chain(msr::MTRR_FIX4K_C0000..=MTRR_FIX4K_LAST)
        .chain(msr::MTRR_PHYS_BASE0..=MTRR_PHYS_LAST)
        .chain(BANK_FIRST..=BANK_LAST)
        .chain(AMD_PLAIN)
}

/// Whether every byte is a memory type of the MTRRs (or of the PAT, which also has UC-).
fn are_memory_types(value: u64, pat: bool) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4 | 5 | 6) || pat && *kind == 7)
}

impl Cpu {
    /// Whether the model has a register that [`MsrFile::cell`] stores.
    fn has_msr(&self, index: u32) -> bool {
        let features = self.system.features;
        match index {
            msr::SPEC_CTRL => features.has("ibrs") || features.has("ssbd"),
            msr::TSC_AUX => features.has("rdtscp") || features.has("rdpid"),
            _ if AMD_PLAIN.contains(&index) => self.system.model.vendor == engine::cpu_model::Vendor::Amd,
            _ => true,
        }
    }

    /// The bits of IA32_SPEC_CTRL. STIBP comes with IBRS, and is ignored where it is not offered.
    fn speculation_controls(&self) -> u64 {
        let features = self.system.features;
        let branches = if features.has("ibrs") { 3 } else { 0 };
        let stores = if features.has("ssbd") { 4 } else { 0 };
        branches | stores
    }

    /// Whether a value may go into such a register.
    fn legal(&self, index: u32, value: u64) -> bool {
        match index {
            msr::LSTAR | msr::CSTAR | msr::KERNEL_GS_BASE | msr::SYSENTER_ESP | msr::SYSENTER_EIP => {
                self.is_canonical(value)
            }
            msr::TSC_AUX | msr::FMASK => value >> 32 == 0,
            msr::PAT => are_memory_types(value, true),
            msr::MTRR_DEF_TYPE => value & !0xcff == 0 && are_memory_types(value & 0xff, false),
            msr::SPEC_CTRL => value & !self.speculation_controls() == 0,
            msr::MISC_ENABLE => {
                let monitor = if self.system.features.has("monitor") { ENABLE_MONITOR } else { 0 };
                value & !(MISC_ENABLE_BITS | monitor) == 0
            }
            // Can only be cleared (SDM 3B 15.3.1.2).
            msr::MCG_STATUS => value == 0,
            DEBUGCTL => value & !0xffc3 == 0,
            msr::MTRR_PHYS_BASE0..=MTRR_PHYS_LAST => {
                let kind = index & 1 != 0 || are_memory_types(value & 0xff, false);
                let low = if index & 1 == 0 { 0xf00 } else { 0x7ff };
                kind && value & low == 0 && value >> self.system.physical_bits == 0
            }
            // All but IA32_MCi_CTL can only be cleared (SDM 3B 15.3.2.2 to 15.3.2.4).
            BANK_FIRST..=BANK_LAST => index & 3 == 0 || value == 0,
            _ if fixed(index).is_some() => are_memory_types(value, false),
            _ => true,
        }
    }

    /// RDMSR; `None` is `#GP(0)`.
    pub fn read_msr(&mut self, index: u32) -> Option<u64> {
        let features = self.system.features;
        Some(match index {
            msr::TSC => self.system.tsc(),
            msr::TSC_ADJUST if features.has("tsc_adjust") => self.system.msrs.tsc_adjust,
            msr::EFER => self.efer.bits(),
            msr::FS_BASE => self.segments[usize::from(seg::FS)].base,
            msr::GS_BASE => self.segments[usize::from(seg::GS)].base,
            msr::APIC_BASE => self.system.lapic.as_ref()?.base(),
            msr::TSC_DEADLINE if features.has("tsc_deadline_timer") => {
                self.system.lapic.as_ref()?.tsc_deadline()
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let now = self.system.now_ns();
                self.system.lapic.as_ref()?.read_msr(index - msr::X2APIC_FIRST, now).ok()?
            }
            msr::ARCH_CAPABILITIES if features.has("arch_capabilities") => ARCH_CAPABILITIES,
            msr::MTRR_CAP => MTRR_CAP,
            msr::MCG_CAP => u64::from(BANKS),
            // Locked, without VMX.
            msr::FEATURE_CONTROL => 1,
            msr::MICROCODE => 1 << 32,
            PLATFORM_ID | SMI_COUNT => 0,
            CORE_THREAD_COUNT => {
                let cpus = u64::from(self.cpuid(0xb, 1)[1]);
                cpus << 16 | cpus
            }
            PLATFORM_INFO => u64::from(self.system.tsc_khz / 100_000) << 8 | 1 << 31,
            PERF_STATUS => u64::from(self.system.tsc_khz / 100_000) << 8,
            msr::XSS if features.has("xsaves") => 0,
            _ if self.has_msr(index) => *self.system.msrs.cell(index)?,
            _ => return None,
        })
    }

    /// WRMSR; `None` is `#GP(0)`, and nothing has changed.
    pub fn write_msr(&mut self, index: u32, value: u64) -> Option<()> {
        let features = self.system.features;
        match index {
            msr::TSC => self.set_tsc(value),
            msr::TSC_ADJUST if features.has("tsc_adjust") => {
                let change = value.wrapping_sub(self.system.msrs.tsc_adjust);
                let tsc = self.system.tsc().wrapping_add(change);
                self.set_tsc(tsc);
                self.system.msrs.tsc_adjust = value;
            }
            msr::EFER => return self.set_efer(value),
            msr::FS_BASE => return self.set_base(seg::FS, value),
            msr::GS_BASE => return self.set_base(seg::GS, value),
            msr::APIC_BASE => {
                let (bits, x2apic) = (self.system.physical_bits, features.has("x2apic"));
                self.system.lapic.as_mut()?.set_base(value, bits, x2apic).ok()?;
                self.flush_tlb(false);
            }
            msr::TSC_DEADLINE if features.has("tsc_deadline_timer") => self.set_tsc_deadline(value),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let now = self.system.now_ns();
                let register = index - msr::X2APIC_FIRST;
                let done = self
                    .system
                    .lapic
                    .as_mut()
                    .ok_or(Rejected)
                    .and_then(|l| l.write_msr(register, value, now));
                self.after_apic_write(done.ok()?);
            }
            msr::PRED_CMD if features.has("ibrs") && value & !1 == 0 => {}
            msr::XSS if features.has("xsaves") && value == 0 => {}
            // An update that is not newer is ignored.
            msr::MICROCODE | MICROCODE_UPDATE => {}
            _ if self.has_msr(index) && self.legal(index, value) => {
                let told = if index == msr::MISC_ENABLE { MISC_ENABLE_TOLD } else { 0 };
                *self.system.msrs.cell(index)? = value | told;
            }
            _ => return None,
        }
        Some(())
    }

    fn set_base(&mut self, number: u8, value: u64) -> Option<()> {
        if !self.is_canonical(value) {
            return None;
        }
        self.segments[usize::from(number)].base = value;
        self.mode_changed();
        Some(())
    }

    fn set_efer(&mut self, value: u64) -> Option<()> {
        let new = Efer::from_bits_retain(value);
        let paging = self.cr0.contains(x86::Cr0::PG);
        if !self.system.allowed.efer.contains(new) || paging && (self.efer ^ new).contains(Efer::LME) {
            return None;
        }
        // LMA is not writable.
        let new = new & !Efer::LMA | self.efer & Efer::LMA;
        if (self.efer ^ new).contains(Efer::NXE) {
            self.flush_tlb(false);
        }
        self.efer = new;
        self.mode_changed();
        Some(())
    }

    /// Sets the time-stamp counter; IA32_TSC_ADJUST moves along (SDM 3B 17.17.3).
    pub(crate) fn set_tsc(&mut self, value: u64) {
        self.place_tsc(value);
        let deadline = self.system.lapic.as_ref().map_or(0, |lapic| lapic.tsc_deadline());
        self.set_tsc_deadline(deadline);
    }

    /// As [`Cpu::set_tsc`], for loading: nothing is due before the next run.
    pub(crate) fn place_tsc(&mut self, value: u64) {
        let now = self.system.ticks(self.system.now_ns());
        let offset = value.wrapping_sub(now);
        let msrs = &mut self.system.msrs;
        msrs.tsc_adjust = msrs.tsc_adjust.wrapping_add(offset.wrapping_sub(msrs.tsc_offset));
        msrs.tsc_offset = offset;
    }

    /// Sets IA32_TSC_DEADLINE.
    pub(crate) fn set_tsc_deadline(&mut self, value: u64) {
        self.place_tsc_deadline(value);
        self.tick();
    }

    /// As [`Cpu::set_tsc_deadline`], for loading: it fires in the next run at the earliest.
    pub(crate) fn place_tsc_deadline(&mut self, value: u64) {
        let (now, tsc) = (self.system.now_ns(), self.system.tsc());
        // A deadline whose distance is more than half of the counter's range has passed.
        let left = value.wrapping_sub(tsc);
        let left = if value <= tsc { 0 } else { left };
        let left_ns = (u128::from(left) * 1_000_000).div_ceil(u128::from(self.system.tsc_khz));
        let due = u64::try_from(left_ns).ok().and_then(|left| now.checked_add(left));
        if let Some(lapic) = &mut self.system.lapic {
            lapic.set_tsc_deadline(value, due);
        }
    }
}
