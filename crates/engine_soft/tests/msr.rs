//! RDMSR and WRMSR against SDM volume 4 and the sections it refers to: which registers there are, which bits of them are
//! reserved, and what hangs on CPUID. Everything else is #GP(0).

use engine::cpu_model::{CpuModel, FeatureSet, Vendor};
use engine::{Engine, Vcpu, VcpuIo, Vm, VmExit, VmSettings};
use engine_soft::SoftEngine;
use guest_clock::{HostEntropy, ManualClock};
use guest_memory::GuestMemory;
use std::sync::Arc;

const CODE: u64 = 0x8000;
/// Handler of #GP.
const FAULT: u64 = 0x9000;

struct NoDevices;
impl VcpuIo for NoDevices {}

/// A processor in real mode, where every privilege is there.
struct Rig {
    memory: Arc<GuestMemory>,
    _vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
}

fn model(without: &str, vendor: Vendor) -> CpuModel {
    let mut model = CpuModel::named("max").unwrap();
    let gone = FeatureSet::of(without);
    model.required = model.required.without(gone);
    model.optional = model.optional.without(gone);
    model.vendor = vendor;
    model
}

fn rig(model: CpuModel) -> Rig {
    let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
    memory.write(13 * 4, &(FAULT as u32).to_le_bytes()).unwrap();
    memory.write(FAULT, &[0xf4]).unwrap();
    let engine = SoftEngine::new();
    let settings = VmSettings {
        memory: Arc::clone(&memory),
        cpus: 1,
        model,
        tsc_khz: None,
        lenient_xrstor: false,
        clock: Arc::new(ManualClock::default()),
        entropy: Arc::new(HostEntropy),
    };
    let vm = engine.create_vm(settings).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    Rig { memory, _vm: vm, vcpu }
}

impl Rig {
    /// Runs code up to its HLT; EDX:EAX, or nothing after #GP.
    fn run(&mut self, code: &[u8]) -> Option<u64> {
        self.memory.write(CODE, code).unwrap();
        let mut state = self.vcpu.state().unwrap();
        (state.segments.cs.selector, state.segments.cs.base) = (0, 0);
        (state.rip, state.gprs[4], state.mp_state) = (CODE, 0x6000, x86::MpState::Runnable);
        self.vcpu.set_state(&state).unwrap();
        assert_eq!(self.vcpu.run_steps(&NoDevices, 20), VmExit::Halted);
        let state = self.vcpu.state().unwrap();
        let low = |value: u64| value & 0xffff_ffff;
        (state.rip != FAULT + 1).then(|| low(state.gprs[0]) | low(state.gprs[2]) << 32)
    }

    fn read(&mut self, index: u32) -> Option<u64> {
        // mov ecx, index; rdmsr; hlt
        self.run(&[&[0x66, 0xb9][..], &index.to_le_bytes(), &[0x0f, 0x32, 0xf4]].concat())
    }

    /// Whether it is taken.
    fn write(&mut self, index: u32, value: u64) -> bool {
        let (low, high) = ((value as u32).to_le_bytes(), ((value >> 32) as u32).to_le_bytes());
        // mov ecx, index; mov eax, low; mov edx, high; wrmsr; hlt
        let index = index.to_le_bytes();
        let code =
            [&[0x66, 0xb9][..], &index, &[0x66, 0xb8], &low, &[0x66, 0xba], &high, &[0x0f, 0x30, 0xf4]];
        self.run(&code.concat()).is_some()
    }
}

/// The first address that is not canonical, with 48 bits.
const FAR: u64 = 1 << 47;

