//! Cases and outcomes.

use crate::random::Random;
use crate::{DATA_SIZE, XSAVE_SIZE};

/// How the code runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode.
    #[default]
    Long,
    /// Compatibility mode with the system's flat 32-bit code segment.
    Flat32,
    /// Compatibility mode, a 32-bit code segment of the local table.
    Segmented32,
    /// Compatibility mode, a 16-bit code segment of the local table.
    Segmented16,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 4] = [Mode::Long, Mode::Flat32, Mode::Segmented32, Mode::Segmented16];

    /// Default operand and address size of the code, in bits (64 for 64-bit mode).
    pub fn bits(self) -> u32 {
        match self {
            Mode::Long => 64,
            Mode::Flat32 | Mode::Segmented32 => 32,
            Mode::Segmented16 => 16,
        }
    }
}

/// Data segment registers, in encoding order without CS: ES, SS, DS, FS, GS.
pub type Selectors = [u16; 5];

/// Bytes of the data pages that are not random.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Offset from the first data page.
    pub at: usize,
    /// Content.
    pub bytes: Vec<u8>,
}

/// Code and the state it starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Mode of the code.
    pub mode: Mode,
    /// Machine code; the rest of its page is `hlt`.
    pub code: Vec<u8>,
    /// Where in its page the code starts. It may run to the very end of the page.
    pub code_offset: usize,
    /// Registers in encoding order.
    pub gprs: [u64; 16],
    /// Flags.
    pub rflags: u64,
    /// Data segments; in [`Mode::Long`] FS and GS are null and have the bases below.
    pub selectors: Selectors,
    /// FS base in [`Mode::Long`].
    pub fs_base: u64,
    /// GS base in [`Mode::Long`].
    pub gs_base: u64,
    /// XSAVE area in the standard format.
    pub xsave: Vec<u8>,
    /// Seed of the data pages' content.
    pub data_seed: u64,
    /// What overlays it.
    pub patches: Vec<Patch>,
    /// Flags that are undefined at the end (see [`crate::undefined`]).
    pub undefined_flags: u64,
    /// Number of instructions.
    pub instructions: u32,
}

impl Case {
    /// Fills in the data pages' content.
    pub fn fill_data(&self, data: &mut [u8]) {
        let mut random = Random::new(self.data_seed);
        for page in data.chunks_exact_mut(PATTERN) {
            let (first, step) = (random.bits(), random.bits() | 1);
            let mut value = first;
            for word in page.chunks_exact_mut(8) {
                word.copy_from_slice(&value.to_le_bytes());
                value = (value ^ value >> 29).wrapping_add(step).rotate_left(7);
            }
        }
        for at in 0..VALUES {
            let value = random.value().to_le_bytes();
            let at = at * (DATA_SIZE / VALUES) + (random.bits() as usize & 0x38);
            data[at..at + 8].copy_from_slice(&value);
        }
        for patch in &self.patches {
            let at = patch.at.min(DATA_SIZE);
            let len = patch.bytes.len().min(DATA_SIZE - at);
            data[at..at + len].copy_from_slice(&patch.bytes[..len]);
        }
    }

    /// Linear address of the first instruction.
    pub fn start(&self) -> u64 {
        crate::CODE_ADDRESS + self.code_offset as u64
    }

    /// RIP at the first instruction: relative to the code segment.
    pub fn rip(&self) -> u64 {
        self.start() - crate::layout::code_base(self.mode)
    }
}

/// Bytes that one pair of random numbers fills.
const PATTERN: usize = 512;
/// Special values strewn over the data pages.
const VALUES: usize = 128;

/// [`Outcome::vector`] of a case that silicon did not end in time; the rest is what it was doing. No exception has
/// this number.
pub const ENDLESS: u8 = 0xff;

/// Where a case ended and what it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Registers.
    pub gprs: [u64; 16],
    /// Address of the instruction that faulted (or after it, for traps).
    pub rip: u64,
    /// Code segment.
    pub cs: u16,
    /// Flags.
    pub rflags: u64,
    /// Data segments.
    pub selectors: Selectors,
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// XSAVE area, with components in their initial state filled in ([`fill_initial`]).
    pub xsave: Vec<u8>,
    /// Data pages, then the code page.
    pub memory: Vec<u8>,
    /// Exception vector.
    pub vector: u8,
    /// Its error code.
    pub error_code: u32,
    /// Page-fault address, else zero.
    pub cr2: u64,
}

impl Outcome {
    /// The end in a line: the exception, and the general registers that are not zero, by number.
    pub fn summary(&self) -> String {
        if self.vector == ENDLESS {
            return format!("does not end, at {:#x}", self.rip);
        }
        let registers = self.gprs.iter().enumerate().filter(|(_, value)| **value != 0);
        let registers: Vec<_> = registers.map(|(number, value)| format!("{number}: {value:x}")).collect();
        format!(
            "vector {:#x} error {:#x} cr2 {:#x} rip {:#x} rflags {:#x} registers {}",
            self.vector,
            self.error_code,
            self.cr2,
            self.rip,
            self.rflags,
            registers.join(", ")
        )
    }
}

/// Fills in components in their initial state and clears the header and what is not state.
pub fn fill_initial(bytes: &mut [u8]) {
    let present = bytes[512];
    if present & 1 == 0 {
        bytes[0..24].fill(0);
        bytes[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        bytes[32..160].fill(0);
    }
    if present & 2 == 0 {
        bytes[160..416].fill(0);
    }
    if present & 4 == 0 {
        bytes[576..XSAVE_SIZE].fill(0);
    }
    bytes[416..576].fill(0);
}
