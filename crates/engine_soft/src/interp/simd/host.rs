//! What the host can execute: the vector features that a CPU model may offer.
//!
//! Every vector instruction runs on the host, so a guest can only have what the host has. There is no
//! emulation of a missing feature: a model that needs one does not start on this host.

use iced_x86::CpuidFeature;

/// Whether the host executes (and its kernel has enabled) a feature of the vector instruction sets.
/// Features that are none of ours are refused.
pub fn host_has(feature: CpuidFeature) -> bool {
    match feature {
        CpuidFeature::MMX | CpuidFeature::SSE | CpuidFeature::SSE2 => true,
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::AES => is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        CpuidFeature::SHA => is_x86_feature_detected!("sha"),
        CpuidFeature::AVX => is_x86_feature_detected!("avx"),
        CpuidFeature::AVX2 => is_x86_feature_detected!("avx2"),
        CpuidFeature::FMA => is_x86_feature_detected!("fma"),
        CpuidFeature::F16C => is_x86_feature_detected!("f16c"),
        CpuidFeature::VAES => is_x86_feature_detected!("vaes") && is_x86_feature_detected!("avx"),
        CpuidFeature::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq") && is_x86_feature_detected!("avx"),
        CpuidFeature::GFNI => is_x86_feature_detected!("gfni"),
        _ => false,
    }
}
