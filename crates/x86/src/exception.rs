//! Exceptions and their vectors (SDM 3A 6.3, table 6-1).

use serde::{Deserialize, Serialize};

/// An exception vector that the processor itself raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Vector {
    /// #DE, divide error.
    Divide = 0,
    /// #DB, debug.
    Debug = 1,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// #BP, INT3.
    Breakpoint = 3,
    /// #OF, INTO.
    Overflow = 4,
    /// #BR, BOUND.
    Bound = 5,
    /// #UD, invalid opcode.
    InvalidOpcode = 6,
    /// #NM, no coprocessor.
    DeviceNotAvailable = 7,
    /// #DF, double fault.
    DoubleFault = 8,
    /// #TS, invalid TSS.
    InvalidTss = 10,
    /// #NP, segment not present.
    SegmentNotPresent = 11,
    /// #SS, stack fault.
    Stack = 12,
    /// #GP, general protection.
    GeneralProtection = 13,
    /// #PF, page fault.
    PageFault = 14,
    /// #MF, x87 error.
    X87 = 16,
    /// #AC, alignment check.
    Alignment = 17,
    /// #MC, machine check.
    MachineCheck = 18,
    /// #XM, SIMD floating point.
    Simd = 19,
}

impl Vector {
    /// Whether delivery pushes an error code.
    pub const fn has_error_code(self) -> bool {
        matches!(
            self,
            Vector::DoubleFault
                | Vector::InvalidTss
                | Vector::SegmentNotPresent
                | Vector::Stack
                | Vector::GeneralProtection
                | Vector::PageFault
                | Vector::Alignment
        )
    }
}

/// An exception with what its delivery needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Which one.
    pub vector: Vector,
    /// The error code, for vectors that push one.
    pub error_code: u32,
    /// CR2 for a page fault, the DR6 bits for a debug exception, otherwise zero.
    pub payload: u64,
}

impl Exception {
    /// An exception without error code.
    pub const fn plain(vector: Vector) -> Self {
        Exception { vector, error_code: 0, payload: 0 }
    }
    /// An exception with an error code.
    pub const fn with_code(vector: Vector, error_code: u32) -> Self {
        Exception { vector, error_code, payload: 0 }
    }
    /// `#GP(code)`.
    pub const fn gp(error_code: u32) -> Self {
        Self::with_code(Vector::GeneralProtection, error_code)
    }
    /// `#UD`.
    pub const fn ud() -> Self {
        Self::plain(Vector::InvalidOpcode)
    }
    /// `#PF(code)` at a linear address.
    pub const fn page_fault(error_code: u32, address: u64) -> Self {
        Exception { vector: Vector::PageFault, error_code, payload: address }
    }
}
