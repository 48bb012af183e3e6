//! The CPUID a guest sees: the model's, as far as KVM can provide it.
//!
//! What KVM supports is a table of leaves. The model is resolved against the features in it; the guest's table
//! is the model's, except for the layout of the XSAVE area, which silicon decides.

use engine::cpu_model::{CpuModel, CpuidSettings, CpuidTable, FeatureSet, HostIdentity};
use engine::{EngineError, EngineKind};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaves 0x4000_0000 upwards are the hypervisor's: KVM's own would promise paravirtual devices.
const HYPERVISOR_LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;
/// CPUID.1:ECX bits that KVM leaves to its user: the hypervisor bit, and the TSC deadline timer, which has a
/// capability of its own.
const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
/// KVM's local APIC timer counts nanoseconds.
const APIC_KHZ: u32 = 1_000_000;
const XSAVE_LEAF: u32 = 0xd;
/// A word of the brand string in which machines for probing differ from every host: EAX of this leaf.
pub(crate) const MARKED_LEAF: u32 = 0x8000_0002;
pub(crate) const MARK: u32 = u32::from_le_bytes(*b"Vire");

/// Where the CPUID of a machine's processors comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A model that KVM can provide.
    Model {
        /// Resolved.
        model: CpuModel,
        /// What KVM supports, for what silicon decides.
        supported: CpuId,
    },
    /// All that KVM supports, for probing.
    Everything(CpuId),
}

/// A model, as far as it is possible here.
pub(crate) fn for_model(supported: CpuId, model: &CpuModel) -> Result<Source, EngineError> {
    let mut model = model.resolve(features(&supported), EngineKind::Kvm)?;
    if let Some(identity) = identity(&supported) {
        model = model.with_identity(&identity);
    }
    Ok(Source::Model { model, supported })
}

/// What KVM can execute.
pub(crate) fn features(supported: &CpuId) -> FeatureSet {
    FeatureSet::from_cpuid(|leaf, subleaf| lookup(supported, leaf, subleaf))
}

/// Who the host's processor is.
pub(crate) fn identity(supported: &CpuId) -> Option<HostIdentity> {
    HostIdentity::from_cpuid(|leaf, subleaf| lookup(supported, leaf, subleaf))
}

/// What KVM can offer, completed by what it leaves to its user.
pub(crate) fn complete(supported: &mut CpuId, tsc_deadline: bool) {
    supported.retain(|entry| !HYPERVISOR_LEAVES.contains(&entry.function));
    for entry in supported.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx |= HYPERVISOR | if tsc_deadline { TSC_DEADLINE } else { 0 };
    }
}

impl Source {
    /// The CPUID of one processor.
    pub(crate) fn for_processor(&self, index: u32, cpus: u32, tsc_khz: u32) -> Result<CpuId, EngineError> {
        match self {
            Source::Everything(supported) => {
                let mut cpuid = supported.clone();
                cpuid.as_mut_slice().iter_mut().for_each(|entry| personalise(entry, index, cpus));
                cpuid
                    .as_mut_slice()
                    .iter_mut()
                    .filter(|entry| entry.function == MARKED_LEAF)
                    .for_each(|entry| entry.eax = MARK);
                Ok(cpuid)
            }
            Source::Model { model, supported } => {
                let physical_bits = match lookup(supported, 0x8000_0008, 0)[0] & 0xff {
                    0 => 36,
                    bits => bits,
                };
                let settings = CpuidSettings { index, cpus, tsc_khz, apic_khz: APIC_KHZ, physical_bits };
                let mut entries = entries_of(&CpuidTable::new(model, settings));
                take_xsave_layout(&mut entries, supported);
                CpuId::from_entries(&entries).map_err(|_| EngineError::InvalidState {
                    reason: "the CPUID table is longer than KVM's".to_owned(),
                })
            }
        }
    }
}

fn entries_of(table: &CpuidTable) -> Vec<kvm_cpuid_entry2> {
    let entry = |entry: &engine::cpu_model::CpuidEntry| {
        let [eax, ebx, ecx, edx] = entry.result;
        kvm_cpuid_entry2 {
            function: entry.leaf,
            index: entry.subleaf.unwrap_or(0),
            flags: if entry.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    };
    table.entries.iter().map(entry).collect()
}

/// Sizes and offsets of the XSAVE components are the silicon's, and so is the size of the whole.
fn take_xsave_layout(entries: &mut [kvm_cpuid_entry2], supported: &CpuId) {
    let mut end = 576;
    for entry in entries.iter_mut().filter(|entry| entry.function == XSAVE_LEAF && entry.index >= 2) {
        let [size, offset, flags, _] = lookup(supported, XSAVE_LEAF, entry.index);
        (entry.eax, entry.ebx, entry.ecx) = (size, offset, flags);
        end = end.max(size.saturating_add(offset));
    }
    if let Some(whole) = entries.iter_mut().find(|entry| entry.function == XSAVE_LEAF && entry.index == 0) {
        whole.ecx = end;
    }
}

/// EAX, EBX, ECX and EDX of a leaf; zeros if KVM does not have it.
fn lookup(cpuid: &CpuId, leaf: u32, subleaf: u32) -> [u32; 4] {
    let indexed = |entry: &kvm_cpuid_entry2| entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    let found = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == leaf && (!indexed(entry) || entry.index == subleaf));
    found.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

/// The APIC ID wherever CPUID tells it.
fn personalise(entry: &mut kvm_cpuid_entry2, apic_id: u32, cpus: u32) {
    match entry.function {
        1 => entry.ebx = entry.ebx & 0xffff | cpus.min(255) << 16 | apic_id << 24,
        0xb | 0x1f => entry.edx = apic_id,
        0x8000_001e => entry.eax = apic_id,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn the_layout_of_xsave_is_the_silicons() {
        // AMD places the protection keys where Intel has the mask registers.
        let supported = CpuId::from_entries(&[entry(0xd, 9, [8, 2432, 0, 0])]).unwrap();
        let mut entries = [entry(0xd, 0, [0x207, 576, 2696, 0]), entry(0xd, 9, [8, 2688, 0, 0])];
        take_xsave_layout(&mut entries, &supported);
        assert_eq!((entries[0].ecx, entries[1].ebx), (2440, 2432));
    }

    #[test]
    fn a_model_that_needs_more_than_kvm_has_is_refused_by_name() {
        let model = CpuModel { required: FeatureSet::of("avx2"), ..CpuModel::named("host").unwrap() };
        let nothing = CpuId::from_entries(&[entry(1, 0, [0; 4])]).unwrap();
        match for_model(nothing, &model) {
            Err(EngineError::ModelNotSupported { missing, .. }) => assert_eq!(missing, "avx2"),
            other => panic!("{other:?}"),
        }
    }
}
