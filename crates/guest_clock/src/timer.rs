//! Timers of devices: one thread a machine, woken at the earliest deadline of guest time.

use crate::Clock;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What a timer calls. It runs on the timer thread without any lock of the queue held and may re-arm.
pub trait TimerHandler: Send + Sync {
    /// The deadline has passed.
    fn expired(&self);
}

/// A timer of a [`TimerQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerId(u64);

#[derive(Default)]
struct Timers {
    handlers: BTreeMap<TimerId, Weak<dyn TimerHandler>>,
    /// Armed timers by (deadline, id), and each timer's deadline.
    armed: BTreeMap<(u64, TimerId), ()>,
    deadlines: BTreeMap<TimerId, u64>,
    next: u64,
    paused: bool,
    stop: bool,
}

impl Timers {
    fn disarm(&mut self, id: TimerId) {
        if let Some(deadline) = self.deadlines.remove(&id) {
            self.armed.remove(&(deadline, id));
        }
    }
}

/// The timers of a machine.
pub struct TimerQueue {
    clock: Arc<dyn Clock>,
    timers: Mutex<Timers>,
    changed: Condvar,
}

impl TimerQueue {
    /// An empty queue without thread; [`TimerQueue::spawn`] starts it, tests call [`TimerQueue::run_expired`].
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(TimerQueue { clock, timers: Mutex::default(), changed: Condvar::new() })
    }

    /// Starts the thread. It ends after [`TimerQueue::stop`].
    pub fn spawn(self: &Arc<Self>) -> std::io::Result<std::thread::JoinHandle<()>> {
        let queue = Arc::clone(self);
        std::thread::Builder::new().name("timers".into()).spawn(move || queue.serve())
    }

    /// The clock of the deadlines.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Adds a disarmed timer. It dies with its handler.
    pub fn add(&self, handler: Weak<dyn TimerHandler>) -> TimerId {
        let mut timers = self.timers.lock();
        timers.next += 1;
        let id = TimerId(timers.next);
        timers.handlers.insert(id, handler);
        id
    }

    /// Arms a timer for a guest time, replacing its former deadline.
    pub fn arm(&self, id: TimerId, deadline_ns: u64) {
        let mut timers = self.timers.lock();
        timers.disarm(id);
        timers.armed.insert((deadline_ns, id), ());
        timers.deadlines.insert(id, deadline_ns);
        drop(timers);
        self.changed.notify_all();
    }

    /// Disarms a timer.
    pub fn disarm(&self, id: TimerId) {
        self.timers.lock().disarm(id);
    }

    /// While paused, nothing expires; on resume the deadlines are compared with the clock anew.
    pub fn set_paused(&self, paused: bool) {
        self.timers.lock().paused = paused;
        self.changed.notify_all();
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.timers.lock().stop = true;
        self.changed.notify_all();
    }

    /// Calls the handlers of all timers whose deadline has passed.
    pub fn run_expired(&self) {
        while let Some(handler) = self.take_expired() {
            handler.expired();
        }
    }

    fn take_expired(&self) -> Option<Arc<dyn TimerHandler>> {
        let mut timers = self.timers.lock();
        if timers.paused || timers.stop {
            return None;
        }
        loop {
            let (&(deadline, id), ()) = timers.armed.first_key_value()?;
            if deadline > self.clock.now_ns() {
                return None;
            }
            timers.disarm(id);
            if let Some(handler) = timers.handlers.get(&id).and_then(Weak::upgrade) {
                return Some(handler);
            }
            timers.handlers.remove(&id);
        }
    }

    fn serve(&self) {
        loop {
            self.run_expired();
            let mut timers = self.timers.lock();
            if timers.stop {
                return;
            }
            let next = timers.armed.first_key_value().map(|(&(deadline, _), ())| deadline);
            match next.filter(|_| !timers.paused) {
                None => self.changed.wait(&mut timers),
                Some(deadline) => {
                    let wait = deadline.saturating_sub(self.clock.now_ns());
                    if wait > 0 {
                        self.changed.wait_for(&mut timers, Duration::from_nanos(wait));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ManualClock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Counter(AtomicU32);
    impl TimerHandler for Counter {
        fn expired(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn timers_expire_once_at_their_deadline_and_not_while_paused() {
        let clock = Arc::new(ManualClock::default());
        let queue = TimerQueue::new(clock.clone());
        let counter = Arc::new(Counter(AtomicU32::new(0)));
        let handler: Arc<dyn TimerHandler> = counter.clone();
        let id = queue.add(Arc::downgrade(&handler));
        let expired = || {
            queue.run_expired();
            counter.0.load(Ordering::SeqCst)
        };
        queue.arm(id, 10);
        queue.arm(id, 20);
        clock.advance(19);
        assert_eq!(expired(), 0);
        queue.set_paused(true);
        clock.advance(1);
        assert_eq!(expired(), 0);
        queue.set_paused(false);
        assert_eq!((expired(), expired()), (1, 1));
        queue.arm(id, 25);
        queue.disarm(id);
        clock.advance(100);
        assert_eq!(expired(), 1);
    }
}
