//! Bindings on engines that watch some lengths, have room for some routes, or take no events at all.

use super::*;
use engine::{EngineError, Vcpu};
use parking_lot::Mutex;
use std::os::fd::{AsRawFd, BorrowedFd};

/// An engine that writes down what is asked of it.
struct Recorder {
    paths: EventPaths,
    watches_any_length: bool,
    room: usize,
    doorbells: Mutex<Vec<(u64, u32)>>,
    routes: Mutex<Vec<(i32, MsiMessage)>>,
    refusals: Mutex<usize>,
}

fn recorder(watches_any_length: bool, room: usize) -> Arc<Recorder> {
    Arc::new(Recorder {
        paths: EventPaths { irqfd: true, ioeventfd: true },
        watches_any_length,
        room,
        doorbells: Mutex::default(),
        routes: Mutex::default(),
        refusals: Mutex::default(),
    })
}

impl Vm for Recorder {
    fn create_vcpu(&self, _index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        panic!("not asked for here")
    }
    fn tsc_khz(&self) -> u32 {
        0
    }
    fn signal_msi(&self, _message: MsiMessage) {}
    fn set_pic_line(&self, _asserted: bool) {}
    fn set_level_vectors(&self, _vectors: &[bool; 256]) {}
    fn event_paths(&self) -> EventPaths {
        self.paths
    }
    fn bind_irqfd(&self, event: BorrowedFd<'_>, message: Option<MsiMessage>) -> bool {
        let mut routes = self.routes.lock();
        routes.retain(|(fd, _)| *fd != event.as_raw_fd());
        let has_room = routes.len() < self.room;
        match message.filter(|_| has_room) {
            Some(message) => routes.push((event.as_raw_fd(), message)),
            None => *self.refusals.lock() += usize::from(message.is_some()),
        }
        has_room
    }
    fn bind_ioeventfd(&self, _event: BorrowedFd<'_>, address: u64, len: u32, bind: bool) -> bool {
        let mut doorbells = self.doorbells.lock();
        let known = doorbells.iter().position(|bound| *bound == (address, len));
        match (bind, known) {
            (true, None) if len != 0 || self.watches_any_length => doorbells.push((address, len)),
            (false, Some(at)) => drop(doorbells.swap_remove(at)),
            _ => return false,
        }
        true
    }
    fn set_dirty_log(&self, _on: bool) -> Result<(), EngineError> {
        Ok(())
    }
    fn sync_dirty_log(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

const MESSAGE: Msi = Msi { address: 0xfee0_0000, data: 0x41 };

#[test]
fn doorbells_follow_from_engine_to_engine() {
    let mut events = Events::default();
    let [first, second] = [0; 2].map(|_| Doorbell::new(events.counts.clone()));
    events.bind_doorbell(&first, Some(0x1000));
    assert!(!first.is_bound(), "there is no engine");
    let one = recorder(false, 0);
    events.connect(one.clone());
    assert_eq!(*one.doorbells.lock(), [(0x1000, 2)], "bound with the length that notifications have");
    events.bind_doorbell(&second, Some(0x2000));
    events.bind_doorbell(&first, Some(0x3000));
    assert_eq!(*one.doorbells.lock(), [(0x2000, 2), (0x3000, 2)]);
    // Two doorbells at one address: the first is it.
    events.bind_doorbell(&second, Some(0x3000));
    assert_eq!((first.is_bound(), second.is_bound()), (true, false));
    events.bind_doorbell(&second, Some(0x2000));
    events.disconnect();
    assert_eq!((one.doorbells.lock().len(), first.is_bound(), second.is_bound()), (0, false, false));

    let without = Arc::new(Recorder { paths: EventPaths::default(), ..recorder_value() });
    events.connect(without.clone());
    assert_eq!((without.doorbells.lock().len(), first.is_bound()), (0, false));
    events.disconnect();
    let two = recorder(true, 0);
    events.connect(two.clone());
    events.bind_doorbell(&first, None);
    assert_eq!(*two.doorbells.lock(), [(0x2000, 0)]);
    assert_eq!((first.is_bound(), second.is_bound()), (false, true));
}

fn recorder_value() -> Recorder {
    Arc::into_inner(recorder(true, 9)).unwrap()
}

#[test]
fn a_route_sends_its_message_until_the_engine_goes_and_what_was_not_taken_comes_back() {
    let mut events = Events::default();
    let vm = recorder(true, 9);
    let [route, other] = [0; 2].map(|_| MessageRoute::new(events.counts.clone()));
    events.bind_message(&route, Some(MESSAGE));
    assert!(!route.send(MESSAGE), "there is no engine");
    events.connect(vm.clone());
    events.bind_message(&route, Some(MESSAGE));
    events.bind_message(&other, Some(MESSAGE));
    let changed = Msi { data: 0x42, ..MESSAGE };
    events.bind_message(&route, Some(changed));
    let data = || vm.routes.lock().iter().map(|(_, message)| message.data).collect::<Vec<_>>();
    assert_eq!(data(), [0x41, 0x42]);
    // This engine never takes an event: it comes back once.
    assert!(!route.send(MESSAGE) && route.send(changed));
    assert_eq!(events.disconnect(), [to_engine(changed)]);
    assert!(data().is_empty() && !route.send(changed));
    assert_eq!(events.disconnect(), []);
}

#[test]
fn a_host_without_room_is_asked_once() {
    let mut events = Events::default();
    let vm = recorder(true, 1);
    events.connect(vm.clone());
    let routes: Vec<_> = (0..3).map(|_| MessageRoute::new(events.counts.clone())).collect();
    routes.iter().for_each(|route| events.bind_message(route, Some(MESSAGE)));
    assert_eq!(routes.iter().map(|route| route.send(MESSAGE)).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!((*vm.refusals.lock(), events.carries_messages()), (1, false));
    // What it has it keeps, until it is given back.
    events.bind_message(&routes[0], None);
    assert!(!routes[0].send(MESSAGE) && vm.routes.lock().is_empty());
}
