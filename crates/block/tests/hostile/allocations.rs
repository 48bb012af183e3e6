//! An allocator that ends the process when something allocates more than a hostile header may make it allocate.
//!
//! The bound holds for one allocation, and for all that a thread has since [`begin`]. Images in these tests are opened with
//! [`block::luks::KeyLimits`] that keep key derivation below it: Argon2 of a passphrase that a person gives takes what
//! the header says, up to 1 GiB, as `cryptsetup` does.
#![expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait; calls are passed on to the system's allocator"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::io::{Write, stderr};

/// Bytes.
pub const MAX: usize = 64 << 20;

pub struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// Bytes allocated since the beginning; negative when older ones were freed.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

/// Forgets what the thread has now.
pub fn begin() {
    LIVE.set(0);
}

fn took(bytes: usize) {
    let live = LIVE.try_with(|live| live.replace(live.get() + bytes as isize) + bytes as isize);
    let live = live.unwrap_or(0);
    if bytes > MAX || live > MAX as isize {
        // What follows allocates as well.
        LIVE.set(isize::MIN / 2);
        // Not eprintln!: a test's output is shown when it ends, and this one does not.
        let trace = Backtrace::force_capture();
        let _ = writeln!(stderr(), "Allocated {bytes} bytes, {live} in all: more than {MAX}\n{trace}");
        std::process::abort();
    }
}

fn gave(bytes: usize) {
    let _ = LIVE.try_with(|live| live.set(live.get() - bytes as isize));
}

// SAFETY: Everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: The caller keeps the rules.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: The caller keeps the rules.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        gave(layout.size());
        took(size);
        // SAFETY: The caller keeps the rules.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: The caller keeps the rules.
        unsafe { System.dealloc(pointer, layout) }
    }
}
