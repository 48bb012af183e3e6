//! The XSAVE area.
//!
//! KVM's area is 4 KiB, as long as nobody asks the kernel for AMX tiles on behalf of guests, and this engine does
//! not. Both sides use the standard format; what differs is how components in their initial state are told.
//! The kernel drops MXCSR together with an SSE state that is marked initial, so both directions pass through
//! [`canonical`].
#![expect(unsafe_code, reason = "the binding for KVM_SET_XSAVE is unsafe because larger areas exist")]

use super::invalid;
use engine::EngineError;
use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;
use x86::XsaveArea;

/// Size of KVM's area.
const KVM_LEN: usize = 4096;
const HEADER: usize = XsaveArea::HEADER_OFFSET;
const HEADER_END: usize = HEADER + 64;
/// FSAVE-era pieces of the legacy area: x87 from 0 (without MXCSR), XMM from 160 to 416.
const MXCSR: std::ops::Range<usize> = 24..32;
const ST: std::ops::Range<usize> = 32..160;
const XMM: std::ops::Range<usize> = 160..416;
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;

/// The one form of an area among those that mean the same: x87 and SSE always spelled out, other
/// components only when they are not in their initial state, unused bytes zero.
pub fn canonical(area: &XsaveArea) -> XsaveArea {
    let mut bytes = area.bytes.clone();
    bytes.resize(bytes.len().max(XsaveArea::MIN_LEN), 0);
    let mut present = xstate_bv(&bytes);
    if present & X87 == 0 {
        bytes[..MXCSR.start].fill(0);
        bytes[ST].fill(0);
        bytes[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    }
    if present & SSE == 0 {
        bytes[XMM].fill(0);
    }
    // Reserved, then available to software, then the compaction part of the header.
    bytes[XMM.end..HEADER].fill(0);
    bytes[HEADER + 8..HEADER_END].fill(0);
    let ymm = XsaveArea::YMM_OFFSET..XsaveArea::YMM_OFFSET + 256;
    if present & AVX == 0 {
        bytes[ymm.clone()].fill(0);
    }
    if bytes[ymm].iter().all(|byte| *byte == 0) {
        present &= !AVX;
    }
    present |= X87 | SSE;
    if present & !(X87 | SSE | AVX) == 0 {
        bytes.truncate(XsaveArea::MIN_LEN);
    }
    bytes[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
    XsaveArea { bytes }
}

fn xstate_bv(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[HEADER..HEADER + 8]);
    u64::from_le_bytes(word)
}

pub(super) fn from_kvm(xsave: &kvm_xsave) -> XsaveArea {
    let bytes: Vec<u8> = xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect();
    canonical(&XsaveArea { bytes })
}

pub(super) fn to_kvm(area: &XsaveArea) -> Result<kvm_xsave, EngineError> {
    let area = canonical(area);
    if area.bytes.len() > KVM_LEN {
        let reason = format!("the XSAVE area has {} bytes, KVM's {KVM_LEN}", area.bytes.len());
        return Err(EngineError::InvalidState { reason });
    }
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(area.bytes.chunks(4)) {
        let mut whole = [0; 4];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_le_bytes(whole);
    }
    Ok(xsave)
}

pub(super) fn load(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), EngineError> {
    // SAFETY: the kernel reads more than the structure only for components that this process never enables.
    unsafe { fd.set_xsave(xsave) }.map_err(invalid("XSAVE area"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_state_keeps_its_mxcsr() {
        let area = canonical(&XsaveArea::default());
        assert_eq!(&area.bytes[24..28], &0x1f80_u32.to_le_bytes());
        assert_eq!(&area.bytes[..2], &0x37f_u16.to_le_bytes());
        assert_eq!(xstate_bv(&area.bytes), X87 | SSE);
        assert_eq!(canonical(&area), area);
    }

    #[test]
    fn components_marked_initial_lose_their_stale_bytes() {
        let mut area = XsaveArea::default();
        area.bytes[XMM.start] = 7;
        area.bytes[XsaveArea::YMM_OFFSET] = 7;
        let initial = canonical(&area);
        assert_eq!((initial.bytes[XMM.start], initial.bytes[XsaveArea::YMM_OFFSET]), (0, 0));
        area.bytes[HEADER] = 7;
        let used = canonical(&area);
        assert_eq!((used.bytes[XMM.start], used.bytes[XsaveArea::YMM_OFFSET]), (7, 7));
    }
}
