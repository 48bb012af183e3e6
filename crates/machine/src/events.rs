//! Which doorbells and routes the host carries now: those of the devices, on whichever engine runs the processors.
//!
//! Doorbells are remembered and bound again on each engine that can watch them. Routes are not: devices bind them again
//! when they send. Between two engines nothing is bound; a message that the host had taken and not delivered comes
//! back to whoever disconnects.

use device::{Doorbell, EventCounts, MessageRoute, Msi};
use engine::{EventPaths, MsiMessage, Vm};
use std::sync::Arc;

/// Notifications are writes of this many bytes (virtio 4.1.5.2); 0 watches every length, which some hosts do faster.
const NOTIFICATION_LENGTHS: [u32; 2] = [0, 2];

struct BoundDoorbell {
    doorbell: Arc<Doorbell>,
    address: u64,
    /// Length it is bound with, if it is.
    len: Option<u32>,
}

/// The bindings.
#[derive(Default)]
pub(crate) struct Events {
    vm: Option<Arc<dyn Vm>>,
    paths: EventPaths,
    doorbells: Vec<BoundDoorbell>,
    routes: Vec<Arc<MessageRoute>>,
    pub counts: Arc<EventCounts>,
}

impl Events {
    /// Binds what is remembered on an engine. There is none before.
    pub fn connect(&mut self, vm: Arc<dyn Vm>) {
        self.paths = vm.event_paths();
        let vm = &*self.vm.insert(vm);
        if self.paths.ioeventfd {
            self.doorbells.iter_mut().for_each(|doorbell| doorbell.bind(&**vm));
        }
    }

    /// Lets go of the engine. Answers what it had not delivered.
    pub fn disconnect(&mut self) -> Vec<MsiMessage> {
        let undelivered = self.unbind_routes();
        if let Some(vm) = self.vm.take() {
            self.doorbells.iter_mut().for_each(|doorbell| doorbell.unbind(&*vm));
        }
        self.paths = EventPaths::default();
        undelivered
    }

    /// Removes all routes: what was under way to the processors has arrived then. Answers what had not even started.
    pub fn unbind_routes(&mut self) -> Vec<MsiMessage> {
        let Some(vm) = &self.vm else { return Vec::new() };
        self.routes.drain(..).filter_map(|route| unbind(&**vm, &route)).collect()
    }

    /// Whether a message may find a route now.
    pub fn carries_messages(&self) -> bool {
        self.paths.irqfd
    }

    /// See [`device::HostEvents::bind_doorbell`].
    pub fn bind_doorbell(&mut self, doorbell: &Arc<Doorbell>, address: Option<u64>) {
        if let Some(at) = self.doorbells.iter().position(|bound| Arc::ptr_eq(&bound.doorbell, doorbell)) {
            let mut bound = self.doorbells.swap_remove(at);
            if let Some(vm) = &self.vm {
                bound.unbind(&**vm);
            }
        }
        let Some(address) = address else { return };
        let mut bound = BoundDoorbell { doorbell: doorbell.clone(), address, len: None };
        if let Some(vm) = self.vm.as_ref().filter(|_| self.paths.ioeventfd) {
            bound.bind(&**vm);
        }
        self.doorbells.push(bound);
    }

    /// See [`device::HostEvents::bind_message`].
    pub fn bind_message(&mut self, route: &Arc<MessageRoute>, message: Option<Msi>) {
        let Some(vm) = self.vm.clone() else { return };
        let known = self.routes.iter().position(|bound| Arc::ptr_eq(bound, route));
        let Some(message) = message else {
            if let Some(at) = known {
                // Whoever gives a route back expects nothing of it any more.
                let _ = unbind(&*vm, &self.routes.swap_remove(at));
            }
            return;
        };
        if !self.paths.irqfd {
            return;
        }
        let mut is_bound = false;
        route.rebind(|event, before| {
            let fd = event.descriptor().ok()?;
            if before.is_none() {
                // Hosts that do not take the count away would send at once what was sent long ago.
                event.take();
            }
            is_bound = vm.bind_irqfd(fd, Some(to_engine(message)));
            if !is_bound && before.is_some() {
                vm.bind_irqfd(fd, None);
            }
            is_bound.then_some(message)
        });
        match (is_bound, known) {
            (true, None) => self.routes.push(route.clone()),
            (true, Some(_)) => {}
            (false, _) => {
                // The host has no room for more; those that are bound stay.
                self.paths.irqfd = false;
                known.into_iter().for_each(|at| drop(self.routes.swap_remove(at)));
            }
        }
    }
}

impl BoundDoorbell {
    fn bind(&mut self, vm: &dyn Vm) {
        let Ok(fd) = self.doorbell.event().descriptor() else { return };
        self.len =
            NOTIFICATION_LENGTHS.into_iter().find(|len| vm.bind_ioeventfd(fd, self.address, *len, true));
        self.doorbell.set_bound(self.len.is_some());
    }

    fn unbind(&mut self, vm: &dyn Vm) {
        if let (Some(len), Ok(fd)) = (self.len.take(), self.doorbell.event().descriptor()) {
            vm.bind_ioeventfd(fd, self.address, len, false);
        }
        self.doorbell.set_bound(false);
    }
}

pub(crate) fn to_engine(message: Msi) -> MsiMessage {
    MsiMessage { address: message.address, data: message.data }
}

/// Removes a route. Answers its message if the host had not taken it.
fn unbind(vm: &dyn Vm, route: &MessageRoute) -> Option<MsiMessage> {
    let mut left = None;
    route.rebind(|event, bound| {
        if let Ok(fd) = event.descriptor() {
            vm.bind_irqfd(fd, None);
        }
        left = bound.filter(|_| event.take() != 0);
        None
    });
    left.map(to_engine)
}

#[cfg(test)]
mod tests;
