//! Memory for translated code: one reservation, filled from the front, emptied as a whole.
//!
//! The pages are mapped twice from one memory file: a writable view and an executable one. No page is ever
//! both through one mapping, and only the executable view's addresses are in anything that runs.
#![expect(unsafe_code, reason = "maps executable memory and writes code")]

use std::io;

/// Alignment of each piece of code.
const ALIGNMENT: usize = 16;

/// Bytes written before the writable view's pages are given back.
const WRITTEN: usize = 1 << 20;

/// The reservation.
pub(super) struct CodeMemory {
    writable: *mut u8,
    executable: *const u8,
    capacity: usize,
    used: usize,
    /// Bytes at the front that stay when the rest is emptied.
    kept: usize,
}

impl CodeMemory {
    /// Reserves `capacity` bytes of address space; memory is only taken as it is used.
    pub fn new(capacity: usize) -> io::Result<Self> {
        // SAFETY: a NUL-terminated name and a valid flag.
        let file = unsafe { libc::memfd_create(c"vireo-translations".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = Self::map_both(file, capacity);
        // SAFETY: the descriptor is ours and not used afterwards; mappings outlive it.
        unsafe { libc::close(file) };
        mapped
    }

    fn map_both(file: libc::c_int, capacity: usize) -> io::Result<Self> {
        // SAFETY: a descriptor that we own.
        if unsafe { libc::ftruncate(file, capacity as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |protection| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            let at =
                unsafe { libc::mmap(std::ptr::null_mut(), capacity, protection, libc::MAP_SHARED, file, 0) };
            if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast::<u8>()) }
        };
        let writable = map(libc::PROT_READ | libc::PROT_WRITE)?;
        let executable = map(libc::PROT_READ | libc::PROT_EXEC).inspect_err(|_| {
            // SAFETY: the mapping made above, which nothing refers to.
            unsafe { libc::munmap(writable.cast(), capacity) };
        })?;
        Ok(CodeMemory { writable, executable, capacity, used: 0, kept: 0 })
    }

    /// Where the executable view starts.
    pub fn start(&self) -> u64 {
        self.executable as u64
    }

    /// Where the next piece of code will run.
    pub fn next_address(&self) -> u64 {
        self.executable as u64 + self.used as u64
    }

    /// Copies code to [`CodeMemory::next_address`]; `false` when the reservation is full.
    #[must_use]
    pub fn add(&mut self, code: &[u8]) -> bool {
        let Some(end) = self.used.checked_add(code.len()) else { return false };
        let end = end.next_multiple_of(ALIGNMENT);
        if end > self.capacity {
            return false;
        }
        // SAFETY: `used + code.len() <= capacity`, and nothing runs bytes from `used` on.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(self.used), code.len()) };
        if self.used / WRITTEN != end / WRITTEN {
            self.release_view();
        }
        self.used = end;
        true
    }

    /// Takes the pages of the writable view out of the process: what is written is rarely written again, and
    /// each page that both views hold counts twice.
    fn release_view(&mut self) {
        // SAFETY: our mapping, of a file whose contents stay; it is read back at the next touch.
        unsafe { libc::madvise(self.writable.cast(), self.capacity, libc::MADV_DONTNEED) };
    }

    /// Keeps what is there now when the rest is emptied.
    pub fn keep(&mut self) {
        self.kept = self.used;
    }

    /// Empties the reservation but for what is kept. The caller makes sure that nothing runs or will run.
    pub fn clear(&mut self) {
        self.used = self.kept;
    }

    /// Changes the 32-bit displacement `at` bytes from the start to lead to `target`, which is counted from there, too.
    /// The processor that runs the code is the caller's.
    pub fn link(&mut self, at: u32, target: u32) {
        let offset = at as usize;
        if offset > self.used.saturating_sub(4) {
            return;
        }
        let displacement = target.wrapping_sub(at.wrapping_add(4));
        // SAFETY: four bytes below `used`.
        unsafe { self.writable.add(offset).cast::<u32>().write_unaligned(displacement) };
    }

    /// Makes the `jb` whose 32-bit displacement is `at` bytes from the start jump always. The processor that runs the code is
    /// the caller's.
    pub fn always_jump(&mut self, at: u32) {
        const NOP_AND_JMP: [u8; 2] = [0x90, 0xe9];
        let Some(opcode) = (at as usize).checked_sub(2).filter(|opcode| opcode + 6 <= self.used) else {
            return;
        };
        // SAFETY: two bytes below `used`, the opcode of a jump whose displacement counts from the same end.
        unsafe { self.writable.add(opcode).cast::<[u8; 2]>().write(NOP_AND_JMP) };
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Whether the next block might not fit.
    pub fn is_almost_full(&self) -> bool {
        self.used + (128 << 10) > self.capacity
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: both mappings are ours, and code only runs while a `&mut` to the owner exists.
        unsafe {
            libc::munmap(self.writable.cast(), self.capacity);
            libc::munmap(self.executable.cast_mut().cast(), self.capacity);
        }
    }
}
