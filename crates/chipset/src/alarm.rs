//! One timer of a chip, told only about changes.
//!
//! Chips work out their next deadline after every register access; most accesses do not change it, and the timer
//! queue's lock is shared by all chips.

use guest_clock::{TimerHandler, TimerId, TimerQueue};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// A timer with its last known deadline.
pub struct Alarm {
    timers: Arc<TimerQueue>,
    id: TimerId,
    armed: Mutex<Option<u64>>,
}

impl Alarm {
    /// A disarmed timer that calls `handler`.
    pub fn new(timers: Arc<TimerQueue>, handler: Weak<dyn TimerHandler>) -> Self {
        let id = timers.add(handler);
        Alarm { timers, id, armed: Mutex::new(None) }
    }

    /// Guest time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.timers.clock().now_ns()
    }

    /// Wall time in seconds since 1970 UTC and nanoseconds.
    pub fn wall_time(&self) -> (u64, u32) {
        self.timers.clock().wall_time()
    }

    /// Sets the deadline. Called with the chip's lock held, so that deadlines follow the order of its states.
    pub fn set(&self, deadline: Option<u64>) {
        let mut armed = self.armed.lock();
        if *armed != deadline {
            *armed = deadline;
            match deadline {
                Some(at) => self.timers.arm(self.id, at),
                None => self.timers.disarm(self.id),
            }
        }
    }

    /// Notes that the timer expired, which disarmed it. Called first by the handler, with the chip's lock held.
    pub fn expired(&self) {
        *self.armed.lock() = None;
    }
}
