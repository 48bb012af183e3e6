//! Tables of big-endian numbers, and the pages of them that wait to be written.

use crate::backend::BlockBackend;
use std::io::Result;
use std::ops::Range;

/// Unit of writing blocks and tables back.
pub(super) const PAGE: usize = 4096;

/// Bytes on their way to an offset of the file.
pub(super) type Writes = Vec<(u64, Vec<u8>)>;

/// Calls `make` for each run of marked pages (as a range of bytes), and unmarks them.
pub(super) fn take_pages<T>(dirty: &mut [bool], mut make: impl FnMut(Range<usize>) -> T) -> Vec<T> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(start) = dirty.iter().skip(at).position(|page| *page).map(|page| page + at) {
        let end = dirty.iter().skip(start).position(|page| !page).map_or(dirty.len(), |len| start + len);
        dirty[start..end].fill(false);
        out.push(make(start * PAGE..end * PAGE));
        at = end;
    }
    out
}

/// Numbers of a table in the file. Its bytes are not held as a whole beside them.
pub(super) fn read_words(file: &dyn BlockBackend, offset: u64, count: usize) -> Result<Vec<u64>> {
    const PART: usize = 1 << 17;
    let mut words = Vec::with_capacity(count);
    let mut data = vec![0; count.min(PART) * 8];
    while words.len() < count {
        let part = data.get_mut(..(count - words.len()).min(PART) * 8).unwrap_or_default();
        file.read_bytes(offset + words.len() as u64 * 8, part)?;
        words.extend(part.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)));
    }
    Ok(words)
}

pub(super) fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect()
}

pub(super) fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
