//! Notifications and messages that go past the vCPUs' threads, where the host can carry them.
//!
//! An enabled queue's doorbell is bound to its address while the BAR that it lies in is mapped; a worker then waits for
//! the event instead of the condition variable. A write to the register that comes all the same (another length, a
//! processor that is carried by the software CPU, configuration access) has the same effect.
//!
//! A vector's route is bound when a message was sent without one, to that message: the next that is the same goes by
//! the event. So a guest that rewrites its vectors costs nobody anything until they are used, and a message never
//! depends on whether the binding followed in time. A masked vector has no message to send; it is pending.

use super::bits::{NOTIFY, NOTIFY_MULTIPLIER};
use super::function::Function;
use super::registers::Message;
use device::{Doorbell, EventCounts, HostEvents, MessageRoute};
use parking_lot::Mutex;
use std::sync::Arc;

/// Where doorbells are.
#[derive(Debug, Default)]
struct Places {
    /// The BAR, if it is mapped.
    bar: Option<u64>,
    /// The address each queue's doorbell is bound to.
    bound: Vec<Option<u64>>,
}

/// Events of a function.
pub(super) struct FunctionEvents {
    host: Arc<dyn HostEvents>,
    counts: Arc<EventCounts>,
    doorbells: Vec<Arc<Doorbell>>,
    routes: Vec<Arc<MessageRoute>>,
    places: Mutex<Places>,
}

impl FunctionEvents {
    pub fn new(host: Arc<dyn HostEvents>, queues: usize, vectors: usize) -> Self {
        let counts = host.counts();
        let doorbells = (0..queues).map(|_| Doorbell::new(counts.clone())).collect();
        let routes = (0..vectors).map(|_| MessageRoute::new(counts.clone())).collect();
        let places = Mutex::new(Places { bar: None, bound: vec![None; queues] });
        FunctionEvents { host, counts, doorbells, routes, places }
    }

    /// Doorbells of a worker, with the numbers of their queues.
    fn of_worker(&self, index: usize, workers: usize) -> impl Iterator<Item = (usize, &Arc<Doorbell>)> {
        self.doorbells.iter().enumerate().skip(index).step_by(workers.max(1))
    }
}

impl Function {
    /// Sends a message, without any lock held.
    pub(super) fn send(&self, Message { vector, msi }: Message) {
        let Some(events) = &self.events else { return self.msi.signal(msi) };
        let Some(route) = events.routes.get(usize::from(vector)) else { return };
        if !route.send(msi) {
            self.msi.signal(msi);
            events.counts.note_message_call();
            if events.host.carries_messages() {
                events.host.bind_message(route, Some(msi));
            }
        }
    }

    /// Gives the vectors' routes back.
    pub(super) fn release_routes(&self) {
        if let Some(events) = &self.events {
            events.routes.iter().for_each(|route| events.host.bind_message(route, None));
        }
    }

    /// The BAR is mapped there, or nowhere.
    pub(super) fn bar_mapped(&self, address: Option<u64>) {
        let Some(events) = &self.events else { return };
        let mut places = events.places.lock();
        if places.bar != address {
            places.bar = address;
            self.bind_all(events, &mut places);
            drop(places);
            self.wake_workers();
        }
    }

    /// Binds the doorbells of enabled queues, and no others.
    pub(super) fn follow_doorbells(&self) {
        if let Some(events) = &self.events {
            self.bind_all(events, &mut events.places.lock());
        }
    }

    fn bind_all(&self, events: &FunctionEvents, places: &mut Places) {
        let enabled: Vec<bool> = self.registers.lock().queues.iter().map(|queue| queue.enabled).collect();
        let Places { bar, bound } = places;
        for (index, (doorbell, bound)) in events.doorbells.iter().zip(bound).enumerate() {
            let is_enabled = enabled.get(index).copied().unwrap_or(false) && self.can_poll(index);
            let address = bar
                .filter(|_| is_enabled)
                .map(|bar| bar + NOTIFY + index as u64 * u64::from(NOTIFY_MULTIPLIER));
            if *bound == address {
                continue;
            }
            events.host.bind_doorbell(doorbell, address);
            *bound = address;
            // Nobody looks at it any more, but it may have been rung.
            if !doorbell.is_bound() && doorbell.take() {
                self.ring(index);
            }
        }
    }

    /// Queues of a worker whose doorbells were rung, one bit each.
    pub(super) fn take_doorbells(&self, worker: usize) -> u64 {
        let Some(events) = &self.events else { return 0 };
        let of_worker = events.of_worker(worker, self.workers.len());
        let bound = of_worker.filter(|(_, doorbell)| doorbell.is_bound());
        bound.filter(|(_, doorbell)| doorbell.take()).fold(0, |bits, (queue, _)| bits | 1 << queue)
    }

    /// The doorbells that a worker has to wait for.
    pub(super) fn bound_doorbells(&self, worker: usize) -> Vec<&Doorbell> {
        let Some(events) = &self.events else { return Vec::new() };
        let of_worker = events.of_worker(worker, self.workers.len());
        of_worker.filter(|(_, doorbell)| doorbell.is_bound()).map(|(_, doorbell)| doorbell.as_ref()).collect()
    }

    /// Forgets what the doorbells counted: all queues are served anyway.
    pub(super) fn clear_doorbells(&self) {
        for doorbell in self.events.iter().flat_map(|events| &events.doorbells) {
            doorbell.take();
        }
    }

    /// A notification by the register.
    pub(super) fn note_doorbell_write(&self) {
        if let Some(events) = &self.events {
            events.counts.note_doorbell_write();
        }
    }

    /// Lets go of the host's paths.
    pub(super) fn release_events(&self) {
        self.bar_mapped(None);
        self.release_routes();
    }
}