/// Register, value, whether it is taken, section.
const WRITES: &[(u32, u64, bool, &str)] = &[
    (0x1b, 0xfee0_0900, true, "IA32_APIC_BASE: the BSP, enabled (SDM 3A 10.4.4)"),
    (0x1b, 0xfee0_0901, false, "IA32_APIC_BASE: bits 7-0 are reserved"),
    (0x1b, 0xfee0_0b00, false, "IA32_APIC_BASE: bit 9 is reserved"),
    (0x1b, 1 << 52 | 0xfee0_0900, false, "IA32_APIC_BASE: beyond the physical address"),
    (0x1b, 0xfee0_0500, false, "x2APIC mode without the enable bit (SDM 3A 10.12.1)"),
    (0x17, 0, false, "IA32_PLATFORM_ID is read-only"),
    (0x3a, 1, false, "IA32_FEATURE_CONTROL is locked"),
    (0x48, 0x7, true, "IA32_SPEC_CTRL: IBRS, STIBP, SSBD"),
    (0x48, 0x8, false, "IA32_SPEC_CTRL: reserved"),
    (0x48, 1 << 32, false, "IA32_SPEC_CTRL: reserved"),
    (0x49, 0x1, true, "IA32_PRED_CMD: IBPB"),
    (0x49, 0x2, false, "IA32_PRED_CMD: reserved"),
    (0xfe, 0, false, "IA32_MTRRCAP is read-only"),
    (0x10a, 0, false, "IA32_ARCH_CAPABILITIES is read-only"),
    (0x174, 0x10, true, "IA32_SYSENTER_CS"),
    (0x175, FAR - 1, true, "IA32_SYSENTER_ESP: canonical"),
    (0x175, FAR, false, "IA32_SYSENTER_ESP: not canonical"),
    (0x176, !FAR + 1, true, "IA32_SYSENTER_EIP: canonical"),
    (0x176, FAR, false, "IA32_SYSENTER_EIP: not canonical"),
    (0x179, 0, false, "IA32_MCG_CAP is read-only"),
    (0x17a, 0, true, "IA32_MCG_STATUS: cleared (SDM 3B 15.3.1.2)"),
    (0x17a, 1, false, "IA32_MCG_STATUS: only zero can be written"),
    (0x17b, u64::MAX, false, "IA32_MCG_CTL is not there: MCG_CTL_P is clear"),
    (0x198, 0, false, "IA32_PERF_STATUS is read-only"),
    (0x1a0, 1, true, "IA32_MISC_ENABLE: fast strings"),
    (0x1a0, 1 << 22, true, "IA32_MISC_ENABLE: limit of CPUID"),
    (0x1a0, 1 << 1, false, "IA32_MISC_ENABLE: reserved"),
    (0x1a0, 1 << 39, false, "IA32_MISC_ENABLE: reserved"),
    (0x1d9, 0x2, true, "IA32_DEBUGCTL: BTF"),
    (0x1d9, 0x10_0000, false, "IA32_DEBUGCTL: reserved"),
    (0x200, 0x8000_0006, true, "IA32_MTRR_PHYSBASE0: write-back (SDM 3A 11.11.2.3)"),
    (0x200, 0x8000_0106, false, "IA32_MTRR_PHYSBASE0: bits 11-8 are reserved"),
    (0x200, 0x8000_0002, false, "IA32_MTRR_PHYSBASE0: no such type (table 11-8)"),
    (0x200, 0x8000_0007, false, "IA32_MTRR_PHYSBASE0: UC- is the PAT's alone"),
    (0x200, 1 << 52, false, "IA32_MTRR_PHYSBASE0: beyond the physical address"),
    (0x201, 0xf_8000_0800, true, "IA32_MTRR_PHYSMASK0: valid"),
    (0x201, 0xf_8000_0400, false, "IA32_MTRR_PHYSMASK0: bits 10-0 are reserved"),
    (0x210, 0, false, "IA32_MTRR_PHYSBASE8: MTRRCAP tells of eight"),
    (0x250, 0x0606_0606_0606_0606, true, "IA32_MTRR_FIX64K_00000"),
    (0x250, 0x0606_0602_0606_0606, false, "IA32_MTRR_FIX64K_00000: no such type"),
    (0x26f, 0x0505_0505_0505_0505, true, "IA32_MTRR_FIX4K_F8000, the last"),
    (0x270, 0, false, "behind the fixed ranges"),
    (0x277, 0x0007_0406_0007_0406, true, "IA32_PAT (SDM 3A 11.12.2)"),
    (0x277, 0x0002_0406_0007_0406, false, "IA32_PAT: types 2 and 3 are reserved"),
    (0x277, 0x0807_0406_0007_0406, false, "IA32_PAT: bits 7-3 of each are reserved"),
    (0x2ff, 0xc06, true, "IA32_MTRR_DEF_TYPE: enabled, write-back"),
    (0x2ff, 0x1c06, false, "IA32_MTRR_DEF_TYPE: reserved"),
    (0x2ff, 0xc02, false, "IA32_MTRR_DEF_TYPE: no such type"),
    (0x400, u64::MAX, true, "IA32_MC0_CTL"),
    (0x401, 0, true, "IA32_MC0_STATUS: cleared (SDM 3B 15.3.2.2)"),
    (0x401, 1, false, "IA32_MC0_STATUS: only zero can be written"),
    (0x402, 0, true, "IA32_MC0_ADDR: cleared (SDM 3B 15.3.2.3)"),
    (0x402, 0x1000, false, "IA32_MC0_ADDR: only zero can be written"),
    (0x403, 1, false, "IA32_MC0_MISC: only zero can be written (SDM 3B 15.3.2.4)"),
    (0x428, 0, false, "IA32_MC10_CTL: MCG_CAP tells of ten banks"),
    (0x6e0, 0, true, "IA32_TSC_DEADLINE"),
    (0x802, 0, false, "x2APIC registers outside of x2APIC mode (SDM 3A 10.12.1.2)"),
    (0xda0, 0, true, "IA32_XSS: no supervisor component"),
    (0xda0, 1 << 8, false, "IA32_XSS: no supervisor component"),
    (0xc000_0080, 0xd01, true, "IA32_EFER: SCE, LME, NXE; LMA is the processor's"),
    (0xc000_0080, 0x2, false, "IA32_EFER: reserved"),
    (0xc000_0080, 1 << 32, false, "IA32_EFER: reserved"),
    (0xc000_0082, FAR, false, "IA32_LSTAR: not canonical"),
    (0xc000_0083, FAR, false, "IA32_CSTAR: not canonical"),
    (0xc000_0084, 0xffff_ffff, true, "IA32_FMASK"),
    (0xc000_0084, 1 << 32, false, "IA32_FMASK: bits 63-32 are reserved"),
    (0xc000_0100, FAR, false, "IA32_FS_BASE: not canonical"),
    (0xc000_0101, FAR, false, "IA32_GS_BASE: not canonical"),
    (0xc000_0102, FAR, false, "IA32_KERNEL_GS_BASE: not canonical"),
    (0xc000_0102, FAR - 1, true, "IA32_KERNEL_GS_BASE: canonical"),
    (0xc000_0103, 0xffff_ffff, true, "IA32_TSC_AUX"),
    (0xc000_0103, 1 << 32, false, "IA32_TSC_AUX: bits 63-32 are reserved"),
];

