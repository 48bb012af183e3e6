//! Parts of vectored buffers, taken from front to back.

use std::io::{IoSlice, IoSliceMut};

/// Buffers to write from.
pub(crate) struct Slices<'a> {
    rest: Vec<&'a [u8]>,
}

impl<'a> Slices<'a> {
    /// All bytes of `buffers`.
    pub fn new(buffers: &'a [IoSlice<'_>]) -> Self {
        Slices { rest: buffers.iter().rev().map(|buffer| &buffer[..]).collect() }
    }

    /// The next `len` bytes (fewer only at the end).
    pub fn take(&mut self, len: u64) -> Vec<&'a [u8]> {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let mut taken = Vec::new();
        while left > 0 {
            let Some(first) = self.rest.pop() else { break };
            let (part, rest) = first.split_at(left.min(first.len()));
            if !rest.is_empty() {
                self.rest.push(rest);
            }
            left -= part.len();
            taken.push(part);
        }
        taken
    }
}

/// Buffers to read into.
pub(crate) struct SlicesMut<'a> {
    rest: Vec<&'a mut [u8]>,
}

impl<'a> SlicesMut<'a> {
    /// All bytes of `buffers`.
    pub fn new(buffers: &'a mut [IoSliceMut<'_>]) -> Self {
        SlicesMut { rest: buffers.iter_mut().rev().map(|buffer| &mut buffer[..]).collect() }
    }

    /// The next `len` bytes (fewer only at the end).
    pub fn take(&mut self, len: u64) -> Vec<IoSliceMut<'a>> {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let mut taken = Vec::new();
        while left > 0 {
            let Some(first) = self.rest.pop() else { break };
            let middle = left.min(first.len());
            let (part, rest) = first.split_at_mut(middle);
            if !rest.is_empty() {
                self.rest.push(rest);
            }
            left -= part.len();
            taken.push(IoSliceMut::new(part));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other() {
        let bytes: Vec<u8> = (0..100).collect();
        let buffers = [IoSlice::new(&bytes[..30]), IoSlice::new(&[]), IoSlice::new(&bytes[30..])];
        let mut slices = Slices::new(&buffers);
        let mut all = Vec::new();
        for len in [7, 40, 0, 3, 50] {
            let part = slices.take(len).concat();
            assert_eq!(part.len() as u64, len);
            all.extend(part);
        }
        assert_eq!(all, bytes);
        assert!(slices.take(9).is_empty());
    }
}
