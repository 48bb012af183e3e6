//! The transport on a host that carries notifications and messages, beside one on a host that carries none.

use super::bits::{COMMON, MSIX_PENDING, NOTIFY, common};
use crate::exercise::{Bench, DriverQueue, Piece, RAM, Wish};
use crate::queue::QueueError;
use crate::{Batch, Transport, VirtioDevice};
use device::pci::{Bar, BarKind, PciFunction};
use device::{Device, Doorbell, EventCounts, HostEvents, MessageRoute, Msi, Record, SaveError};
use guest_memory::GuestMemory;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A host that binds everything, while it wants to.
#[derive(Default)]
struct Host {
    counts: Arc<EventCounts>,
    refuses: AtomicBool,
    doorbells: Mutex<Vec<(Arc<Doorbell>, u64)>>,
    routes: Mutex<Vec<(Arc<MessageRoute>, Msi)>>,
}

impl HostEvents for Host {
    fn counts(&self) -> Arc<EventCounts> {
        self.counts.clone()
    }
    fn bind_doorbell(&self, doorbell: &Arc<Doorbell>, address: Option<u64>) {
        let mut doorbells = self.doorbells.lock();
        doorbells.retain(|(bound, _)| !Arc::ptr_eq(bound, doorbell));
        doorbell.set_bound(false);
        if let Some(address) = address.filter(|_| !self.refuses.load(Ordering::SeqCst)) {
            doorbell.event().descriptor().unwrap();
            doorbell.set_bound(true);
            doorbells.push((doorbell.clone(), address));
        }
    }
    fn carries_messages(&self) -> bool {
        !self.refuses.load(Ordering::SeqCst)
    }
    fn bind_message(&self, route: &Arc<MessageRoute>, message: Option<Msi>) {
        let mut routes = self.routes.lock();
        routes.retain(|(bound, _)| !Arc::ptr_eq(bound, route));
        route.rebind(|event, _| event.descriptor().ok().and(message));
        routes.extend(message.map(|message| (route.clone(), message)));
    }
}

impl Host {
    /// A guest's write to an address; whether the host took it.
    fn notify(&self, address: u64) -> bool {
        let doorbells = self.doorbells.lock();
        let bound = doorbells.iter().find(|(_, at)| *at == address);
        bound.inspect(|(doorbell, _)| doorbell.event().signal()).is_some()
    }

    fn addresses(&self) -> Vec<u64> {
        let mut addresses: Vec<u64> = self.doorbells.lock().iter().map(|(_, at)| *at).collect();
        addresses.sort_unstable();
        addresses
    }

    /// Data of the messages sent by routes since this was last asked.
    fn messages(&self) -> Vec<u32> {
        let taken = |(route, message): &(Arc<MessageRoute>, Msi)| {
            let mut sent = 0;
            route.rebind(|event, bound| {
                sent = event.take() as usize;
                bound
            });
            vec![message.data; sent]
        };
        self.routes.lock().iter().flat_map(taken).collect()
    }
}

/// Three queues on two workers; gives everything back at once.
struct Echo;

impl VirtioDevice for Echo {
    fn id(&self) -> u16 {
        42
    }
    fn class(&self) -> u32 {
        0xff_0000
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 8, 8]
    }
    fn workers(&self) -> usize {
        2
    }
    fn rest(&self) -> Duration {
        Duration::ZERO
    }
    fn attach(&self, _transport: Weak<dyn Transport>) {}
    fn config_read(&self, _offset: usize, _data: &mut [u8]) {}
    fn config_write(&self, _offset: usize, _data: &[u8], _features: u64) {}
    fn serve(&self, _index: usize, batch: &mut Batch<'_>) -> Result<(), QueueError> {
        while let Some(chain) = batch.pop()? {
            batch.complete(chain.ticket, 4)?;
        }
        Ok(())
    }
    fn pause(&self) {}
    fn resume(&self) {}
    fn reset(&self) {}
    fn save(&self, name: &str) -> Result<Record, SaveError> {
        Record::new(name, "echo", 1, &())
    }
    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        record.open("echo", 1)
    }
}

const WISH: Wish = Wish { packed: false, event_index: false, msix: true, size: 8, features: 0 };
const RINGS: u64 = 0x1000;
const BUFFER: Piece = Piece { address: 0x8000, len: 16, writable: true };
const HERE: u64 = 0xd000_0000;
const THERE: u64 = 0xd080_0000;

