//! CPU models and the CPUID that both engines offer.
//!
//! A model is data: features by name, and an identity. An engine [resolves](CpuModel::resolve) it against what
//! it can execute on this host, and makes a [`CpuidTable`] for each processor from the result.

mod cpuid;
mod features;
mod models;
#[cfg(test)]
mod tests;

pub use cpuid::{CpuidEntry, CpuidSettings, CpuidTable, LiveBits};
pub use features::{FEATURES, Feature, FeatureSet, Register};
pub use models::MODELS;

use crate::{EngineError, EngineKind};

/// Whose processor it says it is; some instructions differ (SYSCALL outside 64-bit mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD`.
    Amd,
}

impl Vendor {
    /// The twelve letters of CPUID leaf 0.
    pub const fn signature(self) -> &'static [u8; 12] {
        match self {
            Vendor::Intel => b"GenuineIntel",
            Vendor::Amd => b"AuthenticAMD",
        }
    }
    /// The vendor of a signature.
    pub fn of_signature(signature: &[u8; 12]) -> Option<Self> {
        [Vendor::Intel, Vendor::Amd].into_iter().find(|vendor| vendor.signature() == signature)
    }
}

/// A CPU model.
#[derive(Clone, Debug)]
pub struct CpuModel {
    /// Name, for configuration.
    pub name: String,
    /// What the name stands for, one line.
    pub description: &'static str,
    /// Features without which it is not this model.
    pub required: FeatureSet,
    /// Features it has where the engine can.
    pub optional: FeatureSet,
    /// Vendor.
    pub vendor: Vendor,
    /// Family, with the extended part added.
    pub family: u32,
    /// Model, with the extended part.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// Brand string, at most 47 bytes.
    pub brand: String,
}

/// Who a host's processor says it is, for the model `host`.
#[derive(Clone, Debug)]
pub struct HostIdentity {
    /// Vendor.
    pub vendor: Vendor,
    /// Family, with the extended part added.
    pub family: u32,
    /// Model, with the extended part.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// Brand string.
    pub brand: String,
}

impl HostIdentity {
    /// From CPUID; `None` for vendors that no model knows.
    pub fn from_cpuid(mut cpuid: impl FnMut(u32, u32) -> [u32; 4]) -> Option<Self> {
        let [_, ebx, ecx, edx] = cpuid(0, 0);
        let mut signature = [0; 12];
        for (chunk, word) in signature.chunks_exact_mut(4).zip([ebx, edx, ecx]) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let [eax, ..] = cpuid(1, 0);
        let family = (eax >> 8 & 0xf) + if eax >> 8 & 0xf == 0xf { eax >> 20 & 0xff } else { 0 };
        let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
            .flat_map(|leaf| cpuid(leaf, 0))
            .flat_map(u32::to_le_bytes)
            .take_while(|&byte| byte != 0)
            .collect();
        Some(HostIdentity {
            vendor: Vendor::of_signature(&signature)?,
            family,
            model: eax >> 4 & 0xf | eax >> 12 & 0xf0,
            stepping: eax & 0xf,
            brand: String::from_utf8_lossy(&brand).trim().to_owned(),
        })
    }
}

impl CpuModel {
    /// The model of a name.
    pub fn named(name: &str) -> Result<Self, EngineError> {
        models::model(name).ok_or_else(|| EngineError::UnknownModel {
            model: name.to_owned(),
            known: MODELS.iter().map(|entry| entry.0).collect::<Vec<_>>().join(", "),
        })
    }

    /// The model as an engine that can execute `supported` offers it: what it lacks of the optional features
    /// is left out, and the result has exactly the features of [`CpuModel::required`]. Refuses if a required
    /// one is missing.
    pub fn resolve(&self, supported: FeatureSet, engine: EngineKind) -> Result<Self, EngineError> {
        let missing = self.required.without(supported);
        if !missing.is_empty() {
            let missing = missing.names(", ");
            return Err(EngineError::ModelNotSupported { model: self.name.clone(), missing, engine });
        }
        let mut features = self.required.union(self.optional.intersection(supported));
        for (feature, needs) in models::DEPENDENCIES {
            if features.has(feature) && !FeatureSet::of(needs).without(features).is_empty() {
                features = features.without(FeatureSet::of(feature));
            }
        }
        Ok(CpuModel { required: features, optional: FeatureSet::EMPTY, ..self.clone() })
    }

    /// The features of a resolved model.
    pub fn features(&self) -> FeatureSet {
        self.required
    }

    /// The model with a host's vendor (on engines whose silicon shows through), and for the model `host` all of
    /// its identity.
    #[must_use]
    pub fn with_identity(mut self, host: &HostIdentity) -> Self {
        if self.name == "host" {
            (self.family, self.model, self.stepping) = (host.family, host.model, host.stepping);
            self.brand.clone_from(&host.brand);
        } else if self.vendor != host.vendor {
            (self.family, self.model, self.stepping) = models::identity(host.vendor);
        }
        self.vendor = host.vendor;
        self
    }
}
