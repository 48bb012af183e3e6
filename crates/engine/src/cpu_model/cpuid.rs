//! [`CpuidTable`]: what CPUID answers on one processor (SDM 2A, CPUID).

use super::{CpuModel, FeatureSet, Register, Vendor};

/// What of CPUID depends on the machine and the processor.
#[derive(Clone, Copy, Debug)]
pub struct CpuidSettings {
    /// Processor number and APIC ID.
    pub index: u32,
    /// Processors of the machine.
    pub cpus: u32,
    /// Time-stamp counter frequency in kHz; zero for unknown.
    pub tsc_khz: u32,
    /// Local APIC timer frequency in kHz.
    pub apic_khz: u32,
    /// Guest-physical address width.
    pub physical_bits: u32,
}

/// One answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input, for leaves that look at it.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX, EDX on output.
    pub result: [u32; 4],
}

/// Bits that follow control registers and MSRs while the guest runs. KVM keeps them by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct LiveBits {
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// CR4.PKE.
    pub ospke: bool,
    /// IA32_APIC_BASE bit 11.
    pub apic_enabled: bool,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_MISC_ENABLE bit 18.
    pub monitor: bool,
}

/// The CPUID of one processor.
#[derive(Clone, Debug)]
pub struct CpuidTable {
    /// Answers, by leaf and subleaf.
    pub entries: Vec<CpuidEntry>,
    highest_basic: u32,
}

/// Highest hypervisor leaf.
const HYPERVISOR_LAST: u32 = 0x4000_0010;
/// Signature of the hypervisor leaves.
const HYPERVISOR_SIGNATURE: &[u8; 12] = b"VireoVireo  ";
/// Offset and size of the YMM component in the standard XSAVE format.
const YMM: (u32, u32) = (576, 256);
/// XSAVE components: number, offset, size, the feature that brings it.
const COMPONENTS: &[(u32, u32, u32, &str)] = &[
    (2, YMM.0, YMM.1, "avx"),
    (5, 1088, 64, "avx512f"),
    (6, 1152, 512, "avx512f"),
    (7, 1664, 1024, "avx512f"),
    (9, 2688, 8, "pku"),
];

struct Builder<'a> {
    model: &'a CpuModel,
    features: FeatureSet,
    settings: CpuidSettings,
    entries: Vec<CpuidEntry>,
}

impl CpuidTable {
    /// The table of a [resolved](CpuModel::resolve) model's processor.
    pub fn new(model: &CpuModel, settings: CpuidSettings) -> Self {
        let mut builder = Builder { model, features: model.features(), settings, entries: Vec::new() };
        builder.basic();
        builder.topology();
        builder.xsave();
        builder.frequencies();
        builder.hypervisor();
        builder.extended();
        let mut entries = builder.entries;
        entries.sort_by_key(|entry| (entry.leaf, entry.subleaf));
        let highest_basic = entries.iter().map(|entry| entry.leaf).filter(|&leaf| leaf < 0x4000_0000).max();
        let highest_basic = highest_basic.unwrap_or(0);
        if let Some(zero) = entries.first_mut() {
            zero.result[0] = highest_basic;
        }
        CpuidTable { entries, highest_basic }
    }

    /// The answer for EAX and ECX, without live bits. Leaves beyond the highest answer as the highest basic
    /// leaf (Intel) does.
    pub fn get(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let limit = match leaf >> 28 {
            0..4 => self.highest_basic,
            4 => HYPERVISOR_LAST,
            _ => 0x8000_0021,
        };
        let leaf = if leaf > limit { self.highest_basic } else { leaf };
        let wanted =
            |entry: &&CpuidEntry| entry.leaf == leaf && entry.subleaf.is_none_or(|sub| sub == subleaf);
        if let Some(entry) = self.entries.iter().find(wanted) {
            return entry.result;
        }
        match leaf {
            // Invalid levels still tell the level asked for and the x2APIC ID (SDM 2A).
            0xb | 0x1f => [0, 0, subleaf & 0xff, self.get(0xb, 0)[3]],
            _ => [0; 4],
        }
    }

    /// The answer with the bits that change at run time.
    pub fn live(&self, leaf: u32, subleaf: u32, bits: LiveBits) -> [u32; 4] {
        let mut result = self.get(leaf, subleaf);
        match (leaf, subleaf) {
            (1, _) => {
                result[2] |= u32::from(bits.osxsave) << 27;
                result[2] &= !(u32::from(!bits.monitor) << 3);
                result[3] &= !(u32::from(!bits.apic_enabled) << 9);
            }
            (7, 0) => result[2] |= u32::from(bits.ospke) << 4,
            (0xd, 0) if self.has_leaf(0xd) => result[1] = self.area_size(bits.xcr0),
            (0xd, 1) if self.has_leaf(0xd) => result[1] = self.compacted_size(bits.xcr0),
            (0x8000_0001, _)
                if self
                    .entries
                    .first()
                    .is_some_and(|zero| zero.result[2] == u32::from_le_bytes(*b"cAMD")) =>
            {
                result[3] &= !(u32::from(!bits.apic_enabled) << 9);
            }
            _ => {}
        }
        result
    }

