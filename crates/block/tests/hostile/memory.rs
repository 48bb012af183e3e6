//! A file, or a block device, in memory.
//!
//! It shows bytes that others share until they are written, and holds only pages that were written: a copy of a large
//! image costs nothing, and a file may be as sparse as on a file system.

use block::{BlockBackend, Capabilities, Extent};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Bytes that are written at most; then the file system is full.
pub const STORED_MAX: usize = 8 << 20;
/// Largest size: what a file system gives to a sparse file.
const SIZE_MAX: usize = 1 << 44;
const PAGE: usize = 4096;

struct State {
    size: usize,
    /// Pages that differ from what is shared; nothing: zeros.
    pages: BTreeMap<usize, Option<Box<[u8; PAGE]>>>,
    stored: usize,
}

pub struct Memory {
    shared: Arc<Vec<u8>>,
    state: Mutex<State>,
    /// It is a file: it grows, and reads as zeros behind its end.
    growable: bool,
}

impl Memory {
    pub fn new(bytes: impl Into<Arc<Vec<u8>>>, growable: bool) -> Arc<Self> {
        let shared = bytes.into();
        let state = State { size: shared.len(), pages: BTreeMap::new(), stored: 0 };
        Arc::new(Memory { shared, state: Mutex::new(state), growable })
    }

    /// Whether something was written there.
    pub fn differs(&self, range: Range<usize>) -> bool {
        let pages = range.start / PAGE..range.end.div_ceil(PAGE);
        self.state.lock().unwrap().pages.range(pages).next().is_some()
    }

    /// What is shared of a page.
    fn shared(&self, page: usize) -> &[u8] {
        let end = ((page + 1) * PAGE).min(self.shared.len());
        self.shared.get(page * PAGE..end).unwrap_or_default()
    }

    /// Makes a range read as zeros.
    fn zero(&self, state: &mut State, range: Range<usize>) -> Result<()> {
        let whole = range.start.div_ceil(PAGE)..range.end / PAGE;
        if whole.is_empty() {
            return self.put(state, range.start, &vec![0; range.len()]);
        }
        for (at, len) in [
            (range.start, whole.start * PAGE - range.start),
            (whole.end * PAGE, range.end - whole.end * PAGE),
        ] {
            // Nothing is to be written where nothing is.
            let page = at / PAGE;
            if len > 0 && (state.pages.contains_key(&page) || !self.shared(page).is_empty()) {
                self.put(state, at, &vec![0; len])?;
            }
        }
        for page in whole.start..whole.end.min(self.shared.len().div_ceil(PAGE)) {
            state.pages.entry(page).or_insert(None);
        }
        for (_, page) in state.pages.range_mut(whole) {
            state.stored -= if page.take().is_some() { PAGE } else { 0 };
        }
        Ok(())
    }

    fn put(&self, state: &mut State, mut at: usize, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (page, within) = (at / PAGE, at % PAGE);
            let (part, rest) = bytes.split_at(bytes.len().min(PAGE - within));
            let shared = !state.pages.contains_key(&page);
            let slot = state.pages.entry(page).or_insert(None);
            if slot.is_none() {
                if state.stored + PAGE > STORED_MAX {
                    return Err(ErrorKind::StorageFull.into());
                }
                state.stored += PAGE;
                let mut own = Box::new([0; PAGE]);
                if shared {
                    let old = self.shared(page);
                    own[..old.len()].copy_from_slice(old);
                }
                *slot = Some(own);
            }
            if let Some(page) = slot {
                page[within..within + part.len()].copy_from_slice(part);
            }
            at += part.len();
            bytes = rest;
        }
        Ok(())
    }

    /// The end of a change, if it can grow so far.
    fn end(&self, state: &State, offset: u64, len: usize) -> Result<Range<usize>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(len);
        match end {
            end if end <= state.size => Ok(start..end),
            _ if !self.growable => Err(ErrorKind::InvalidInput.into()),
            end if end <= SIZE_MAX => Ok(start..end),
            _ => Err(ErrorKind::FileTooLarge.into()),
        }
    }
}

impl BlockBackend for Memory {
    fn size(&self) -> u64 {
        self.state.lock().unwrap().size as u64
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: false, discard: true, zero_alignment: 512, growable: self.growable }
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let state = self.state.lock().unwrap();
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        for buffer in buffers {
            let stored = state.size.saturating_sub(at).min(buffer.len());
            if stored < buffer.len() && !self.growable {
                return Err(ErrorKind::InvalidInput.into());
            }
            let (mut part, rest) = buffer.split_at_mut(stored);
            rest.fill(0);
            while !part.is_empty() {
                let (page, within) = (at / PAGE, at % PAGE);
                let (now, rest) = part.split_at_mut(part.len().min(PAGE - within));
                let from = match state.pages.get(&page) {
                    Some(Some(own)) => &own[..],
                    Some(None) => &[],
                    None => self.shared(page),
                };
                let from = from.get(within..).unwrap_or_default();
                let len = from.len().min(now.len());
                now[..len].copy_from_slice(&from[..len]);
                now[len..].fill(0);
                at += now.len();
                part = rest;
            }
            at = at.saturating_add(rest.len());
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let mut at = offset;
        for buffer in buffers {
            let range = self.end(&state, at, buffer.len())?;
            self.put(&mut state, range.start, buffer)?;
            state.size = state.size.max(range.end);
            at += buffer.len() as u64;
        }
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let len = len.min(self.size().saturating_sub(offset));
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        // What is shared stays: a discard is a hint.
        let written = len > 0 && self.differs(start..start.saturating_add(len as usize));
        if written { self.write_zeroes(offset, len, true) } else { Ok(()) }
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let range = self.end(&state, offset, usize::try_from(len).unwrap_or(usize::MAX))?;
        state.size = state.size.max(range.end);
        self.zero(&mut state, range)
    }
    fn resize(&self, size: u64) -> Result<()> {
        if !self.growable {
            return Err(Error::from(ErrorKind::Unsupported));
        }
        let mut state = self.state.lock().unwrap();
        let size =
            usize::try_from(size).ok().filter(|size| *size <= SIZE_MAX).ok_or(ErrorKind::FileTooLarge)?;
        if size < state.size {
            let all = size..state.size.next_multiple_of(PAGE);
            self.zero(&mut state, all)?;
        }
        state.size = size;
        Ok(())
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent::data(offset, len, Some(offset)))
    }
}
