//! Parts of scattered buffers.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Deref;

/// Bytes of all buffers.
pub(crate) fn len<B: Deref<Target = [u8]>>(buffers: &[B]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

/// The buffers from byte `skip` on, `len` bytes of them.
pub(crate) fn part<'a>(buffers: &'a [IoSlice<'_>], skip: u64, len: u64) -> Vec<IoSlice<'a>> {
    let (mut skip, mut left) = (skip as usize, len as usize);
    let mut out = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        if left == 0 {
            break;
        }
        if skip >= buffer.len() {
            skip -= buffer.len();
            continue;
        }
        let take = left.min(buffer.len() - skip);
        out.push(IoSlice::new(&buffer[skip..skip + take]));
        (skip, left) = (0, left - take);
    }
    out
}

/// The same of buffers to be written to.
pub(crate) fn part_mut<'a>(buffers: &'a mut [IoSliceMut<'_>], skip: u64, len: u64) -> Vec<IoSliceMut<'a>> {
    let (mut skip, mut left) = (skip as usize, len as usize);
    let mut out = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        if left == 0 {
            break;
        }
        if skip >= buffer.len() {
            skip -= buffer.len();
            continue;
        }
        let take = left.min(buffer.len() - skip);
        out.push(IoSliceMut::new(&mut buffer[skip..skip + take]));
        (skip, left) = (0, left - take);
    }
    out
}
