//! Limits on requests and bytes a second, as a decorator: for one disk, or for a group of disks together.
//!
//! A request waits until its group's buckets have room for it. Within a group each disk that wants something gets an
//! equal share, whatever the size or number of its requests. Flushes are not limited, nor counted; discards and
//! requests for zeros count as requests without bytes. The state without threads and clock is [`scheduler`].

mod bucket;
mod scheduler;
#[cfg(test)]
mod tests;

pub use bucket::{Limits, Rate};

use crate::backend::{BlockBackend, Capabilities, Extent};
use crate::buffers::len;
use crate::transfer::Transfer;
use bucket::picoseconds;
use parking_lot::{Condvar, Mutex};
use scheduler::{Direction, Member, Scheduler, Ticket};
use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Disks that share limits.
pub struct ThrottleGroup {
    state: Mutex<State>,
    /// Somebody may go, or limits changed.
    changed: Condvar,
    start: Instant,
    /// Nothing is limited: nobody needs to look at the state.
    unlimited: AtomicBool,
}

struct State {
    scheduler: Scheduler,
    /// Those that may go and did not notice yet.
    admitted: BTreeSet<Ticket>,
}

impl ThrottleGroup {
    /// A group without disks.
    ///
    /// # Errors
    /// As [`Limits::validate`].
    pub fn new(limits: Limits) -> std::result::Result<Arc<Self>, String> {
        limits.validate()?;
        let unlimited = AtomicBool::new(limits.is_unlimited());
        let state = State { scheduler: Scheduler::new(limits), admitted: BTreeSet::new() };
        let start = Instant::now();
        Ok(Arc::new(ThrottleGroup { state: Mutex::new(state), changed: Condvar::new(), start, unlimited }))
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.state.lock().scheduler.limits().clone()
    }

    /// Changes the limits, for those that wait too.
    ///
    /// # Errors
    /// As [`Limits::validate`]; nothing is changed then.
    pub fn set_limits(&self, limits: Limits) -> std::result::Result<(), String> {
        limits.validate()?;
        self.unlimited.store(limits.is_unlimited(), Ordering::Release);
        self.state.lock().scheduler.set_limits(limits);
        self.changed.notify_all();
        Ok(())
    }

    fn drain(&self, member: Member, begin: bool) {
        self.state.lock().scheduler.drain(member, begin);
        self.changed.notify_all();
    }

    /// Waits for the request's turn.
    fn wait(&self, member: Member, direction: Direction, bytes: u64) {
        if self.unlimited.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state.lock();
        let ticket = state.scheduler.arrive(member, direction, bytes);
        loop {
            let now = picoseconds(self.start.elapsed());
            let turn = state.scheduler.turn(now);
            if turn.admitted.iter().any(|other| *other != ticket) {
                self.changed.notify_all();
            }
            state.admitted.extend(turn.admitted);
            if state.admitted.remove(&ticket) {
                // Whoever is next has to learn when its turn is.
                self.changed.notify_all();
                return;
            }
            match turn.next {
                Some(next) => {
                    // Rounded up, and no longer than what the clock can hold.
                    let nanoseconds = u64::try_from(next.saturating_sub(now) / 1000 + 1).unwrap_or(u64::MAX);
                    let wait = Duration::from_nanos(nanoseconds).min(Duration::from_secs(3600));
                    self.changed.wait_for(&mut state, wait);
                }
                None => self.changed.wait(&mut state),
            }
        }
    }
}

/// A disk within its group's limits.
pub struct Throttled {
    inner: Arc<dyn BlockBackend>,
    group: Arc<ThrottleGroup>,
    member: Member,
}

impl Throttled {
    /// A disk as a member of a group.
    pub fn new(inner: Arc<dyn BlockBackend>, group: Arc<ThrottleGroup>) -> Self {
        let member = group.state.lock().scheduler.join();
        Throttled { inner, group, member }
    }

    /// The group.
    pub fn group(&self) -> &Arc<ThrottleGroup> {
        &self.group
    }

    /// Lets all requests of this disk go without waiting (they count nevertheless), for as many calls with `true` as
    /// there are more than with `false`: somebody waits for the disk to be idle.
    pub fn drain(&self, begin: bool) {
        self.group.drain(self.member, begin);
    }

    fn wait(&self, direction: Direction, bytes: u64) {
        self.group.wait(self.member, direction, bytes);
    }
}

impl Drop for Throttled {
    fn drop(&mut self) {
        self.group.state.lock().scheduler.leave(self.member);
    }
}

impl BlockBackend for Throttled {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.wait(Direction::Read, len(buffers));
        self.inner.read_at(offset, buffers)
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.wait(Direction::Write, len(buffers));
        self.inner.write_at(offset, buffers)
    }
    fn batches(&self) -> bool {
        self.inner.batches()
    }
    fn transfer(&self, batch: &mut [&mut Transfer<'_>]) {
        if !self.group.unlimited.load(Ordering::Acquire) {
            // Each goes when its own turn comes.
            return batch.iter_mut().for_each(|transfer| transfer.run(self));
        }
        self.inner.transfer(batch);
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.wait(Direction::Write, 0);
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.wait(Direction::Write, 0);
        self.inner.write_zeroes(offset, len, unmap)
    }
    fn resize(&self, size: u64) -> Result<()> {
        self.inner.resize(size)
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.inner.block_status(offset, len)
    }
}
