//! Wakes processors in translated code when their timers are due.
//!
//! Translated code does not count instructions and does not look at the clock. One thread of the process
//! sleeps until the earliest deadline of all processors and sets an event bit then.

use crate::system::event;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

struct Entry {
    due: Option<Instant>,
    events: Arc<AtomicU32>,
}

#[derive(Default)]
struct Timers {
    entries: Mutex<Vec<Entry>>,
    changed: Condvar,
}

static TIMERS: OnceLock<&'static Timers> = OnceLock::new();

fn timers() -> &'static Timers {
    TIMERS.get_or_init(|| {
        let timers: &'static Timers = Box::leak(Box::default());
        let started = std::thread::Builder::new().name("vcpu timers".into()).spawn(move || timers.serve());
        if let Err(error) = started {
            tracing::error!(%error, "The thread for timers of processors cannot be started");
        }
        timers
    })
}

impl Timers {
    fn serve(&self) {
        let mut entries = self.entries.lock();
        loop {
            let now = Instant::now();
            for entry in entries.iter_mut() {
                if entry.due.is_some_and(|due| due <= now) {
                    entry.due = None;
                    entry.events.fetch_or(event::TICK, Ordering::SeqCst);
                }
            }
            match entries.iter().filter_map(|entry| entry.due).min() {
                Some(due) => {
                    let _ = self.changed.wait_until(&mut entries, due);
                }
                None => self.changed.wait(&mut entries),
            }
        }
    }
}

/// One processor's deadline.
pub(crate) struct Deadline {
    events: Arc<AtomicU32>,
    due_ns: Option<u64>,
}

impl Deadline {
    /// None yet; `events` is the processor's event word.
    pub fn new(events: Arc<AtomicU32>) -> Self {
        Deadline { events, due_ns: None }
    }

    /// Sets [`event::TICK`] at `due_ns` of a clock that shows `now_ns` now.
    pub fn set(&mut self, due_ns: Option<u64>, now_ns: u64) {
        if due_ns == self.due_ns {
            return;
        }
        self.due_ns = due_ns;
        let due =
            due_ns.map(|due| Instant::now() + Duration::from_nanos(due.saturating_sub(now_ns).min(1 << 60)));
        let timers = timers();
        let mut entries = timers.entries.lock();
        let earliest = entries.iter().filter_map(|entry| entry.due).min();
        match entries.iter_mut().find(|entry| Arc::ptr_eq(&entry.events, &self.events)) {
            Some(entry) => entry.due = due,
            None => entries.push(Entry { due, events: Arc::clone(&self.events) }),
        }
        if due.is_some_and(|due| earliest.is_none_or(|earliest| due < earliest)) {
            timers.changed.notify_one();
        }
    }

    /// The bit was seen: the same deadline may be set again.
    pub fn fired(&mut self) {
        self.due_ns = None;
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if let Some(timers) = TIMERS.get() {
            timers.entries.lock().retain(|entry| !Arc::ptr_eq(&entry.events, &self.events));
        }
    }
}
