//! The C library's functions that the rows call; the program is linked with it in any case.

use std::ffi::{c_char, c_int, c_long, c_void};

/// Page size of the processor.
pub const PAGE: usize = 4096;
/// `mmap`'s protection bits.
pub const READ: c_int = 1;
/// See [`READ`].
pub const WRITE: c_int = 2;
/// See [`READ`].
pub const EXECUTE: c_int = 4;

const PRIVATE_ANONYMOUS: c_int = 0x22;

unsafe extern "C" {
    pub fn fork() -> c_int;
    pub fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    pub fn execv(path: *const c_char, arguments: *const *const c_char) -> c_int;
    pub fn _exit(status: c_int) -> !;
    pub fn pipe(ends: *mut c_int) -> c_int;
    pub fn read(file: c_int, buffer: *mut c_void, count: usize) -> isize;
    pub fn write(file: c_int, buffer: *const c_void, count: usize) -> isize;
    pub fn close(file: c_int) -> c_int;
    pub fn syscall(number: c_long) -> c_long;
    pub fn munmap(address: *mut c_void, length: usize) -> c_int;
    pub fn mprotect(address: *mut c_void, length: usize, protection: c_int) -> c_int;
    fn mmap(
        at: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: c_long,
    ) -> *mut c_void;
}

/// Fresh private memory.
pub fn map(length: usize, protection: c_int) -> *mut u8 {
    // SAFETY: a new mapping harms nobody.
    let address = unsafe { mmap(std::ptr::null_mut(), length, protection, PRIVATE_ANONYMOUS, -1, 0) };
    assert!(address as isize != -1, "mmap failed");
    address.cast()
}
