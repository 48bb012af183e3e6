//! The memory map that the guest is told (e820, ACPI 6.5 table 15.4).

use crate::BoardLayout;
use crate::layout::{LOW_RAM_USED, TABLES_END, TABLES_START};
use guest_memory::GuestMemory;

/// What a range is for. The numbers are those of e820, PVH and multiboot alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// RAM the guest may use.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// What it is for.
    pub kind: RangeKind,
}

/// Describes all RAM, except the legacy hole and the tables in it, and ECAM.
pub fn build(memory: &GuestMemory, layout: &BoardLayout) -> Vec<MemoryRange> {
    let range = |start: u64, end: u64, kind| MemoryRange { start, size: end - start, kind };
    let mut map = vec![
        range(0, LOW_RAM_USED, RangeKind::Ram),
        range(LOW_RAM_USED, 0xa_0000, RangeKind::Reserved),
        range(TABLES_START, TABLES_END, RangeKind::Reserved),
    ];
    for region in memory.regions() {
        let (start, end) = (region.start().max(TABLES_END), region.start() + region.size());
        if start < end {
            map.push(range(start, end, RangeKind::Ram));
        }
    }
    let ecam = &layout.pci;
    let ecam_end = ecam.ecam_base.saturating_add(u64::from(ecam.ecam_buses) << 20);
    if ecam_end > ecam.ecam_base {
        map.push(range(ecam.ecam_base, ecam_end, RangeKind::Reserved));
    }
    map.sort_by_key(|range| range.start);
    map
}