fn bar(address: u64) -> [Bar; 1] {
    [Bar { index: 0, kind: BarKind::Memory64, address, size: super::bits::BAR_SIZE }]
}

/// A function whose BAR is mapped, with its driver's queues.
fn bench(threads: bool) -> (Bench, Arc<Host>, Vec<DriverQueue>) {
    let host = Arc::new(Host::default());
    let memory = Arc::new(GuestMemory::new(&RAM).unwrap());
    let bench = Bench::wired(memory, Box::new(Echo), threads, Some(host.clone()));
    bench.function.bars_mapped(&bar(HERE));
    let queues = bench.start(WISH, RINGS);
    (bench, host, queues)
}

/// Makes a request available without telling the device.
fn add(bench: &Bench, queue: &mut DriverQueue) {
    queue.ring.add(&bench.memory, &[BUFFER], None).unwrap();
}

/// Until a queue gave a request back.
fn wait_used(bench: &Bench, queue: &mut DriverQueue) {
    let end = Instant::now() + Duration::from_secs(60);
    while queue.ring.take_used(&bench.memory).is_none() {
        assert!(Instant::now() < end, "the request is not served");
        std::thread::yield_now();
    }
}

#[test]
fn doorbells_are_where_enabled_queues_are() {
    let host = Arc::new(Host::default());
    let memory = Arc::new(GuestMemory::new(&RAM).unwrap());
    let bench = Bench::wired(memory, Box::new(Echo), false, Some(host.clone()));
    let all = |base: u64| (0..3).map(|queue| base + NOTIFY + 4 * queue).collect::<Vec<_>>();
    bench.function.bars_mapped(&bar(HERE));
    assert!(host.addresses().is_empty(), "no queue is enabled");
    bench.start(WISH, RINGS);
    assert_eq!(host.addresses(), all(HERE));
    bench.function.bars_mapped(&bar(THERE));
    assert_eq!(host.addresses(), all(THERE));
    bench.write(COMMON + common::QUEUE_SELECT, 1, 2);
    bench.write(COMMON + common::QUEUE_RESET, 1, 2);
    assert_eq!(host.addresses(), [all(THERE)[0], all(THERE)[2]]);
    bench.function.bars_mapped(&[]);
    assert!(host.addresses().is_empty());
    bench.function.bars_mapped(&bar(HERE));
    assert_eq!(host.addresses(), [all(HERE)[0], all(HERE)[2]]);
    bench.set_status(0);
    assert!(host.addresses().is_empty());
    bench.start(WISH, RINGS);
    bench.function.reset();
    assert!(host.addresses().is_empty() && host.routes.lock().is_empty());
}

#[test]
fn workers_wake_for_doorbells_and_for_all_that_woke_them_before() {
    let (bench, host, mut queues) = bench(true);
    for round in 0..200 {
        for (index, queue) in queues.iter_mut().enumerate() {
            add(&bench, queue);
            // Also by the register, which guests may write with another length.
            match (round + index) % 3 {
                0 => bench.write(NOTIFY + 4 * index as u64, index as u64, 2),
                _ => assert!(host.notify(HERE + NOTIFY + 4 * index as u64)),
            }
        }
        queues.iter_mut().for_each(|queue| wait_used(&bench, queue));
    }
    // What the host takes while a device stands is served when it goes on.
    bench.function.pause();
    add(&bench, &mut queues[0]);
    assert!(host.notify(HERE + NOTIFY));
    let saved = bench.function.save().unwrap();
    bench.function.resume();
    wait_used(&bench, &mut queues[0]);
    let restored = Bench::on(bench.memory.clone(), Box::new(Echo), false);
    restored.function.restore(&saved).unwrap();
    assert!(restored.function.serve_now(), "a saved state that was notified is served");
    let by_event = host.counts.all()[0].1;
    assert!(by_event > 300, "{by_event} by event");
}

#[test]
fn a_doorbell_that_was_rung_is_not_lost_with_its_place() {
    let (bench, host, mut queues) = bench(false);
    bench.settle();
    for change in [&bar(THERE)[..], &[], &bar(HERE)] {
        add(&bench, &mut queues[1]);
        let address = host.addresses().get(1).copied();
        match address {
            Some(address) => assert!(host.notify(address)),
            None => bench.write(NOTIFY + 4, 1, 2),
        }
        bench.function.bars_mapped(change);
        bench.settle();
        assert!(queues[1].ring.take_used(&bench.memory).is_some(), "after {change:?}");
    }
}

