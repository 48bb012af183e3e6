//! The function's configuration space (virtio 4.1.2, 4.1.4).

use super::bits;
use crate::VirtioDevice;
use device::pci::{BarKind, ConfigSpace, PciIdentity};

const VENDOR_CAPABILITY: u8 = 0x09;
const MSIX_CAPABILITY: u8 = 0x11;
/// Structure types (virtio 4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;
const PCI_ACCESS: u8 = 5;

/// Where in configuration space the registers are that the transport looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// The MSI-X control word.
    pub msix_control: usize,
    /// The configuration access capability.
    pub access: usize,
}

fn capability(kind: u8, offset: u64, length: u64, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + extra.len() as u8, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(extra);
    body
}

/// The space after power-on, for `vectors` MSI-X vectors.
pub(super) fn config_space(device: &dyn VirtioDevice, vectors: usize) -> (ConfigSpace, Places) {
    let id = bits::DEVICE_BASE + device.id();
    let identity = PciIdentity {
        vendor: bits::VENDOR,
        device: id,
        subsystem_vendor: bits::VENDOR,
        subsystem: id,
        class: device.class(),
        revision: 1,
    };
    let mut space = ConfigSpace::new(identity, 1);
    space.add_bar(0, BarKind::Memory64, bits::BAR_SIZE);
    let multiplier = bits::NOTIFY_MULTIPLIER.to_le_bytes();
    let parts = [
        capability(COMMON, bits::COMMON, bits::common::LEN, &[]),
        capability(NOTIFY, bits::NOTIFY, 0x1000, &multiplier),
        capability(ISR, bits::ISR, 4, &[]),
        capability(DEVICE, bits::DEVICE, 0x1000, &[]),
    ];
    for part in parts {
        space.add_capability(VENDOR_CAPABILITY, &part, &[]);
    }
    // Configuration access: BAR, offset, length and data are writable (virtio 4.1.4.9).
    let mut writable = [0xff; 18];
    (writable[0], writable[1]) = (0, 0);
    writable[3..6].fill(0);
    let access = space.add_capability(VENDOR_CAPABILITY, &capability(PCI_ACCESS, 0, 0, &[0; 4]), &writable);
    let mut body = (vectors as u16).saturating_sub(1).to_le_bytes().to_vec();
    body.extend((bits::MSIX_TABLE as u32).to_le_bytes());
    body.extend((bits::MSIX_PENDING as u32).to_le_bytes());
    let msix = space.add_capability(MSIX_CAPABILITY, &body, &[0, 0xc0]);
    (space, Places { msix_control: msix + 2, access })
}
