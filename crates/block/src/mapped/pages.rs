//! The parts of a table that are in memory.

use super::DirtyPage;
use crate::backend::BlockBackend;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::io::Result;

/// Bytes of clean and dirty pages that are kept.
const BYTES_MAX: usize = 16 << 20;

struct Page {
    bytes: Vec<u8>,
    /// Number of the change that made it differ from the file; 0 when it does not.
    version: u64,
}

#[derive(Default)]
struct State {
    pages: HashMap<u64, Page>,
    /// Where those are that differ.
    dirty: BTreeSet<u64>,
    changes: u64,
    /// How often pages were written to the file.
    writes: u64,
}

/// A cache of table pages by their place in the file.
pub(crate) struct Pages {
    page: usize,
    state: Mutex<State>,
}

impl Pages {
    /// For pages of `page` bytes.
    pub fn new(page: usize) -> Self {
        Pages { page, state: Mutex::default() }
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u64 {
        self.page as u64
    }

    /// Shows `look` the page's bytes from `offset` on. The file's end counts as zeros.
    pub fn with<T>(&self, file: &dyn BlockBackend, offset: u64, look: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let start = offset - offset % self.page as u64;
        let within = (offset - start) as usize;
        loop {
            let writes = {
                let state = self.state.lock();
                if let Some(page) = state.pages.get(&start) {
                    return Ok(look(page.bytes.get(within..).unwrap_or_default()));
                }
                state.writes
            };
            // The lock is not held while the file is read. Had the page been loaded, changed, written and dropped
            // meanwhile, then what was read would be old.
            let mut bytes = vec![0; self.page];
            let stored = file.size().saturating_sub(start).min(self.page as u64) as usize;
            if let Some(stored) = bytes.get_mut(..stored) {
                file.read_bytes(start, stored)?;
            }
            let mut state = self.state.lock();
            if state.writes == writes {
                self.make_room(&mut state);
                state.pages.entry(start).or_insert(Page { bytes, version: 0 });
            }
        }
    }

    /// `N` bytes at `offset`, which are within one page.
    pub fn read<const N: usize>(&self, file: &dyn BlockBackend, offset: u64) -> Result<[u8; N]> {
        self.with(file, offset, |bytes| {
            bytes.get(..N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
        })
    }

    /// Changes the bytes of a page from `offset` on.
    pub fn change(&self, file: &dyn BlockBackend, offset: u64, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let start = offset - offset % self.page as u64;
        let mut change = Some(change);
        loop {
            self.with(file, start, |_| ())?;
            let mut state = self.state.lock();
            let state = &mut *state;
            let Some(page) = state.pages.get_mut(&start) else { continue };
            state.changes += 1;
            state.dirty.insert(start);
            page.version = state.changes;
            if let (Some(change), Some(bytes)) =
                (change.take(), page.bytes.get_mut((offset - start) as usize..))
            {
                change(bytes);
            }
            return Ok(());
        }
    }

    /// Writes bytes that are within one page.
    pub fn write(&self, file: &dyn BlockBackend, offset: u64, new: &[u8]) -> Result<()> {
        self.change(file, offset, |bytes| super::put(bytes, 0, new))
    }

    /// Copies of all changed pages, in the file's order.
    pub fn dirty(&self) -> Vec<DirtyPage> {
        let state = self.state.lock();
        let pages = state.dirty.iter().filter_map(|offset| Some((*offset, state.pages.get(offset)?)));
        pages
            .map(|(offset, page)| DirtyPage { offset, bytes: page.bytes.clone(), version: page.version })
            .collect()
    }

    /// Notes that the pages are in the file; those changed since stay dirty.
    pub fn written(&self, written: &[DirtyPage]) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.writes += 1;
        for done in written {
            if let Some(page) = state.pages.get_mut(&done.offset)
                && page.version == done.version
            {
                page.version = 0;
                state.dirty.remove(&done.offset);
            }
        }
    }

    /// Whether the changed pages take so much memory that they should be written.
    pub fn is_full(&self) -> bool {
        self.state.lock().dirty.len() * self.page > BYTES_MAX / 2
    }

    /// Forgets everything that is in the file.
    pub fn forget_clean(&self) {
        let mut state = self.state.lock();
        state.writes += 1;
        state.pages.retain(|_, page| page.version != 0);
    }

    fn make_room(&self, state: &mut State) {
        if (state.pages.len() + 1) * self.page > BYTES_MAX {
            let mut drop = state.pages.len() / 4;
            state.pages.retain(|_, page| {
                let keep = page.version != 0 || drop == 0;
                drop -= usize::from(!keep);
                keep
            });
        }
    }
}
