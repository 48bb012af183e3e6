//! Where RAM and windows lie in guest-physical address space.

use std::ops::Range;

/// PCI Express configuration windows, one MiB a bus.
pub const ECAM_BASE: u64 = 0xb000_0000;
/// Buses that the window covers.
pub const ECAM_BUSES: u16 = 1;
/// 32-bit BARs.
pub const MMIO32: Range<u64> = 0xc000_0000..0xfc00_0000;
/// 64-bit BARs.
pub const MMIO64: Range<u64> = 0x40_0000_0000..0x60_0000_0000;
/// Port BARs.
pub const PCI_PORTS: Range<u64> = 0xc000..0x1_0000;
/// RAM below four GiB ends here at the latest.
pub const LOW_RAM_END: u64 = ECAM_BASE;
/// RAM beyond continues here.
pub const HIGH_RAM_START: u64 = 1 << 32;
/// Physical address bits that the board needs.
pub const PHYSICAL_BITS: u32 = 40;

/// The (start, size) ranges of `size` bytes of RAM.
pub fn ram(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((HIGH_RAM_START, size - low));
    }
    ranges
}