#[test]
fn reserved_bits_and_read_only_registers_fault() {
    let mut rig = rig(model("", Vendor::Intel));
    for &(index, value, taken, what) in WRITES {
        let before = rig.read(index);
        assert_eq!(rig.write(index, value), taken, "{what}: {index:#x} <- {value:#x}");
        if !taken {
            assert_eq!(rig.read(index), before, "{what}: a refused write changes nothing");
        }
    }
}

/// The architectural registers of SDM volume 4, table 2-2, that these processors have, and their value after power-up.
const READS: &[(u32, Option<u64>, &str)] = &[
    (0x10, None, "IA32_TIME_STAMP_COUNTER"),
    (0x17, Some(0), "IA32_PLATFORM_ID"),
    (0x1b, Some(0xfee0_0900), "IA32_APIC_BASE"),
    (0x3a, Some(1), "IA32_FEATURE_CONTROL: locked, no VMX"),
    (0x3b, Some(0), "IA32_TSC_ADJUST"),
    (0x48, Some(0), "IA32_SPEC_CTRL"),
    (0x8b, None, "IA32_BIOS_SIGN_ID"),
    (0xfe, Some(0x508), "IA32_MTRRCAP: eight ranges, fixed ranges, write-combining"),
    (0x10a, None, "IA32_ARCH_CAPABILITIES"),
    (0x174, Some(0), "IA32_SYSENTER_CS"),
    (0x175, Some(0), "IA32_SYSENTER_ESP"),
    (0x176, Some(0), "IA32_SYSENTER_EIP"),
    (0x179, Some(10), "IA32_MCG_CAP: ten banks"),
    (0x17a, Some(0), "IA32_MCG_STATUS"),
    (0x198, None, "IA32_PERF_STATUS"),
    (0x1a0, None, "IA32_MISC_ENABLE"),
    (0x1d9, Some(0), "IA32_DEBUGCTL"),
    (0x200, Some(0), "IA32_MTRR_PHYSBASE0"),
    (0x20f, Some(0), "IA32_MTRR_PHYSMASK7"),
    (0x250, Some(0), "IA32_MTRR_FIX64K_00000"),
    (0x258, Some(0), "IA32_MTRR_FIX16K_80000"),
    (0x26f, Some(0), "IA32_MTRR_FIX4K_F8000"),
    (0x277, Some(0x0007_0406_0007_0406), "IA32_PAT (SDM 3A 11.12.4)"),
    (0x2ff, Some(0), "IA32_MTRR_DEF_TYPE"),
    (0x400, None, "IA32_MC0_CTL"),
    (0x427, None, "IA32_MC9_MISC"),
    (0x6e0, Some(0), "IA32_TSC_DEADLINE"),
    (0xda0, Some(0), "IA32_XSS"),
    (0xc000_0080, Some(0), "IA32_EFER"),
    (0xc000_0081, Some(0), "IA32_STAR"),
    (0xc000_0082, Some(0), "IA32_LSTAR"),
    (0xc000_0084, Some(0), "IA32_FMASK"),
    (0xc000_0100, Some(0), "IA32_FS_BASE"),
    (0xc000_0102, Some(0), "IA32_KERNEL_GS_BASE"),
    (0xc000_0103, Some(0), "IA32_TSC_AUX"),
];

