//! Notifications and messages that the host carries between guest and device as events, past the vCPUs' threads.
//!
//! Without them, a guest that notifies a device leaves its vCPU's engine, and whoever has an interrupt for the guest
//! calls the engine. Where an engine's host can do both by itself (KVM: ioeventfd and irqfd), a [`Doorbell`] counts
//! notifications in the host until a thread of the device looks, and a [`MessageRoute`] sends the message it is
//! bound to when it is signalled. Devices ask for both through [`HostEvents`] and go on without when the host has no
//! such path: then registers are written and messages are sent as ever.

use crate::Msi;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A counter in the host that a thread can wait for (eventfd(2)); made when it is first needed.
#[derive(Debug, Default)]
pub struct Event(OnceLock<OwnedFd>);

impl Event {
    /// Its descriptor.
    ///
    /// # Errors
    /// When the host gives none.
    pub fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        if self.0.get().is_none() {
            let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            // If another thread was quicker, its descriptor is the one.
            let _ = self.0.set(made);
        }
        self.0.get().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Counts one up. Nothing happens if nobody made it yet.
    pub fn signal(&self) {
        if let Some(event) = self.0.get() {
            // The only failure is a counter at its end, which is signalled already.
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
    }

    /// The count, which starts from zero again.
    pub fn take(&self) -> u64 {
        let mut count = [0; 8];
        match self.0.get().map(|event| rustix::io::read(event, &mut count)) {
            Some(Ok(8)) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}

/// How notifications and messages went.
#[derive(Debug, Default)]
pub struct EventCounts {
    doorbell_events: AtomicU64,
    doorbell_writes: AtomicU64,
    message_events: AtomicU64,
    message_calls: AtomicU64,
}

impl EventCounts {
    /// A notification came by a register.
    pub fn note_doorbell_write(&self) {
        self.doorbell_writes.fetch_add(1, Ordering::Relaxed);
    }

    /// A message was sent without a route.
    pub fn note_message_call(&self) {
        self.message_calls.fetch_add(1, Ordering::Relaxed);
    }

    /// All of them, with the names that statistics show.
    pub fn all(&self) -> [(&'static str, u64); 4] {
        let Self { doorbell_events, doorbell_writes, message_events, message_calls } = self;
        [
            ("doorbells_by_event", doorbell_events.load(Ordering::Relaxed)),
            ("doorbells_by_exit", doorbell_writes.load(Ordering::Relaxed)),
            ("interrupts_by_event", message_events.load(Ordering::Relaxed)),
            ("interrupts_by_call", message_calls.load(Ordering::Relaxed)),
        ]
    }
}

/// Where notifications of one queue are counted while the host takes them.
#[derive(Debug)]
pub struct Doorbell {
    event: Event,
    bound: AtomicBool,
    counts: Arc<EventCounts>,
}

impl Doorbell {
    /// One that nothing is bound to.
    pub fn new(counts: Arc<EventCounts>) -> Arc<Self> {
        Arc::new(Doorbell { event: Event::default(), bound: AtomicBool::new(false), counts })
    }

    /// What is signalled.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Tells whether the host counts here now. Said by [`HostEvents`] alone; threads of the device that wait for
    /// something else are woken after that.
    pub fn set_bound(&self, bound: bool) {
        self.bound.store(bound, Ordering::SeqCst);
    }

    /// Whether the host counts here now.
    pub fn is_bound(&self) -> bool {
        self.bound.load(Ordering::SeqCst)
    }

    /// Whether it was rung since this was last asked, also if it is not bound any more.
    pub fn take(&self) -> bool {
        let count = self.event.take();
        self.counts.doorbell_events.fetch_add(count, Ordering::Relaxed);
        count != 0
    }
}

/// A message that the host sends when it is signalled.
#[derive(Debug)]
pub struct MessageRoute {
    event: Event,
    bound: Mutex<Option<Msi>>,
    counts: Arc<EventCounts>,
}

impl MessageRoute {
    /// One that sends nothing.
    pub fn new(counts: Arc<EventCounts>) -> Arc<Self> {
        Arc::new(MessageRoute { event: Event::default(), bound: Mutex::new(None), counts })
    }

    /// Has the host send `message`. False if that is not what it is bound to; then nothing is sent.
    pub fn send(&self, message: Msi) -> bool {
        // The lock keeps the binding until the host has taken the event.
        let bound = self.bound.lock();
        let is_it = *bound == Some(message);
        if is_it {
            self.event.signal();
            self.counts.message_events.fetch_add(1, Ordering::Relaxed);
        }
        is_it
    }

    /// Changes what it is bound to, with nobody sending meanwhile: `change` gets the event and what is bound, and
    /// answers what is bound from now on. For [`HostEvents`] alone.
    pub fn rebind(&self, change: impl FnOnce(&Event, Option<Msi>) -> Option<Msi>) {
        let mut bound = self.bound.lock();
        *bound = change(&self.event, *bound);
    }
}

/// The host's paths, whichever engine runs the processors, or none.
pub trait HostEvents: Send + Sync {
    /// Where everything is counted.
    fn counts(&self) -> Arc<EventCounts>;
    /// From now on notifications at `address` (16-bit writes there) ring `doorbell`, as long as it has an engine that
    /// can do so; on engines to come as well. `None` ends it, and nothing rings it after that. Whether it does can be
    /// asked of the doorbell.
    fn bind_doorbell(&self, doorbell: &Arc<Doorbell>, address: Option<u64>);
    /// Whether [`HostEvents::bind_message`] is worth a call now.
    fn carries_messages(&self) -> bool;
    /// From now on `route` sends `message`, if the engine of now can do so. `None` ends it. Whether it does is told by
    /// [`MessageRoute::send`].
    fn bind_message(&self, route: &Arc<MessageRoute>, message: Option<Msi>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_and_starts_again() {
        let event = Event::default();
        event.signal();
        assert_eq!(event.take(), 0, "nobody made it");
        event.descriptor().unwrap();
        event.signal();
        event.signal();
        assert_eq!((event.take(), event.take()), (2, 0));
    }

    #[test]
    fn a_route_sends_only_what_it_is_bound_to() {
        let counts = Arc::<EventCounts>::default();
        let route = MessageRoute::new(counts.clone());
        let [first, second] = [1, 2].map(|data| Msi { address: 0xfee0_0000, data });
        assert!(!route.send(first));
        route.rebind(|event, _| event.descriptor().is_ok().then_some(first));
        assert!(route.send(first) && !route.send(second));
        route.rebind(|event, bound| {
            assert_eq!((event.take(), bound), (1, Some(first)));
            None
        });
        assert!(!route.send(first));
        assert_eq!(counts.all()[2], ("interrupts_by_event", 1));
    }
}
