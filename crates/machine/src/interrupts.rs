//! The gate between interrupt sources and whichever engine runs the processors now.

use crate::events::{Events, to_engine};
use device::{Doorbell, EventCounts, HostEvents, MessageRoute, Msi, MsiSink};
use engine::{MsiMessage, Vm};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Passes interrupts on to the current engine. What arrives while there is no engine (between two of them, with
/// all processors standing) is remembered and passed to the next.
#[derive(Default)]
pub(crate) struct InterruptGate {
    state: RwLock<GateState>,
    /// Never locked with `state` locked.
    events: Mutex<Events>,
    /// What [`Events::carries_messages`] says.
    carries_messages: AtomicBool,
}

struct GateState {
    vm: Option<Arc<dyn Vm>>,
    pic_line: bool,
    level_vectors: Box<[bool; 256]>,
    waiting: Vec<MsiMessage>,
}

impl Default for GateState {
    fn default() -> Self {
        GateState { vm: None, pic_line: false, level_vectors: Box::new([false; 256]), waiting: Vec::new() }
    }
}

/// Messages remembered at most between two engines; devices are paused then, so few come.
const WAITING_MAX: usize = 4096;

impl InterruptGate {
    /// Connects an engine. There is none before.
    pub fn connect(&self, vm: Arc<dyn Vm>) {
        let mut state = self.state.write();
        vm.set_level_vectors(&state.level_vectors);
        vm.set_pic_line(state.pic_line);
        for message in std::mem::take(&mut state.waiting) {
            vm.signal_msi(message);
        }
        state.vm = Some(vm.clone());
        drop(state);
        self.with_events(|events| events.connect(vm));
    }

    /// Lets go of the engine, and answers it. What it had taken has arrived at the processors when this returns; what
    /// comes after waits for the next engine.
    pub fn disconnect(&self) -> Option<Arc<dyn Vm>> {
        let undelivered = self.with_events(Events::disconnect);
        let mut state = self.state.write();
        state.waiting.extend(undelivered);
        state.vm.take()
    }

    /// Sees to it that messages sent until now have arrived at the processors, whose states can be saved then.
    pub fn settle(&self) {
        let undelivered = self.with_events(Events::unbind_routes);
        if let Some(vm) = &self.state.read().vm {
            undelivered.into_iter().for_each(|message| vm.signal_msi(message));
        }
    }

    fn with_events<R>(&self, change: impl FnOnce(&mut Events) -> R) -> R {
        let mut events = self.events.lock();
        let result = change(&mut events);
        self.carries_messages.store(events.carries_messages(), Ordering::Relaxed);
        result
    }

    /// Forgets what arrived while no engine was connected: a restore brings the devices' messages itself.
    pub fn forget_waiting(&self) {
        self.state.write().waiting.clear();
    }

    /// The level of the PIC's INTR line.
    pub fn set_pic_line(&self, asserted: bool) {
        let mut state = self.state.write();
        state.pic_line = asserted;
        if let Some(vm) = &state.vm {
            vm.set_pic_line(asserted);
        }
    }

    /// Vectors that the IOAPIC routes level-triggered.
    pub fn set_level_vectors(&self, vectors: &[bool; 256]) {
        let mut state = self.state.write();
        *state.level_vectors = *vectors;
        if let Some(vm) = &state.vm {
            vm.set_level_vectors(vectors);
        }
    }
}

impl MsiSink for InterruptGate {
    fn signal(&self, msi: Msi) {
        let message = to_engine(msi);
        if let Some(vm) = &self.state.read().vm {
            return vm.signal_msi(message);
        }
        let mut state = self.state.write();
        if state.waiting.len() < WAITING_MAX {
            state.waiting.push(message);
        }
    }
}

impl HostEvents for InterruptGate {
    fn counts(&self) -> Arc<EventCounts> {
        self.events.lock().counts.clone()
    }
    fn bind_doorbell(&self, doorbell: &Arc<Doorbell>, address: Option<u64>) {
        self.with_events(|events| events.bind_doorbell(doorbell, address));
    }
    fn carries_messages(&self) -> bool {
        self.carries_messages.load(Ordering::Relaxed)
    }
    fn bind_message(&self, route: &Arc<MessageRoute>, message: Option<Msi>) {
        self.with_events(|events| events.bind_message(route, message));
    }
}
