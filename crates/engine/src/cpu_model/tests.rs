use super::models::{ALL_LISTS, LEVEL_1, LEVEL_2, LEVEL_3};
use super::*;

fn table(name: &str, cpus: u32) -> CpuidTable {
    let model = CpuModel::named(name).unwrap().resolve(FeatureSet::ALL, EngineKind::Software).unwrap();
    let settings =
        CpuidSettings { index: 1, cpus, tsc_khz: 2_400_000, apic_khz: 1_000_000, physical_bits: 46 };
    CpuidTable::new(&model, settings)
}

#[test]
fn lists_have_only_known_names() {
    for name in ALL_LISTS.iter().flat_map(|list| list.split_whitespace()) {
        assert!(FeatureSet::ALL.has(name), "{name}");
    }
    for (feature, needs) in models::DEPENDENCIES {
        assert!(FeatureSet::ALL.has(feature) && FeatureSet::ALL.has(needs));
    }
}

/// The psABI's table 3.1 in CPUID bits, written down from the SDM and APM independently of the feature table.
#[test]
fn levels_report_the_bits_of_the_psabi() {
    // (leaf, register, bit): CMOV CX8 FPU FXSR MMX SCE SSE SSE2
    let level_1 = [
        (1, 3, 15),
        (1, 3, 8),
        (1, 3, 0),
        (1, 3, 24),
        (1, 3, 23),
        (0x8000_0001, 3, 11),
        (1, 3, 25),
        (1, 3, 26),
    ];
    // CMPXCHG16B LAHF POPCNT SSE3 SSE4.1 SSE4.2 SSSE3
    let level_2 = [(1, 2, 13), (0x8000_0001, 2, 0), (1, 2, 23), (1, 2, 0), (1, 2, 19), (1, 2, 20), (1, 2, 9)];
    // AVX AVX2 BMI1 BMI2 F16C FMA LZCNT MOVBE XSAVE
    let level_3 = [
        (1, 2, 28),
        (7, 1, 5),
        (7, 1, 3),
        (7, 1, 8),
        (1, 2, 29),
        (1, 2, 12),
        (0x8000_0001, 2, 5),
        (1, 2, 22),
        (1, 2, 26),
    ];
    let levels: [&[(u32, usize, u32)]; 3] = [&level_1, &level_2, &level_3];
    for (number, list) in [LEVEL_1, LEVEL_2, LEVEL_3].iter().enumerate() {
        assert_eq!(list.split_whitespace().count(), levels[number].len());
    }
    for (number, name) in ["x86-64-v1", "x86-64-v2", "x86-64-v3"].iter().enumerate() {
        let cpuid = table(name, 1);
        for (level, bits) in levels.iter().enumerate() {
            for &(leaf, register, bit) in *bits {
                let reported = cpuid.get(leaf, 0)[register] >> bit & 1 != 0;
                assert_eq!(reported, level <= number, "{name}: leaf {leaf:#x} register {register} bit {bit}");
            }
        }
    }
}

#[test]
fn missing_features_are_named() {
    let model = CpuModel::named("x86-64-v3").unwrap();
    let supported = FeatureSet::ALL.without(FeatureSet::of("avx2 fma"));
    let error = model.resolve(supported, EngineKind::Software).unwrap_err();
    let EngineError::ModelNotSupported { missing, .. } = error else { panic!("{error}") };
    assert_eq!(missing, "fma, avx2");
    assert!(matches!(CpuModel::named("i486"), Err(EngineError::UnknownModel { .. })));
}

#[test]
fn features_that_need_a_missing_one_go_too() {
    let model = CpuModel::named("max").unwrap();
    let got = model.resolve(FeatureSet::ALL.without(FeatureSet::of("xsave")), EngineKind::Software).unwrap();
    assert!(
        FeatureSet::of("avx avx2 fma avx512f avx512bw xsaves pku").intersection(got.features()).is_empty()
    );
}

#[test]
fn topology_counts_processors() {
    let cpuid = table("x86-64-v2", 6);
    assert_eq!(cpuid.get(0xb, 0), [0, 1, 0x100, 1]);
    assert_eq!(cpuid.get(0xb, 1), [3, 6, 0x201, 1]);
    assert_eq!(cpuid.get(0xb, 2), [0, 0, 2, 1]);
    assert_eq!(cpuid.get(1, 0)[1], 1 << 24 | 8 << 16 | 8 << 8);
    assert_eq!(cpuid.get(1, 0)[3] >> 28 & 1, 1);
}

#[test]
fn frequencies_give_the_tsc() {
    let [denominator, numerator, hertz, _] = table("max", 1).get(0x15, 0);
    assert_eq!((denominator, numerator, hertz), (5, 12, 1_000_000_000));
    assert_eq!(table("max", 1).get(0x16, 0)[0], 2400);
}

#[test]
fn live_bits_and_area_sizes_follow_the_registers() {
    let cpuid = table("x86-64-v3", 1);
    let bits = LiveBits { osxsave: true, apic_enabled: false, xcr0: 7, ospke: false, monitor: true };
    assert_eq!(cpuid.get(1, 0)[2] >> 27 & 1, 0);
    assert_eq!(cpuid.live(1, 0, bits)[2] >> 27 & 1, 1);
    assert_eq!(cpuid.live(1, 0, bits)[3] >> 9 & 1, 0);
    assert_eq!(cpuid.live(0xd, 0, bits), [7, 832, 832, 0]);
    assert_eq!(cpuid.live(0xd, 0, LiveBits { xcr0: 3, ..bits })[1], 576);
    assert_eq!(cpuid.get(0xd, 2), [256, 576, 0, 0]);
    assert_eq!(cpuid.xcr0_mask(), 7);
    assert_eq!(table("x86-64-v2", 1).xcr0_mask(), 1);
}

#[test]
fn a_table_is_read_back_as_the_set_it_was_made_from() {
    for (name, _) in MODELS {
        let cpuid = table(name, 1);
        let model = CpuModel::named(name).unwrap().resolve(FeatureSet::ALL, EngineKind::Software).unwrap();
        assert_eq!(
            FeatureSet::from_cpuid(|leaf, subleaf| cpuid.get(leaf, subleaf)),
            model.features(),
            "{name}"
        );
    }
}

#[test]
fn identity_survives_a_round_trip() {
    let cpuid = table("host", 1);
    let host = HostIdentity::from_cpuid(|leaf, subleaf| cpuid.get(leaf, subleaf)).unwrap();
    assert_eq!((host.vendor, host.family, host.model, host.stepping), (Vendor::Intel, 6, 0x6a, 6));
    assert_eq!(host.brand, "Vireo host processor");
    let amd = HostIdentity { vendor: Vendor::Amd, family: 0x19, model: 0x21, stepping: 2, brand: "B".into() };
    let model = CpuModel::named("host").unwrap().with_identity(&amd);
    let model = model.resolve(FeatureSet::ALL, EngineKind::Kvm).unwrap();
    let settings = CpuidSettings { index: 0, cpus: 1, tsc_khz: 0, apic_khz: 0, physical_bits: 48 };
    let cpuid = CpuidTable::new(&model, settings);
    let back = HostIdentity::from_cpuid(|leaf, subleaf| cpuid.get(leaf, subleaf)).unwrap();
    assert_eq!((back.vendor, back.family, back.model, back.stepping), (Vendor::Amd, 0x19, 0x21, 2));
}
