//! CPU features by name, and sets of them.

use std::fmt;

/// A result register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "register names")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Where CPUID reports a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Name, as Linux spells it in `/proc/cpuinfo` where it has one.
    pub name: &'static str,
    /// Leaf.
    pub leaf: u32,
    /// Subleaf.
    pub subleaf: u32,
    /// Register.
    pub register: Register,
    /// Bit.
    pub bit: u8,
}

macro_rules! features {
    ($($leaf:literal . $subleaf:literal . $register:ident : $($name:ident $bit:literal),+;)+) => {
        /// Every feature a model can have, in CPUID order.
        pub const FEATURES: &[Feature] = &[$($(Feature {
            name: stringify!($name), leaf: $leaf, subleaf: $subleaf, register: Register::$register, bit: $bit,
        }),+),+];
    };
}

features! {
    0x1 . 0 . Ecx: pni 0, pclmulqdq 1, monitor 3, ssse3 9, fma 12, cx16 13, pcid 17, sse4_1 19, sse4_2 20,
        x2apic 21, movbe 22, popcnt 23, tsc_deadline_timer 24, aes 25, xsave 26, avx 28, f16c 29, rdrand 30,
        hypervisor 31;
    0x1 . 0 . Edx: fpu 0, vme 1, de 2, pse 3, tsc 4, msr 5, pae 6, mce 7, cx8 8, apic 9, sep 11, mtrr 12, pge 13,
        mca 14, cmov 15, pat 16, pse36 17, clflush 19, mmx 23, fxsr 24, sse 25, sse2 26, ss 27;
    0x6 . 0 . Eax: arat 2;
    0x7 . 0 . Ebx: fsgsbase 0, tsc_adjust 1, bmi1 3, avx2 5, fdp_excptn_only 6, smep 7, bmi2 8, erms 9,
        invpcid 10, zero_fcs_fds 13, avx512f 16, avx512dq 17, rdseed 18, adx 19, smap 20, avx512ifma 21,
        clflushopt 23, clwb 24, avx512cd 28, sha_ni 29, avx512bw 30, avx512vl 31;
    0x7 . 0 . Ecx: avx512vbmi 1, umip 2, pku 3, avx512_vbmi2 6, gfni 8, vaes 9, vpclmulqdq 10, avx512_vnni 11,
        avx512_bitalg 12, avx512_vpopcntdq 14, la57 16, rdpid 22, cldemote 25, movdiri 27, movdir64b 28;
    0x7 . 0 . Edx: fsrm 4, md_clear 10, serialize 14, ibrs 26, stibp 27, flush_l1d 28, arch_capabilities 29,
        ssbd 31;
    0x7 . 1 . Eax: avx_vnni 4, fzrm 10, fsrs 11, fsrc 12;
    0xd . 1 . Eax: xsaveopt 0, xsavec 1, xgetbv1 2, xsaves 3;
    0x80000001 . 0 . Ecx: lahf_lm 0, cr8_legacy 4, abm 5, sse4a 6, misalignsse 7, prefetchw 8, osvw 9;
    0x80000001 . 0 . Edx: syscall 11, nx 20, mmxext 22, fxsr_opt 25, pdpe1gb 26, rdtscp 27, lm 29;
    0x80000007 . 0 . Edx: invtsc 8;
    0x80000008 . 0 . Ebx: clzero 0, xsaveerptr 2, wbnoinvd 9;
    0x80000021 . 0 . Eax: null_sel_clears_base 6;
}

/// A set of [`FEATURES`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct FeatureSet(u128);

const _: () = assert!(FEATURES.len() <= 128);

impl FeatureSet {
    /// No features.
    pub const EMPTY: FeatureSet = FeatureSet(0);
    /// All known features.
    pub const ALL: FeatureSet = FeatureSet(u128::MAX >> (128 - FEATURES.len()));

    /// The features of a space-separated list of names. Unknown names are left out; the crate's tests see to
    /// it that its own lists have none.
    pub fn of(names: &str) -> Self {
        names.split_whitespace().filter_map(index_of).fold(Self::EMPTY, |set, at| FeatureSet(set.0 | 1 << at))
    }
    /// Whether a feature is in the set, by name.
    pub fn has(self, name: &str) -> bool {
        index_of(name).is_some_and(|at| self.0 >> at & 1 != 0)
    }
    /// Features of either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        FeatureSet(self.0 | other.0)
    }
    /// Features of both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        FeatureSet(self.0 & other.0)
    }
    /// Features of this set that the other does not have.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        FeatureSet(self.0 & !other.0)
    }
    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The features.
    pub fn iter(self) -> impl Iterator<Item = &'static Feature> {
        FEATURES.iter().enumerate().filter(move |(at, _)| self.0 >> at & 1 != 0).map(|(_, feature)| feature)
    }
    /// Names, separated by `separator`.
    pub fn names(self, separator: &str) -> String {
        self.iter().map(|feature| feature.name).collect::<Vec<_>>().join(separator)
    }
    /// The set that CPUID reports; `cpuid` answers a leaf and subleaf with EAX, EBX, ECX, EDX.
    pub fn from_cpuid(mut cpuid: impl FnMut(u32, u32) -> [u32; 4]) -> Self {
        let mut set = Self::EMPTY;
        for (at, feature) in FEATURES.iter().enumerate() {
            let highest = cpuid(feature.leaf & 0x8000_0000, 0)[0];
            if feature.leaf > highest || feature.leaf == 7 && feature.subleaf > cpuid(7, 0)[0] {
                continue;
            }
            let word = cpuid(feature.leaf, feature.subleaf)[feature.register as usize];
            set.0 |= u128::from(word >> feature.bit & 1) << at;
        }
        set
    }
    /// The bits of one CPUID register.
    pub fn register(self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        self.iter()
            .filter(|f| f.leaf == leaf && f.subleaf == subleaf && f.register == register)
            .fold(0, |word, feature| word | 1 << feature.bit)
    }
}

impl fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|feature| feature.name)).finish()
    }
}

fn index_of(name: &str) -> Option<usize> {
    FEATURES.iter().position(|feature| feature.name == name)
}