    /// XCR0 bits that may be set.
    pub fn xcr0_mask(&self) -> u64 {
        let [low, _, _, high] = self.get(0xd, 0);
        if self.has_leaf(0xd) { u64::from(high) << 32 | u64::from(low) } else { 1 }
    }

    fn has_leaf(&self, leaf: u32) -> bool {
        self.entries.iter().any(|entry| entry.leaf == leaf)
    }

    /// Size of the standard XSAVE area for `xcr0`.
    pub fn area_size(&self, xcr0: u64) -> u32 {
        let ends = COMPONENTS.iter().filter(|c| xcr0 >> c.0 & 1 != 0).map(|c| c.1 + c.2);
        ends.max().unwrap_or(0).max(576)
    }

    fn compacted_size(&self, xcr0: u64) -> u32 {
        COMPONENTS.iter().filter(|c| xcr0 >> c.0 & 1 != 0).fold(576, |size, c| size + c.2)
    }
}

impl Builder<'_> {
    fn add(&mut self, leaf: u32, subleaf: Option<u32>, result: [u32; 4]) {
        self.entries.push(CpuidEntry { leaf, subleaf, result });
    }

    fn bits(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        self.features.register(leaf, subleaf, register)
    }

    fn signature(&self) -> u32 {
        let CpuModel { family, model, stepping, .. } = *self.model;
        let (base, extended) = if family >= 15 { (15, family - 15) } else { (family, 0) };
        stepping & 0xf | (model & 0xf) << 4 | base << 8 | (model >> 4 & 0xf) << 16 | (extended & 0xff) << 20
    }

    fn basic(&mut self) {
        let [a, b, c] = words(self.model.vendor.signature());
        self.add(0, None, [0, a, c, b]);
        let count = self.settings.cpus.next_power_of_two().min(255);
        let ebx = (self.settings.index & 0xff) << 24 | count << 16 | 8 << 8;
        let htt = u32::from(self.settings.cpus > 1) << 28;
        let ecx = self.bits(1, 0, Register::Ecx);
        let edx = self.bits(1, 0, Register::Edx) | htt;
        self.add(1, None, [self.signature(), ebx, ecx, edx]);
        // Leaf 2: no descriptors, leaf 4 has them.
        self.add(2, None, [0x00ff_ff01, 0, 0, 0]);
        // Leaf 5: smallest and largest line; the leaf's extensions, and interrupts as break events. No C-states, so that
        // systems go on to idle by HLT, which a hypervisor can wait in for as long as it takes.
        let monitor = self.features.has("monitor");
        self.add(5, None, if monitor { [64, 64, 3, 0] } else { [0; 4] });
        self.add(6, None, [self.bits(6, 0, Register::Eax), 0, 0, 0]);
        let seven_1 = self.bits(7, 1, Register::Eax);
        let seven = |register| self.features.register(7, 0, register);
        let first =
            [u32::from(seven_1 != 0), seven(Register::Ebx), seven(Register::Ecx), seven(Register::Edx)];
        self.add(7, Some(0), first);
        self.add(7, Some(1), [seven_1, 0, 0, 0]);
    }

    fn topology(&mut self) {
        let cpus = self.settings.cpus.max(1);
        let shift = cpus.next_power_of_two().trailing_zeros();
        let id = self.settings.index;
        // Leaf 4: type, level, then ways, line partitions, line size and sets, each minus one.
        let caches = [(1, 1, 8, 64), (2, 1, 8, 64), (3, 2, 16, 1024), (3, 3, 16, 16384)];
        for (subleaf, (kind, level, ways, sets)) in (0..).zip(caches) {
            let sharing = if level == 3 { (1 << shift) - 1 } else { 0 };
            let cores = ((1_u32 << shift) - 1).min(63);
            let eax = kind | level << 5 | 1 << 8 | (sharing & 0xfff) << 14 | cores << 26;
            self.add(4, Some(subleaf), [eax, (ways - 1) << 22 | 63, sets - 1, 0]);
        }
        self.add(4, Some(4), [0; 4]);
        for leaf in [0xb, 0x1f] {
            self.add(leaf, Some(0), [0, 1, 1 << 8, id]);
            self.add(leaf, Some(1), [shift, cpus & 0xffff, 1 | 2 << 8, id]);
        }
    }

    fn xsave(&mut self) {
        if !self.features.has("xsave") {
            return;
        }
        let components = || COMPONENTS.iter().filter(|c| self.features.has(c.3));
        let mask = components().fold(3, |mask, c| mask | 1 << c.0);
        let size = components().map(|c| c.1 + c.2).max().unwrap_or(576);
        let subleaves: Vec<_> =
            components().map(|c| (c.0, [c.2, c.1, u32::from(c.0 >= 5) << 1, 0])).collect();
        self.add(0xd, Some(0), [mask, 576, size, 0]);
        self.add(0xd, Some(1), [self.bits(0xd, 1, Register::Eax), 576, 0, 0]);
        for (number, result) in subleaves {
            self.add(0xd, Some(number), [result[0], result[1], 0, 0]);
        }
    }

    /// Leaves 0x15 and 0x16: the ratio of TSC to the APIC timer's clock, which is the crystal. Left out if
    /// the multiplication that guests do with it would overflow 32 bits.
    fn frequencies(&mut self) {
        let (tsc, apic) = (self.settings.tsc_khz, self.settings.apic_khz);
        if tsc == 0 || apic == 0 {
            return;
        }
        let divisor = greatest_common_divisor(tsc, apic);
        let (numerator, denominator) = (tsc / divisor, apic / divisor);
        let hertz = apic.checked_mul(1000);
        let leaf = match (numerator.checked_mul(apic), hertz) {
            (Some(_), Some(hertz)) => [denominator, numerator, hertz, 0],
            _ => [0; 4],
        };
        self.add(0x15, None, leaf);
        let mhz = (tsc / 1000).min(0xffff);
        self.add(0x16, None, [mhz, mhz, 0, 0]);
    }

    fn hypervisor(&mut self) {
        if !self.features.has("hypervisor") {
            return;
        }
        let [a, b, c] = words(HYPERVISOR_SIGNATURE);
        self.add(0x4000_0000, None, [HYPERVISOR_LAST, a, b, c]);
        self.add(HYPERVISOR_LAST, None, [self.settings.tsc_khz, self.settings.apic_khz, 0, 0]);
    }

    fn extended(&mut self) {
        let amd = self.model.vendor == Vendor::Amd;
        let vendor = if amd { words(self.model.vendor.signature()) } else { [0; 3] };
        self.add(0x8000_0000, None, [0x8000_0021, vendor[0], vendor[2], vendor[1]]);
        let mut edx = self.bits(0x8000_0001, 0, Register::Edx);
        if amd {
            // AMD repeats the old features of leaf 1 here.
            edx |= self.bits(1, 0, Register::Edx) & 0x0183_f3ff;
        }
        let signature = if amd { self.signature() } else { 0 };
        self.add(0x8000_0001, None, [signature, 0, self.bits(0x8000_0001, 0, Register::Ecx), edx]);
        let mut brand = [0; 48];
        let length = self.model.brand.len().min(47);
        brand[..length].copy_from_slice(&self.model.brand.as_bytes()[..length]);
        for (leaf, part) in (0x8000_0002..).zip(brand.chunks_exact(16)) {
            let mut result = [0; 4];
            for (word, bytes) in result.iter_mut().zip(part.chunks_exact(4)) {
                *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            self.add(leaf, None, result);
        }
        if amd {
            self.add(0x8000_0005, None, [0, 0, 0x2008_0140, 0x2008_0140]);
        }
        self.add(0x8000_0006, None, [0, 0, 0x0400_6040 | 8 << 12, 0]);
        self.add(0x8000_0007, None, [0, 0, 0, self.bits(0x8000_0007, 0, Register::Edx)]);
        let linear = if self.features.has("la57") { 57 } else { 48 };
        let cores = self.settings.cpus.max(1) - 1;
        let shift = self.settings.cpus.max(1).next_power_of_two().trailing_zeros();
        let ecx = if amd { cores & 0xff | shift << 12 } else { 0 };
        let ebx = self.bits(0x8000_0008, 0, Register::Ebx);
        self.add(0x8000_0008, None, [self.settings.physical_bits | linear << 8, ebx, ecx, 0]);
        self.add(0x8000_0021, None, [self.bits(0x8000_0021, 0, Register::Eax), 0, 0, 0]);
    }
}

fn words(signature: &[u8; 12]) -> [u32; 3] {
    let word = |at: usize| {
        u32::from_le_bytes([signature[at], signature[at + 1], signature[at + 2], signature[at + 3]])
    };
    [word(0), word(4), word(8)]
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
