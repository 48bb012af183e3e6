//! Guest clusters whose mapping is about to change.
//!
//! Who allocates, frees or zeroes clusters holds a flight over them while data are copied and written without any
//! lock; who wants the same clusters waits. Reads and writes in place hold none.

use parking_lot::{Condvar, Mutex};
use std::ops::Range;

#[derive(Default)]
pub(super) struct Flights {
    ranges: Mutex<Vec<Range<u64>>>,
    ended: Condvar,
}

impl Flights {
    /// Waits until nobody holds any of the guest clusters, then holds them.
    pub fn start(&self, clusters: Range<u64>) -> Flight<'_> {
        let mut ranges = self.ranges.lock();
        while ranges.iter().any(|held| held.start < clusters.end && clusters.start < held.end) {
            self.ended.wait(&mut ranges);
        }
        ranges.push(clusters.clone());
        Flight { flights: self, clusters }
    }
}

pub(super) struct Flight<'a> {
    flights: &'a Flights,
    clusters: Range<u64>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut ranges = self.flights.ranges.lock();
        if let Some(at) = ranges.iter().position(|held| *held == self.clusters) {
            ranges.swap_remove(at);
        }
        drop(ranges);
        self.flights.ended.notify_all();
    }
}
