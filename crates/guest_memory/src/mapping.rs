//! Regions and access.
#![expect(unsafe_code, reason = "maps guest RAM and copies to and from it by raw pointer")]

use crate::{PAGE_SIZE, PageTracker};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use thiserror::Error;

/// What can go wrong with guest RAM.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host gives no memory.
    #[error("The host cannot provide {size} bytes of guest memory")]
    Allocate {
        /// Bytes asked for.
        size: u64,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A region is empty, not page-aligned, overlaps another, or wraps the address space.
    #[error("Guest memory region {start:#x}+{size:#x} is empty, not page-aligned or overlaps another")]
    Layout {
        /// Guest-physical start.
        start: u64,
        /// Size in bytes.
        size: u64,
    },
    /// An access leaves RAM.
    #[error("Guest-physical range {address:#x}+{len:#x} is not RAM")]
    OutOfRange {
        /// First guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// One contiguous piece of guest RAM.
#[derive(Debug)]
pub struct Region {
    start: u64,
    size: u64,
    host: NonNull<u8>,
    memfd: OwnedFd,
    tracker: PageTracker,
}

// SAFETY: the mapping is shared memory, reached only through volatile or atomic accesses; the pointer stays
// valid until the region is dropped.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new(start: u64, size: u64) -> Result<Self, MemoryError> {
        let aligned = |value: u64| value.is_multiple_of(PAGE_SIZE);
        if size == 0 || !aligned(start) || !aligned(size) || start.checked_add(size).is_none() {
            return Err(MemoryError::Layout { start, size });
        }
        let (memfd, host) = map_memfd(size).map_err(|source| MemoryError::Allocate { size, source })?;
        Ok(Region { start, size, host, memfd, tracker: PageTracker::new((size / PAGE_SIZE) as usize) })
    }

    /// First guest-physical address.
    pub fn start(&self) -> u64 {
        self.start
    }
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
    /// Host address of the region's first byte; valid while the region lives.
    pub fn host_address(&self) -> *mut u8 {
        self.host.as_ptr()
    }
    /// The file behind the region.
    pub fn memfd(&self) -> &OwnedFd {
        &self.memfd
    }
    /// Page flags of this region; page 0 is at [`Region::start`].
    pub fn tracker(&self) -> &PageTracker {
        &self.tracker
    }
    fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.size
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map_memfd` with this size and nobody outlives the region.
        unsafe { libc::munmap(self.host.as_ptr().cast(), self.size as usize) };
    }
}

fn map_memfd(size: u64) -> std::io::Result<(OwnedFd, NonNull<u8>)> {
    const NAME: &CStr = c"vireo-guest-memory";
    let length = usize::try_from(size).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    // SAFETY: a plain system call with a valid C string.
    let fd = unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor is fresh and owned by nobody else.
    let memfd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain system calls on our own descriptor; the mapping is placed by the kernel.
    let address = unsafe {
        if libc::ftruncate(memfd.as_raw_fd(), size as libc::off_t) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            memfd.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    let host = NonNull::new(address.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
    Ok((memfd, host))
}

const CMD_GLOBAL: libc::c_int = 1 << 0;
const CMD_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const CMD_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// `membarrier(2)`; whether the kernel did it.
fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: membarrier takes numbers only.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Tells the kernel that this process will run guests on the software CPU, which needs fences in all threads at once;
/// whether it grants the fast ones (`membarrier(2)`). Called by itself when the first is needed; but a process that
/// has other threads by then waits for a grace period of RCU, some 10 ms, and one that has none does not.
pub fn announce_barriers() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(CMD_REGISTER_PRIVATE_EXPEDITED))
}

/// Makes every running thread of this process pass a full memory fence.
pub(crate) fn process_wide_barrier() {
    fence(Ordering::SeqCst);
    // Kernels before 4.14 know only the slow global form.
    let _ = announce_barriers() && membarrier(CMD_PRIVATE_EXPEDITED) || membarrier(CMD_GLOBAL);
    fence(Ordering::SeqCst);
}

/// All RAM of one machine.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

impl GuestMemory {
    /// Maps the given (start, size) ranges, in bytes, multiples of the page size, in any order.
    pub fn new(ranges: &[(u64, u64)]) -> Result<Self, MemoryError> {
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        for pair in sorted.windows(2) {
            let ((start, size), (next, next_size)) = (pair[0], pair[1]);
            if start.checked_add(size).is_none_or(|end| end > next) {
                return Err(MemoryError::Layout { start: next, size: next_size });
            }
        }
        let regions = sorted.into_iter().map(|(start, size)| Region::new(start, size));
        Ok(GuestMemory { regions: regions.collect::<Result<_, _>>()? })
    }

    /// The regions, by address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Total RAM in bytes.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(Region::size).sum()
    }

    /// The region that holds an address.
    pub fn find(&self, address: u64) -> Option<&Region> {
        self.regions.iter().find(|region| region.contains(address))
    }

    /// Host pointer to `len` bytes that lie in one region.
    pub fn host_range(&self, address: u64, len: u64) -> Result<*mut u8, MemoryError> {
        let out = MemoryError::OutOfRange { address, len };
        let Some(region) = self.find(address) else { return Err(out) };
        let offset = address - region.start;
        if len > region.size - offset {
            return Err(out);
        }
        // SAFETY: the offset lies inside the mapping.
        Ok(unsafe { region.host.as_ptr().add(offset as usize) })
    }

    /// Copies guest RAM to `buffer`.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let source = self.host_range(address, buffer.len() as u64)?;
        // SAFETY: the source range is mapped; the destination is ours. The guest may write meanwhile: the
        // bytes are then a mixture, which every caller must expect.
        unsafe { std::ptr::copy_nonoverlapping(source, buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }

    /// Copies `buffer` to guest RAM and tells the trackers.
    pub fn write(&self, address: u64, buffer: &[u8]) -> Result<(), MemoryError> {
        let target = self.host_range(address, buffer.len() as u64)?;
        // SAFETY: the target range is mapped; the source is ours.
        unsafe { std::ptr::copy_nonoverlapping(buffer.as_ptr(), target, buffer.len()) };
        self.note_write(address, buffer.len() as u64);
        Ok(())
    }

    /// Tells the trackers of a write made through a raw pointer. Returns whether decoded code became stale.
    pub fn note_write(&self, address: u64, len: u64) -> bool {
        let Some(region) = self.find(address).filter(|_| len != 0) else { return false };
        let first = (address - region.start) / PAGE_SIZE;
        let last = (address - region.start).saturating_add(len - 1) / PAGE_SIZE;
        let mut stale = false;
        for page in first..=last {
            let page = page as usize;
            if region.tracker.flag_byte(page).is_some_and(|flags| flags.load(Ordering::Relaxed) != 0) {
                stale |= region.tracker.note_write(page);
            }
        }
        stale
    }

    /// An aligned 16-bit cell, for ring indices.
    pub fn atomic_u16(&self, address: u64) -> Result<&AtomicU16, MemoryError> {
        let cell = self.aligned(address, 2)?;
        // SAFETY: mapped, aligned, and shared memory is only accessed atomically or by volatile copies.
        Ok(unsafe { AtomicU16::from_ptr(cell.cast()) })
    }

    /// An aligned 32-bit cell.
    pub fn atomic_u32(&self, address: u64) -> Result<&AtomicU32, MemoryError> {
        let cell = self.aligned(address, 4)?;
        // SAFETY: as in `atomic_u16`.
        Ok(unsafe { AtomicU32::from_ptr(cell.cast()) })
    }

    /// An aligned 64-bit cell, for page-table entries.
    pub fn atomic_u64(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        let cell = self.aligned(address, 8)?;
        // SAFETY: as in `atomic_u16`.
        Ok(unsafe { AtomicU64::from_ptr(cell.cast()) })
    }

    fn aligned(&self, address: u64, len: u64) -> Result<*mut u8, MemoryError> {
        if !address.is_multiple_of(len) {
            return Err(MemoryError::OutOfRange { address, len });
        }
        self.host_range(address, len)
    }

    /// Turns the dirty log of all regions on or off.
    pub fn set_logging(&self, on: bool) {
        self.regions.iter().for_each(|region| region.tracker.set_logging(on));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_stay_inside_ram() {
        let memory = GuestMemory::new(&[(0x10_0000, 0x2000), (0, 0x1000)]).unwrap();
        memory.write(0x10_1ffc, &[1, 2, 3, 4]).unwrap();
        let mut back = [0; 4];
        memory.read(0x10_1ffc, &mut back).unwrap();
        assert_eq!(back, [1, 2, 3, 4]);
        for (address, len) in [(0x10_1ffd, 4), (0xffe, 4), (0x2000, 1), (u64::MAX, 2)] {
            assert!(memory.read(address, &mut vec![0; len]).is_err(), "{address:#x}");
        }
        assert!(memory.atomic_u32(0x10_0002).is_err());
    }

    /// What the host has given this process, in bytes.
    fn resident() -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * PAGE_SIZE
    }

    #[test]
    fn a_machine_of_64_gib_takes_only_what_it_touches() {
        const HOLE: u64 = 0xb000_0000;
        const HIGH: u64 = 1 << 32;
        let before = resident();
        let memory = GuestMemory::new(&[(0, HOLE), (HIGH, (64 << 30) - HOLE)]).unwrap();
        assert_eq!(memory.size(), 64 << 30);
        let last = HIGH + (64 << 30) - HOLE - 8;
        for address in [0, HOLE - 8, HIGH, last] {
            memory.write(address, &address.to_le_bytes()).unwrap();
            let mut back = [0; 8];
            memory.read(address, &mut back).unwrap();
            assert_eq!(u64::from_le_bytes(back), address);
        }
        for address in [HOLE - 4, HOLE, HIGH - 4, last + 4, last + 8] {
            assert!(memory.read(address, &mut [0; 8]).is_err(), "{address:#x}");
        }
        let took = resident().saturating_sub(before);
        assert!(took < 8 << 20, "{took} bytes for four pages");
    }

    #[test]
    fn the_dirty_log_has_every_page_that_a_write_touches_and_no_other() {
        let memory = GuestMemory::new(&[(0, 0x40_0000), (1 << 32, 0x20_0000)]).unwrap();
        memory.set_logging(true);
        let dirty = |region: usize| {
            let words = memory.regions()[region].tracker().take_dirty();
            let pages = words.iter().enumerate().flat_map(|(word, bits)| {
                (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| word * 64 + bit)
            });
            pages.collect::<Vec<_>>()
        };
        // Across three pages, to the last byte of a region, the first of the next, nothing at all.
        memory.write(0x1_0fff, &[1; 0x1002]).unwrap();
        memory.write(0x3f_ffff, &[1]).unwrap();
        memory.write(1 << 32, &[1]).unwrap();
        memory.write(0x2_0000, &[]).unwrap();
        assert_eq!(dirty(0), [0x10, 0x11, 0x12, 0x3ff]);
        assert_eq!(dirty(1), [0]);
        assert_eq!((dirty(0), dirty(1)), (vec![], vec![]));
        assert!(memory.write(0x3f_ffff, &[1; 2]).is_err());
        assert_eq!(dirty(0), [] as [usize; 0], "a refused write changes nothing");
    }

    #[test]
    fn overlapping_and_odd_layouts_are_refused() {
        for ranges in [vec![(0, 0x2000), (0x1000, 0x1000)], vec![(0, 3)], vec![(0, 0)]] {
            assert!(GuestMemory::new(&ranges).is_err(), "{ranges:?}");
        }
    }

    #[test]
    fn device_writes_make_code_stale() {
        let memory = GuestMemory::new(&[(0, 0x3000)]).unwrap();
        let tracker = memory.regions()[0].tracker();
        let generation = tracker.mark_code(1).unwrap();
        memory.write(0xffe, &[0; 4]).unwrap();
        assert_ne!(tracker.generation(1).unwrap().load(Ordering::SeqCst), generation);
    }
}
