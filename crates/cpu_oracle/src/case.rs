//! Cases and outcomes.

use crate::{CODE_MAX, DATA_SIZE, XSAVE_SIZE};
use serde::{Deserialize, Serialize};

/// Code and the state it starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Machine code, at most [`CODE_MAX`] - 1 bytes; `hlt` follows.
    pub code: Vec<u8>,
    /// Registers in encoding order.
    pub gprs: [u64; 16],
    /// Flags; only arithmetic flags and DF vary.
    pub rflags: u64,
    /// XSAVE area in the standard format.
    pub xsave: Vec<u8>,
    /// Seed of the data pages' content (see [`Case::data`]).
    pub data_seed: u64,
    /// Flags that are undefined at the end.
    pub undefined_flags: u64,
    /// Number of instructions.
    pub instructions: u32,
}

impl Case {
    /// The data pages' content.
    pub fn data(&self) -> Vec<u8> {
        let mut random = crate::random::Random::new(self.data_seed);
        let mut data = Vec::with_capacity(DATA_SIZE);
        while data.len() < DATA_SIZE {
            data.extend_from_slice(&random.value().to_le_bytes());
        }
        data
    }
}

/// Where a case ended and what it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Registers.
    pub gprs: [u64; 16],
    /// Address of the instruction that faulted (or after it, for traps).
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// XSAVE area, with components in their initial state filled in.
    pub xsave: Vec<u8>,
    /// Data pages.
    pub data: Vec<u8>,
    /// Exception vector.
    pub vector: u8,
    /// Its error code.
    pub error_code: u32,
    /// Page-fault address, else zero.
    pub cr2: u64,
}

/// The fixed-layout form that parent and child share.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub xsave: [u8; XSAVE_SIZE],
    pub gprs: [u64; 16],
    pub rflags: u64,
    pub rip: u64,
    pub vector: u64,
    pub error_code: u64,
    pub cr2: u64,
    pub code: [u8; CODE_MAX],
    pub data: [u8; DATA_SIZE],
}

impl Slot {
    pub(crate) fn load(&mut self, case: &Case) {
        self.xsave.copy_from_slice(&case.xsave[..XSAVE_SIZE]);
        self.gprs = case.gprs;
        self.rflags = case.rflags;
        self.code = [0xf4; CODE_MAX];
        self.code[..case.code.len()].copy_from_slice(&case.code);
        self.data.copy_from_slice(&case.data());
    }

    pub(crate) fn outcome(&self) -> Outcome {
        Outcome {
            gprs: self.gprs,
            rip: self.rip,
            rflags: self.rflags,
            xsave: self.xsave.to_vec(),
            data: self.data.to_vec(),
            vector: self.vector as u8,
            error_code: self.error_code as u32,
            cr2: if self.vector == 14 { self.cr2 } else { 0 },
        }
    }
}