#[test]
fn architectural_registers_have_their_values_after_power_up() {
    let mut rig = rig(model("", Vendor::Intel));
    for &(index, expected, what) in READS {
        let got = rig.read(index);
        assert!(got.is_some(), "{what}, {index:#x}, is #GP");
        assert!(expected.is_none() || got == expected, "{what}, {index:#x}: {got:x?}");
    }
}

/// Registers that these processors do not have, or that can only be written.
#[test]
fn unknown_registers_fault() {
    let mut rig = rig(model("", Vendor::Intel));
    let of_virtualisation = 0x480..=0x491;
    let of_performance = [0x38d, 0x38f, 0x390, 0xc1, 0x186, 0x309, 0x345, 0x600];
    let write_only = [0x49, 0x79, 0x10b];
    let others =
        [0x0, 0x1, 0x11, 0x2f, 0x9b, 0x9e, 0x122, 0x17b, 0x1c9, 0x210, 0x270, 0x428, 0x560, 0x6a0, 0x6a2];
    let far =
        [0xd90, 0xda1, 0x1000, 0x4000_0000, 0x4b56_4d00, 0xc000_0085, 0xc000_0104, 0xc001_0015, u32::MAX];
    let all = of_virtualisation.chain(of_performance).chain(write_only).chain(others).chain(far);
    for index in all {
        assert_eq!(rig.read(index), None, "{index:#x} can be read");
        let writable = write_only.contains(&index);
        assert!(writable || !rig.write(index, 0), "{index:#x} can be written");
    }
    // The x2APIC's are there in its mode only.
    assert!((0x800..0x900).all(|index| rig.read(index).is_none() && !rig.write(index, 0)));
}

