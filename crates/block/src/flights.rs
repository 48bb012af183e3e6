//! Ranges of a disk that somebody has to himself for a moment.
//!
//! In qcow2: who allocates, frees or zeroes clusters holds a flight over them while data are copied and written without
//! any lock; who wants the same clusters waits. Reads and writes in place hold none. Under block jobs: changes of the
//! disk, and the steps of the job, hold flights over their grains.

use parking_lot::{Condvar, Mutex};
use std::ops::Range;

#[derive(Default)]
pub(crate) struct Flights {
    ranges: Mutex<Vec<Range<u64>>>,
    ended: Condvar,
}

impl Flights {
    /// Waits until nobody holds any of the range, whatever its unit, then holds it.
    pub fn start(&self, clusters: Range<u64>) -> Flight<'_> {
        let mut ranges = self.ranges.lock();
        while ranges.iter().any(|held| held.start < clusters.end && clusters.start < held.end) {
            self.ended.wait(&mut ranges);
        }
        ranges.push(clusters.clone());
        Flight { flights: self, clusters }
    }
}

pub(crate) struct Flight<'a> {
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
