//! Executable memory for [stubs](super::stub): one reservation, filled from the front, never freed.
//!
//! The pages are mapped twice from one memory file, once writable and once executable, so no page is ever
//! both. A stub becomes visible to another thread only through the lock of the stub table, after its bytes
//! were written, and bytes that may run are never changed.

#![expect(unsafe_code, reason = "maps executable memory")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes reserved. All stubs that exist (see the test of `stub`) need about half of it.
const CAPACITY: usize = 16 << 20;
/// Alignment of each piece of code.
const ALIGNMENT: usize = 16;

/// First address of executable bytes, for [`contains`]; zero before the arena exists.
static START: AtomicU64 = AtomicU64::new(0);

/// Whether an instruction pointer lies in a stub. Async-signal-safe.
pub(super) fn contains(address: u64) -> bool {
    let start = START.load(Ordering::Acquire);
    start != 0 && address.wrapping_sub(start) < CAPACITY as u64
}

/// The reservation.
pub(super) struct Arena {
    writable: *mut u8,
    executable: *const u8,
    used: usize,
}

// SAFETY: the mappings belong to the arena and live as long as the process.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves address space; memory is only taken as it is used. Call it once per process.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a NUL-terminated name and a valid flag.
        let file = unsafe { libc::memfd_create(c"vireo-simd-stubs".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = Self::map_both(file);
        // SAFETY: the descriptor is ours and not used afterwards; mappings outlive it.
        unsafe { libc::close(file) };
        let arena = mapped?;
        START.store(arena.executable as u64, Ordering::Release);
        Ok(arena)
    }

    fn map_both(file: libc::c_int) -> io::Result<Self> {
        // SAFETY: a descriptor that we own.
        if unsafe { libc::ftruncate(file, CAPACITY as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |protection| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            let at =
                unsafe { libc::mmap(std::ptr::null_mut(), CAPACITY, protection, libc::MAP_SHARED, file, 0) };
            if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast::<u8>()) }
        };
        let writable = map(libc::PROT_READ | libc::PROT_WRITE)?;
        let executable = map(libc::PROT_READ | libc::PROT_EXEC)?;
        Ok(Arena { writable, executable, used: 0 })
    }

    /// Copies code in and returns where it can be called, or `None` when the reservation is full.
    pub(super) fn add(&mut self, code: &[u8]) -> Option<*const u8> {
        let start = self.used;
        let end = start.checked_add(code.len())?.checked_next_multiple_of(ALIGNMENT)?;
        if end > CAPACITY {
            return None;
        }
        // SAFETY: `start + code.len() <= CAPACITY`, and nothing refers to bytes from `used` on.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(start), code.len()) };
        self.used = end;
        // SAFETY: inside the executable view of the same pages.
        Some(unsafe { self.executable.add(start) })
    }
}
