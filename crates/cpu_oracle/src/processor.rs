//! The host's processor: its name, and what it lacks of what cases are made of.

use std::arch::is_x86_feature_detected as has;

/// The processor's family, model and name, as the kernel tells them.
pub fn name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or("unknown").trim().to_owned()
    };
    format!(
        "{} (family {}, model {}, stepping {})",
        field("model name"),
        field("cpu family"),
        field("model"),
        field("stepping")
    )
}

/// Extensions that cases use and this processor does not have. Their instructions are #UD on both sides here, so a run
/// says nothing about them.
pub fn lacking() -> Vec<&'static str> {
    let extensions = [
        ("SSE3", has!("sse3")),
        ("SSSE3", has!("ssse3")),
        ("SSE4.1", has!("sse4.1")),
        ("SSE4.2", has!("sse4.2")),
        ("POPCNT", has!("popcnt")),
        ("LZCNT", has!("lzcnt")),
        ("MOVBE", has!("movbe")),
        ("CMPXCHG16B", has!("cmpxchg16b")),
        ("AES", has!("aes")),
        ("PCLMULQDQ", has!("pclmulqdq")),
        ("SHA", has!("sha")),
        ("AVX", has!("avx")),
        ("AVX2", has!("avx2")),
        ("FMA", has!("fma")),
        ("F16C", has!("f16c")),
        ("BMI1", has!("bmi1")),
        ("BMI2", has!("bmi2")),
        ("ADX", has!("adx")),
        ("GFNI", has!("gfni")),
        ("VAES", has!("vaes")),
        ("VPCLMULQDQ", has!("vpclmulqdq")),
        ("XSAVE", has!("xsave")),
        ("XSAVEOPT", has!("xsaveopt")),
        ("XSAVEC", has!("xsavec")),
        ("XSAVES", has!("xsaves")),
    ];
    extensions.into_iter().filter(|(_, present)| !present).map(|(name, _)| name).collect()
}

/// The processor and what it lacks, in a line.
pub fn described() -> String {
    let lacking = lacking();
    let lacks = if lacking.is_empty() { "nothing that cases use".to_owned() } else { lacking.join(", ") };
    format!("{}, which lacks {lacks}", name())
}