/// What a driver may do.
#[derive(Clone, Debug)]
enum Step {
    Offer { queue: usize },
    Notify { queue: usize },
    MapAt(Option<u64>),
    Vector { vector: u64, data: u32, masked: bool },
    FunctionMask { enabled: bool, masked: bool },
    Serve,
    HostRefuses(bool),
    ConfigChange,
    ResetQueue { queue: u16 },
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_usize).prop_map(|queue| Step::Offer { queue }),
        6 => (0..3_usize).prop_map(|queue| Step::Notify { queue }),
        2 => prop_oneof![Just(None), Just(Some(HERE)), Just(Some(THERE))].prop_map(Step::MapAt),
        4 => (0..4_u64, 0..4_u32, any::<bool>())
            .prop_map(|(vector, data, masked)| Step::Vector { vector, data, masked }),
        2 => any::<(bool, bool)>().prop_map(|(enabled, masked)| Step::FunctionMask { enabled, masked }),
        6 => Just(Step::Serve),
        1 => any::<bool>().prop_map(Step::HostRefuses),
        1 => Just(Step::ConfigChange),
        1 => (0..3_u16).prop_map(|queue| Step::ResetQueue { queue }),
    ]
}

impl Step {
    fn take(&self, bench: &Bench, host: Option<&Host>, queues: &mut [DriverQueue]) {
        match *self {
            Step::Offer { queue } => drop(queues[queue].ring.add(&bench.memory, &[BUFFER], None)),
            Step::Notify { queue } => {
                let offset = NOTIFY + 4 * queue as u64;
                let address =
                    host.and_then(|host| host.addresses().into_iter().find(|at| at & 0x7fff == offset));
                if !address.is_some_and(|address| host.is_some_and(|host| host.notify(address))) {
                    bench.write(offset, queue as u64, 2);
                }
            }
            Step::MapAt(address) => {
                bench.function.bars_mapped(&address.map(bar).into_iter().flatten().collect::<Vec<_>>());
            }
            Step::Vector { vector, data, masked } => {
                let at = super::bits::MSIX_TABLE + 16 * vector;
                bench.write(at, 0xfee0_0000, 8);
                bench.write(at + 8, data.into(), 4);
                bench.write(at + 12, masked.into(), 4);
            }
            Step::FunctionMask { enabled, masked } => {
                let value = u16::from(enabled) << 15 | u16::from(masked) << 14;
                bench.function.config_write(bench.msix_control(), &value.to_le_bytes());
            }
            Step::Serve => bench.settle(),
            Step::HostRefuses(refuses) => {
                host.into_iter().for_each(|host| host.refuses.store(refuses, Ordering::SeqCst));
            }
            Step::ConfigChange => bench.function.function.change_config(&mut || ()),
            Step::ResetQueue { queue } => {
                bench.write(COMMON + common::QUEUE_SELECT, queue.into(), 2);
                bench.write(COMMON + common::QUEUE_RESET, 1, 2);
                queues[usize::from(queue)] =
                    bench.start_queue(queue, WISH, RINGS + 0x1000 * u64::from(queue));
            }
        }
    }
}

/// What a driver sees after a step: messages in no order, pending bits, the wire, what was used.
fn seen(bench: &Bench, host: Option<&Host>, queues: &mut [DriverQueue]) -> (Vec<u32>, u64, bool, Vec<u32>) {
    let mut messages = bench.messages();
    messages.extend(host.iter().flat_map(|host| host.messages()));
    messages.sort_unstable();
    let used = |queue: &mut DriverQueue| {
        std::iter::from_fn(|| queue.ring.take_used(&bench.memory)).map(|(_, len)| len).sum::<u32>()
    };
    (messages, bench.read(MSIX_PENDING, 8), bench.line(), queues.iter_mut().map(used).collect())
}

proptest! {
    #[test]
    fn drivers_see_the_same_with_and_without_events(steps in prop::collection::vec(steps(), 1..120)) {
        let plain = Bench::on(Arc::new(GuestMemory::new(&RAM).unwrap()), Box::new(Echo), false);
        let mut plain_queues = plain.start(WISH, RINGS);
        let (bench, host, mut queues) = bench(false);
        for (number, step) in steps.iter().enumerate() {
            step.take(&plain, None, &mut plain_queues);
            step.take(&bench, Some(&host), &mut queues);
            let (expected, found) =
                (seen(&plain, None, &mut plain_queues), seen(&bench, Some(&host), &mut queues));
            prop_assert_eq!(found, expected, "after step {} of {:?}", number, steps);
        }
    }
}
