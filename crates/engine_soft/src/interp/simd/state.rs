//! [`VectorState`]: the SSE and AVX registers of one processor while it runs, and their place in a saved one.

use crate::cpu::Cpu;
use x86::XsaveArea;

/// Reset value of MXCSR.
pub const MXCSR_RESET: u32 = 0x1f80;
/// Bits of MXCSR that exist: everything below bit 16, with denormals-are-zeros.
pub const MXCSR_VALID: u32 = 0xffff;

/// SSE and AVX state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct VectorState {
    /// YMM0–15; the low half is the XMM register.
    pub ymm: [[u8; 32]; 16],
    /// SSE control and status.
    pub mxcsr: u32,
}

impl Default for VectorState {
    /// The state after reset.
    fn default() -> Self {
        VectorState { ymm: [[0; 32]; 16], mxcsr: MXCSR_RESET }
    }
}

/// Copies `N` bytes from `at`, zeros where `bytes` ends before.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    if let Some(source) = bytes.get(at..at + N) {
        value.copy_from_slice(source);
    }
    value
}

impl Cpu {
    /// Loads x87, SSE and AVX from a standard-format area as it stands: a component whose bit in XSTATE_BV
    /// is clear still has its bytes there, in the initial configuration (the form that KVM and
    /// [`Cpu::save_vector`] produce).
    pub fn load_vector(&mut self, area: &XsaveArea) {
        let bytes = &area.bytes;
        self.fpu.load(&field(bytes, 0), &field(bytes, 32));
        self.vector.mxcsr = u32::from_le_bytes(field(bytes, 24)) & MXCSR_VALID;
        for (index, register) in self.vector.ymm.iter_mut().enumerate() {
            register[..16].copy_from_slice(&field::<16>(bytes, 160 + 16 * index));
            register[16..].copy_from_slice(&field::<16>(bytes, XsaveArea::YMM_OFFSET + 16 * index));
        }
    }

    /// Stores x87, SSE and AVX into a standard-format area, and marks the components of XCR0 as in use.
    pub fn save_vector(&self, area: &mut XsaveArea) {
        if area.bytes.len() < XsaveArea::MIN_LEN {
            area.bytes.resize(XsaveArea::MIN_LEN, 0);
        }
        let bytes = &mut area.bytes;
        let (head, registers) = self.fpu.x87_bytes();
        bytes[..24].copy_from_slice(&head);
        bytes[24..28].copy_from_slice(&self.vector.mxcsr.to_le_bytes());
        bytes[28..32].copy_from_slice(&MXCSR_VALID.to_le_bytes());
        bytes[32..160].copy_from_slice(&registers);
        for (index, register) in self.vector.ymm.iter().enumerate() {
            bytes[160 + 16 * index..][..16].copy_from_slice(&register[..16]);
            bytes[XsaveArea::YMM_OFFSET + 16 * index..][..16].copy_from_slice(&register[16..]);
        }
        let in_use = self.xcr0 & 7 | 3;
        bytes[XsaveArea::HEADER_OFFSET..][..8].copy_from_slice(&in_use.to_le_bytes());
        bytes[XsaveArea::HEADER_OFFSET + 8..][..56].fill(0);
    }
}
