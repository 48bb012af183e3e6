//! Who wants to know of writes to which page.
//!
//! # The race between a writer and a decoder
//! A decoder marks the page (`CODE`), then reads instructions from it. A writer writes, then reads the mark.
//! x86 lets the writer's load pass its own store, so both could miss each other. The decoder therefore
//! runs `membarrier` between marking and reading, which makes every thread of the process pass a full
//! fence: either the decoder sees the new bytes, or the writer sees the mark. Writers pay one load.
//!
//! # Invariant
//! A page's generation changes after its bytes changed under a `CODE` mark. Decoded instructions whose
//! generation is current were decoded from current bytes.

#![expect(unsafe_code, reason = "turns boxes of zeros into boxes of atomic zeros")]

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// A software CPU holds instructions decoded from this page.
pub const CODE: u8 = 1 << 0;
/// The dirty log wants writes to this page.
pub const LOG: u8 = 1 << 1;

/// Flags, generation and dirty bit of each page of one region.
#[derive(Debug)]
pub struct PageTracker {
    flags: Box<[AtomicU8]>,
    generations: Box<[AtomicU32]>,
    dirty: Box<[AtomicU64]>,
    logging: AtomicBool,
}

/// Zeros that take host memory only where they are touched: a machine of 64 GiB has millions of pages.
macro_rules! zeroed {
    ($count:expr, $plain:ty, $atomic:ty) => {{
        let zeros: Box<[$plain]> = vec![0; $count].into_boxed_slice();
        // SAFETY: an atomic integer has the size and the bit validity of the plain one; the assertion below
        // makes sure of the alignment, with which the allocation is freed.
        unsafe { Box::from_raw(Box::into_raw(zeros) as *mut [$atomic]) }
    }};
}

const _: () = assert!(
    align_of::<u8>() == align_of::<AtomicU8>()
        && align_of::<u32>() == align_of::<AtomicU32>()
        && align_of::<u64>() == align_of::<AtomicU64>()
);

impl PageTracker {
    /// A tracker for `pages` pages, nothing marked.
    pub fn new(pages: usize) -> Self {
        PageTracker {
            flags: zeroed!(pages, u8, AtomicU8),
            generations: zeroed!(pages, u32, AtomicU32),
            dirty: zeroed!(pages.div_ceil(64), u64, AtomicU64),
            logging: AtomicBool::new(false),
        }
    }

    /// Address of the flag byte of a page, for a TLB entry. Valid as long as the tracker.
    pub fn flag_byte(&self, page: usize) -> Option<&AtomicU8> {
        self.flags.get(page)
    }

    /// Address of the generation counter of a page. Valid as long as the tracker.
    pub fn generation(&self, page: usize) -> Option<&AtomicU32> {
        self.generations.get(page)
    }

    /// Marks a page as decoded from and returns its generation. After the return, bytes read from the page
    /// belong to that generation or a later one.
    pub fn mark_code(&self, page: usize) -> Option<u32> {
        let flags = self.flags.get(page)?;
        if flags.fetch_or(CODE, Ordering::SeqCst) & CODE == 0 {
            crate::mapping::process_wide_barrier();
        }
        Some(self.generations[page].load(Ordering::SeqCst))
    }

    /// To be called after a write when the page's flag byte is not zero. Returns whether decoded
    /// instructions became stale.
    pub fn note_write(&self, page: usize) -> bool {
        let Some(flags) = self.flags.get(page) else { return false };
        let seen = flags.load(Ordering::SeqCst);
        if seen & LOG != 0 {
            self.dirty[page / 64].fetch_or(1 << (page % 64), Ordering::SeqCst);
            flags.fetch_and(!LOG, Ordering::SeqCst);
        }
        if seen & CODE != 0 {
            flags.fetch_and(!CODE, Ordering::SeqCst);
            self.generations[page].fetch_add(1, Ordering::SeqCst);
        }
        seen & CODE != 0
    }

    /// Turns the dirty log on (all pages clean) or off.
    pub fn set_logging(&self, on: bool) {
        self.logging.store(on, Ordering::SeqCst);
        for word in &self.dirty {
            word.store(0, Ordering::SeqCst);
        }
        for flags in &self.flags {
            if on {
                flags.fetch_or(LOG, Ordering::SeqCst);
            } else {
                flags.fetch_and(!LOG, Ordering::SeqCst);
            }
        }
        fence(Ordering::SeqCst);
    }

    /// Takes the dirty bitmap, 64 pages a word, and starts the next round.
    pub fn take_dirty(&self) -> Vec<u64> {
        let words: Vec<u64> = self
            .dirty
            .iter()
            .enumerate()
            .map(|(index, word)| {
                let taken = word.swap(0, Ordering::SeqCst);
                self.rearm(index, taken);
                taken
            })
            .collect();
        // A write whose look at the flag byte came before the re-arming is in the bytes its taker copies next.
        crate::mapping::process_wide_barrier();
        words
    }

    fn rearm(&self, word: usize, taken: u64) {
        if !self.logging.load(Ordering::SeqCst) {
            return;
        }
        for bit in (0..64).filter(|bit| taken & (1 << bit) != 0) {
            if let Some(flags) = self.flags.get(word * 64 + bit) {
                flags.fetch_or(LOG, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_makes_decoded_code_stale_once() {
        let tracker = PageTracker::new(130);
        assert_eq!(tracker.mark_code(129), Some(0));
        assert!(tracker.note_write(129));
        assert!(!tracker.note_write(129));
        assert_eq!(tracker.mark_code(129), Some(1));
        assert_eq!(tracker.mark_code(130), None);
    }

    #[test]
    fn the_log_reports_each_written_page_once_a_round() {
        let tracker = PageTracker::new(130);
        tracker.note_write(3);
        tracker.set_logging(true);
        tracker.note_write(64);
        tracker.note_write(64);
        assert_eq!(tracker.take_dirty(), [0, 1, 0]);
        assert_eq!(tracker.take_dirty(), [0, 0, 0]);
        tracker.note_write(64);
        assert_eq!(tracker.take_dirty(), [0, 1, 0]);
    }
}
