//! The models.

use super::{CpuModel, FeatureSet, Vendor};

/// Names and descriptions, in the order for people.
pub const MODELS: &[(&str, &str)] = &[
    ("x86-64-v1", "The baseline of every x86-64 processor"),
    ("x86-64-v2", "psABI level 2: SSE4.2, POPCNT, CMPXCHG16B (2009 and later)"),
    ("x86-64-v3", "psABI level 3: AVX2, BMI, FMA (2013 and later)"),
    ("max", "Everything that the engine can execute"),
    ("host", "The host's processor, as far as the engine can execute it"),
];

/// Level 1, of the x86-64 psABI's table of micro-architecture levels.
pub(super) const LEVEL_1: &str = "cmov cx8 fpu fxsr mmx syscall sse sse2";
/// What level 2 adds.
pub(super) const LEVEL_2: &str = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3";
/// What level 3 adds.
pub(super) const LEVEL_3: &str = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave";

/// What every 64-bit operating system takes for granted.
const PLATFORM: &str = "lm nx tsc msr pae mce apic pge mca pat pse pse36 clflush mtrr";
/// What a virtual processor has on top, if possible.
const PLATFORM_OPTIONAL: &str = "vme de sep ss x2apic tsc_deadline_timer tsc_adjust arat hypervisor rdtscp \
    invtsc arch_capabilities ibrs ssbd stibp";
/// System features that came with the processors of level 2.
const LEVEL_2_OPTIONAL: &str = "pdpe1gb pcid aes pclmulqdq prefetchw";
/// System features that came with the processors of level 3.
const LEVEL_3_OPTIONAL: &str = "fsgsbase smep smap erms invpcid rdrand rdseed adx xsaveopt xsavec xgetbv1 xsaves \
    fdp_excptn_only zero_fcs_fds clflushopt umip";

/// Features, and what they cannot be without.
pub(super) const DEPENDENCIES: &[(&str, &str)] = &[
    ("avx", "xsave"),
    ("avx2", "avx"),
    ("fma", "avx"),
    ("f16c", "avx"),
    ("vaes", "avx"),
    ("vpclmulqdq", "avx"),
    ("avx_vnni", "avx2"),
    ("avx512f", "avx2"),
    ("avx512dq", "avx512f"),
    ("avx512ifma", "avx512f"),
    ("avx512cd", "avx512f"),
    ("avx512bw", "avx512f"),
    ("avx512vl", "avx512f"),
    ("avx512vbmi", "avx512bw"),
    ("avx512_vbmi2", "avx512bw"),
    ("avx512_vnni", "avx512f"),
    ("avx512_bitalg", "avx512bw"),
    ("avx512_vpopcntdq", "avx512f"),
    ("xsaveopt", "xsave"),
    ("xsavec", "xsave"),
    ("xgetbv1", "xsave"),
    ("xsaves", "xsavec"),
    ("pku", "xsave"),
];

/// Features that no model has unless asked for: their state or semantics no engine provides.
const NEVER: &str = "flush_l1d cr8_legacy osvw clzero xsaveerptr cldemote movdir64b";

/// Family, model and stepping of the models that are nobody's in particular.
pub(super) const fn identity(vendor: Vendor) -> (u32, u32, u32) {
    match vendor {
        Vendor::Intel => (6, 0x6a, 6),
        Vendor::Amd => (0x17, 0x31, 0),
    }
}

impl CpuModel {
    /// A resolved model with exactly these features.
    pub fn everything(features: FeatureSet) -> Self {
        let (family, model, stepping) = identity(Vendor::Intel);
        CpuModel {
            name: "max".to_owned(),
            description: MODELS[3].1,
            required: features,
            optional: FeatureSet::EMPTY,
            vendor: Vendor::Intel,
            family,
            model,
            stepping,
            brand: "Vireo processor".to_owned(),
        }
    }
}

pub(super) fn model(name: &str) -> Option<CpuModel> {
    let &(_, description) = MODELS.iter().find(|entry| entry.0 == name)?;
    let of =
        |lists: &[&str]| lists.iter().fold(FeatureSet::EMPTY, |set, list| set.union(FeatureSet::of(list)));
    let (required, optional) = match name {
        "x86-64-v1" => (of(&[LEVEL_1, PLATFORM]), of(&[PLATFORM_OPTIONAL])),
        "x86-64-v2" => (of(&[LEVEL_1, LEVEL_2, PLATFORM]), of(&[PLATFORM_OPTIONAL, LEVEL_2_OPTIONAL])),
        "x86-64-v3" => (
            of(&[LEVEL_1, LEVEL_2, LEVEL_3, PLATFORM]),
            of(&[PLATFORM_OPTIONAL, LEVEL_2_OPTIONAL, LEVEL_3_OPTIONAL]),
        ),
        _ => (of(&[LEVEL_1, PLATFORM]), FeatureSet::ALL.without(of(&[NEVER]))),
    };
    let (family, model, stepping) = identity(Vendor::Intel);
    Some(CpuModel {
        name: name.to_owned(),
        description,
        required,
        optional,
        vendor: Vendor::Intel,
        family,
        model,
        stepping,
        brand: format!("Vireo {name} processor"),
    })
}

#[cfg(test)]
pub(super) const ALL_LISTS: &[&str] =
    &[LEVEL_1, LEVEL_2, LEVEL_3, PLATFORM, PLATFORM_OPTIONAL, LEVEL_2_OPTIONAL, LEVEL_3_OPTIONAL, NEVER];
