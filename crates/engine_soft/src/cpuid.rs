//! What the software CPU can offer, and CPUID at run time.

use crate::cpu::Cpu;
use crate::interp::simd::host_has;
use engine::cpu_model::{CpuidSettings, FeatureSet, LiveBits};
use iced_x86::CpuidFeature as F;
use x86::Cr4;

/// Features that need nothing from the host.
const ALWAYS: &str = "cx16 pcid x2apic movbe popcnt tsc_deadline_timer xsave rdrand hypervisor \
    fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ss arat \
    fsgsbase tsc_adjust bmi1 bmi2 smep erms invpcid rdseed adx smap clflushopt clwb fdp_excptn_only zero_fcs_fds \
    umip rdpid movdiri ibrs ssbd stibp arch_capabilities serialize fsrm xsaveopt xsavec xgetbv1 xsaves lahf_lm abm \
    prefetchw syscall nx pdpe1gb rdtscp lm invtsc wbnoinvd la57 monitor";

/// Features that execute on the host's vector unit.
const OF_HOST: &[(&str, F)] = &[
    ("pni", F::SSE3),
    ("ssse3", F::SSSE3),
    ("sse4_1", F::SSE4_1),
    ("sse4_2", F::SSE4_2),
    ("aes", F::AES),
    ("pclmulqdq", F::PCLMULQDQ),
    ("sha_ni", F::SHA),
    ("avx", F::AVX),
    ("avx2", F::AVX2),
    ("fma", F::FMA),
    ("f16c", F::F16C),
    ("vaes", F::VAES),
    ("vpclmulqdq", F::VPCLMULQDQ),
    ("gfni", F::GFNI),
];

/// Instruction groups of features that have other names in the decoder.
const DECODED: &[(&str, &[F])] = &[
    ("cx16", &[F::CMPXCHG16B]),
    ("cx8", &[F::CX8]),
    ("cmov", &[F::CMOV]),
    ("clflush", &[F::CLFSH]),
    ("clflushopt", &[F::CLFLUSHOPT]),
    ("clwb", &[F::CLWB]),
    ("mmx", &[F::MMX]),
    ("fxsr", &[F::FXSR]),
    ("sse", &[F::SSE]),
    ("sse2", &[F::SSE2]),
    ("movbe", &[F::MOVBE]),
    ("popcnt", &[F::POPCNT]),
    ("xsave", &[F::XSAVE]),
    ("xsaveopt", &[F::XSAVEOPT]),
    ("xsavec", &[F::XSAVEC]),
    ("xsaves", &[F::XSAVES]),
    ("rdrand", &[F::RDRAND]),
    ("rdseed", &[F::RDSEED]),
    ("tsc", &[F::TSC]),
    ("msr", &[F::MSR]),
    ("sep", &[F::SEP]),
    ("fsgsbase", &[F::FSGSBASE]),
    ("bmi1", &[F::BMI1]),
    ("bmi2", &[F::BMI2]),
    ("abm", &[F::LZCNT]),
    ("invpcid", &[F::INVPCID]),
    ("adx", &[F::ADX]),
    ("smap", &[F::SMAP]),
    ("rdpid", &[F::RDPID]),
    ("movdiri", &[F::MOVDIRI]),
    ("serialize", &[F::SERIALIZE]),
    ("syscall", &[F::SYSCALL]),
    ("rdtscp", &[F::RDTSCP]),
    ("wbnoinvd", &[F::WBNOINVD]),
    ("prefetchw", &[F::PREFETCHW]),
    ("pku", &[F::PKU]),
    ("monitor", &[F::MONITOR]),
];

/// Everything the software CPU can execute on this host.
pub fn supported() -> FeatureSet {
    let here = OF_HOST.iter().filter(|(_, feature)| host_has(*feature));
    here.fold(FeatureSet::of(ALWAYS), |set, (name, _)| set.union(FeatureSet::of(name)))
}

/// The model's features by the decoder's numbers.
pub(crate) fn instruction_features(features: FeatureSet) -> Vec<bool> {
    let mut table = vec![false; F::values().len()];
    let own = DECODED.iter().flat_map(|(name, list)| list.iter().map(move |feature| (*name, *feature)));
    for (name, feature) in own.chain(OF_HOST.iter().copied()) {
        if let Some(entry) = table.get_mut(feature as usize) {
            *entry = features.has(name);
        }
    }
    table
}

/// CPUID settings of processor `index` of `cpus`.
pub fn settings(index: u32, cpus: u32, physical_bits: u32, tsc_khz: u32) -> CpuidSettings {
    CpuidSettings { index, cpus, tsc_khz, apic_khz: crate::lapic::TIMER_KHZ, physical_bits }
}

impl Cpu {
    /// CPUID.
    pub(crate) fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let misc_enable = self.system.msrs.misc_enable();
        let enabled = |lapic: &crate::lapic::Lapic| lapic.base() & crate::lapic::base::ENABLE != 0;
        self.system.cpuid.live(
            leaf,
            subleaf,
            LiveBits {
                osxsave: self.cr4.contains(Cr4::OSXSAVE),
                ospke: self.cr4.contains(Cr4::PKE),
                apic_enabled: self.system.lapic.as_ref().is_none_or(enabled),
                xcr0: self.xcr0,
                monitor: misc_enable & crate::msr::ENABLE_MONITOR != 0,
            },
        )
    }
}