/// SDM 3A table 10-6: the registers of the x2APIC and their access.
#[test]
fn x2apic_registers_are_those_of_the_table() {
    let mut rig = rig(model("", Vendor::Intel));
    assert!(rig.write(0x1b, 0xfee0_0d00));
    let read_only = [0x802, 0x803, 0x80a, 0x80d, 0x839];
    let in_service = (0x810..=0x827).collect::<Vec<_>>();
    let both = [0x808, 0x80f, 0x828, 0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x83e];
    let optional = [0x82f];
    let write_only = [0x80b, 0x83f];
    for index in 0x800..0x900 {
        let readable = read_only.contains(&index) || in_service.contains(&index) || both.contains(&index);
        if !optional.contains(&index) {
            assert_eq!(rig.read(index).is_some(), readable, "RDMSR of {index:#x}");
            let writable = both.contains(&index) || write_only.contains(&index);
            let value = if index == 0x83f { 0x40 } else { 0 };
            assert_eq!(rig.write(index, value), writable, "WRMSR of {index:#x}");
        }
        // Bits 63-32 are reserved in all but the ICR (10.12.1.2).
        if index != 0x830 {
            assert!(!rig.write(index, 1 << 32), "{index:#x} takes its upper half");
        }
    }
    for (index, value, what) in [
        (0x808, 0x100, "TPR has 8 bits"),
        (0x80b, 1, "EOI takes only zero"),
        (0x828, 1, "ESR takes only zero"),
        (0x80f, 0x2000, "SVR: reserved"),
        (0x83e, 0x4, "DCR: bit 2 is reserved"),
        (0x1b, 0xfee0_0900, "back to xAPIC mode only by way of off (10.12.5)"),
    ] {
        assert!(!rig.write(index, value), "{what}");
    }
}

/// Feature, register, whether it can be read with it.
const BY_FEATURE: &[(&str, u32, bool)] = &[
    ("tsc_adjust", 0x3b, true),
    ("ibrs stibp ssbd", 0x48, true),
    ("ibrs stibp", 0x49, false),
    ("arch_capabilities", 0x10a, true),
    ("tsc_deadline_timer", 0x6e0, true),
    ("xsaves", 0xda0, true),
    ("rdtscp rdpid", 0xc000_0103, true),
];

#[test]
fn registers_go_with_their_features() {
    for &(features, index, readable) in BY_FEATURE {
        let mut with = rig(model("", Vendor::Intel));
        let mut without = rig(model(features, Vendor::Intel));
        assert_eq!(with.read(index).is_some(), readable, "{index:#x} with {features}");
        let read_only = index == 0x10a;
        assert_eq!(with.write(index, 0), !read_only, "{index:#x} with {features}");
        assert_eq!(without.read(index), None, "{index:#x} without {features}");
        assert!(!without.write(index, 0), "{index:#x} without {features}");
    }
    for (features, index, value) in [
        ("ssbd", 0x48, 4_u64),
        ("ibrs stibp", 0x48, 1),
        ("x2apic", 0x1b, 0xfee0_0d00),
        ("monitor", 0x1a0, 1 << 18),
        ("nx", 0xc000_0080, 1 << 11),
    ] {
        assert!(rig(model("", Vendor::Intel)).write(index, value), "{value:#x} with {features}");
        assert!(!rig(model(features, Vendor::Intel)).write(index, value), "{value:#x} without {features}");
    }
}

/// What AMD's operating systems read without asking is there on AMD's models only.
#[test]
fn amds_registers_are_amds() {
    for (vendor, there) in [(Vendor::Amd, true), (Vendor::Intel, false)] {
        let mut rig = rig(model("", vendor));
        assert_eq!(rig.read(0xc001_0015).is_some(), there, "{vendor:?}");
    }
}
