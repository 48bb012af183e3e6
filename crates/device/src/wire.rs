//! Output wires of devices that several threads drive.
//!
//! A device decides the level of its output under its own lock, but must not call the sink there. If it called
//! right after unlocking, two threads could pass each other and leave the sink at the older level. So levels are
//! *staged* under the device's lock, and *delivered* after it by one thread at a time, in the order staged.
//!
//! Levels alternate, hence the number of changes still to deliver says everything; it is kept at most three by
//! dropping pairs, which keeps both the last level and the fact that there was an edge.

use crate::IrqLine;
use parking_lot::Mutex;

/// More changes than these are folded by twos.
const MAX_PENDING: u8 = 3;

#[derive(Debug, Default)]
struct Changes {
    /// The level staged last.
    level: bool,
    /// Changes that led to `level` and were not delivered yet.
    pending: u8,
    /// A thread is delivering.
    delivering: bool,
}

/// An output wire: ordered delivery without a lock held during the call.
pub struct Wire {
    sink: Box<dyn Fn(bool) + Send + Sync>,
    changes: Mutex<Changes>,
}

impl Wire {
    /// A low wire that ends in a function.
    pub fn new(sink: Box<dyn Fn(bool) + Send + Sync>) -> Self {
        Wire { sink, changes: Mutex::default() }
    }

    /// Notes a level, without calling anybody. Called with the device's lock held, so that the order of levels is
    /// the order of the device's states.
    pub fn stage(&self, level: bool) {
        let mut changes = self.changes.lock();
        if changes.level != level {
            changes.level = level;
            changes.pending += 1;
            if changes.pending > MAX_PENDING {
                changes.pending -= 2;
            }
        }
    }

    /// Delivers what is staged, unless another thread already does and will take ours along. Called without any
    /// lock of the device held.
    pub fn deliver(&self) {
        let mut changes = self.changes.lock();
        if changes.delivering {
            return;
        }
        changes.delivering = true;
        while changes.pending > 0 {
            // With an odd number of changes to go, the next level is the last one.
            let next = changes.level == (changes.pending % 2 == 1);
            changes.pending -= 1;
            drop(changes);
            (self.sink)(next);
            changes = self.changes.lock();
        }
        changes.delivering = false;
    }

    /// The level staged last.
    pub fn level(&self) -> bool {
        self.changes.lock().level
    }

    /// Stages a level that is delivered even if it is no change, on restore: for sinks that lost their view.
    pub fn restate(&self, level: bool) {
        let mut changes = self.changes.lock();
        changes.level = level;
        changes.pending = 1;
    }

    /// Sets the level without telling the sink, on restore: the sink restores its own view of its inputs.
    pub fn preset(&self, level: bool) {
        let mut changes = self.changes.lock();
        changes.level = level;
        changes.pending = 0;
    }
}

impl From<IrqLine> for Wire {
    fn from(line: IrqLine) -> Self {
        Wire::new(Box::new(move |asserted| line.set_level(asserted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn recorder() -> (Wire, Arc<Mutex<Vec<bool>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        (Wire::new(Box::new(move |level| sink.lock().push(level))), seen)
    }

    #[test]
    fn changes_arrive_in_order_and_repetitions_do_not() {
        let (wire, seen) = recorder();
        for level in [true, true, false, true] {
            wire.stage(level);
        }
        wire.deliver();
        wire.deliver();
        assert_eq!(*seen.lock(), [true, false, true]);
    }

    #[test]
    fn many_changes_fold_into_an_edge_and_the_last_level() {
        let (wire, seen) = recorder();
        for i in 0..100 {
            wire.stage(i % 2 == 0);
        }
        wire.deliver();
        assert_eq!(*seen.lock(), [true, false]);
    }

    #[test]
    fn a_preset_level_is_not_delivered() {
        let (wire, seen) = recorder();
        wire.preset(true);
        wire.deliver();
        wire.stage(true);
        wire.deliver();
        assert!(wire.level() && seen.lock().is_empty());
        wire.restate(true);
        wire.deliver();
        assert_eq!(*seen.lock(), [true]);
    }
}
