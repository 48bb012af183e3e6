//! The transport under a driver that keeps the rules and under one that does not; resets in the middle of requests.

use super::bits::{BAR_SIZE, COMMON, MSIX_PENDING, MSIX_TABLE, NOTIFY, common, feature, isr, status};
use super::*;
use crate::Batch;
use crate::exercise::{Bench, DriverQueue, Piece, Wish, hostile, rigs};
use crate::queue::QueueError;
use device::Msi;
use guest_memory::GuestMemory;
use parking_lot::Condvar;
use proptest::prelude::*;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What the test device does with its next requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Act {
    #[default]
    Complete,
    Fail,
    Panic,
}

/// A device whose requests wait at a gate.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    act: Mutex<Act>,
    changed: Condvar,
    entered: AtomicU32,
}

impl Gate {
    fn set(&self, open: bool, act: Act) {
        *self.act.lock() = act;
        *self.open.lock() = open;
        self.changed.notify_all();
    }

    /// Until so many requests came to the gate.
    fn wait_for(&self, count: u32) {
        while self.entered.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    }
}

/// Two queues, two threads, a byte of configuration.
struct Gated {
    gate: Arc<Gate>,
    transport: Attached,
}

impl VirtioDevice for Gated {
    fn id(&self) -> u16 {
        42
    }
    fn class(&self) -> u32 {
        0xff_0000
    }
    fn features(&self) -> u64 {
        1 << 3
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn workers(&self) -> usize {
        2
    }
    fn rest(&self) -> Duration {
        Duration::ZERO
    }
    fn attach(&self, transport: Weak<dyn Transport>) {
        *self.transport.lock() = Some(transport);
    }
    fn config_read(&self, _offset: usize, data: &mut [u8]) {
        data.fill(7);
    }
    fn config_write(&self, _offset: usize, _data: &[u8], _features: u64) {}
    fn serve(&self, _index: usize, batch: &mut Batch<'_>) -> Result<(), QueueError> {
        while let Some(chain) = batch.pop()? {
            self.gate.entered.fetch_add(1, Ordering::SeqCst);
            let mut open = self.gate.open.lock();
            while !*open {
                self.gate.changed.wait(&mut open);
            }
            drop(open);
            let act = *self.gate.act.lock();
            match act {
                Act::Complete => batch.complete(chain.ticket, 4)?,
                Act::Fail => return Err(QueueError::ChainTooLong),
                Act::Panic => panic!("a device failed, as the test wants"),
            }
        }
        Ok(())
    }
    fn pause(&self) {}
    fn resume(&self) {}
    fn reset(&self) {}
    fn save(&self, name: &str) -> Result<Record, SaveError> {
        Record::new(name, "gated", 1, &())
    }
    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        record.open("gated", 1)
    }
}

const WISH: Wish = Wish { packed: false, event_index: false, msix: true, size: 8, features: 0 };
const RINGS: u64 = 0x1000;
const BUFFER: Piece = Piece { address: 0x8000, len: 16, writable: true };

type Attached = Arc<Mutex<Option<Weak<dyn Transport>>>>;

fn gated(threads: bool) -> (Bench, Arc<Gate>, Attached) {
    let gate = Arc::new(Gate::default());
    gate.set(true, Act::Complete);
    let transport = Arc::default();
    let device = Gated { gate: gate.clone(), transport: Arc::clone(&transport) };
    (Bench::new(Box::new(device), threads), gate, transport)
}

/// Waits for what a worker does; the test runner's own limit ends a wait that nothing ends.
fn wait_until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
}

/// Somebody waits for the first queue.
fn is_recalled(bench: &Bench) -> bool {
    bench.function.function.queues[0].recalled.load(Ordering::SeqCst)
}

#[test]
fn features_are_accepted_only_if_they_fit() {
    let (bench, ..) = gated(false);
    let own = feature::INDIRECT
        | feature::EVENT_INDEX
        | feature::VERSION_1
        | feature::RING_PACKED
        | feature::RING_RESET;
    assert_eq!(bench.features(), own | 1 << 3);
    assert!(bench.negotiate(feature::VERSION_1 | 1 << 3));
    assert!(!bench.negotiate(1 << 3), "without VIRTIO_F_VERSION_1");
    assert!(!bench.negotiate(feature::VERSION_1 | 1 << 33), "VIRTIO_F_ACCESS_PLATFORM is not offered");
    assert!(!bench.negotiate(feature::VERSION_1 | 1 << 2));
    assert!(bench.negotiate(feature::VERSION_1));
    bench.write(COMMON + common::DRIVER_FEATURE_SELECT, 0, 4);
    bench.write(COMMON + common::DRIVER_FEATURE, 1 << 3, 4);
    assert_eq!(bench.read(COMMON + common::DRIVER_FEATURE, 4), 0, "features after FEATURES_OK");
    bench.set_status(status::ACKNOWLEDGE);
    assert_eq!(bench.status(), 0x0b, "a status bit is not taken back but by a reset");
    bench.set_status(0);
    assert_eq!(bench.status(), 0);
    for select in 2..4 {
        bench.write(COMMON + common::DEVICE_FEATURE_SELECT, select, 4);
        assert_eq!(bench.read(COMMON + common::DEVICE_FEATURE, 4), 0);
    }
}

#[test]
fn queue_registers_take_only_what_is_possible() {
    let (bench, ..) = gated(false);
    bench.enable_pci(true);
    bench.write(COMMON + common::QUEUE_ENABLE, 1, 2);
    assert_eq!(bench.read(COMMON + common::QUEUE_ENABLE, 2), 0, "before FEATURES_OK");
    assert!(bench.negotiate(feature::VERSION_1));
    assert_eq!(bench.read(COMMON + common::NUM_QUEUES, 2), 2);
    let size = COMMON + common::QUEUE_SIZE;
    assert_eq!(bench.read(size, 2), 16);
    for (asked, got) in [(8, 8), (0, 8), (7, 8), (32, 8), (16, 16)] {
        bench.write(size, asked, 2);
        assert_eq!(bench.read(size, 2), got, "size {asked}");
    }
    bench.write(COMMON + common::QUEUE_DRIVER, 0x1_2345_6788, 8);
    assert_eq!(bench.read(COMMON + common::QUEUE_DRIVER + 4, 4), 1);
    bench.write(COMMON + common::QUEUE_DRIVER + 4, 2, 4);
    assert_eq!(bench.read(COMMON + common::QUEUE_DRIVER, 8), 0x2_2345_6788);
    bench.write(COMMON + common::QUEUE_VECTOR, 2, 2);
    assert_eq!(bench.read(COMMON + common::QUEUE_VECTOR, 2), 2);
    bench.write(COMMON + common::QUEUE_VECTOR, 3, 2);
    assert_eq!(bench.read(COMMON + common::QUEUE_VECTOR, 2), 0xffff, "a vector that does not exist");
    bench.write(COMMON + common::QUEUE_SELECT, 2, 2);
    assert_eq!(bench.read(size, 2), 0, "a queue that does not exist");
    // With packed rings any size goes (virtio 2.8.10.1).
    assert!(bench.negotiate(feature::VERSION_1 | feature::RING_PACKED));
    bench.write(size, 7, 2);
    assert_eq!(bench.read(size, 2), 7);
}

/// Serves one request and answers the vectors that were signalled.
fn serve_one(bench: &Bench, queue: &mut DriverQueue) -> Vec<u32> {
    bench.offer(queue, &[BUFFER], None).unwrap();
    bench.settle();
    assert!(queue.ring.take_used(&bench.memory).is_some());
    bench.messages()
}

#[test]
fn messages_go_by_vector_mask_and_pending_bit() {
    let (bench, ..) = gated(false);
    let mut queues = bench.start(WISH, RINGS);
    assert_eq!(serve_one(&bench, &mut queues[0]), [1]);
    assert_eq!(serve_one(&bench, &mut queues[1]), [2]);
    bench.set_vector(2, true);
    assert!(serve_one(&bench, &mut queues[1]).is_empty());
    assert_eq!(bench.read(MSIX_PENDING, 8), 1 << 2);
    bench.write(MSIX_TABLE + 2 * 16 + 12, 0, 4);
    assert_eq!((bench.messages(), bench.read(MSIX_PENDING, 8)), (vec![2], 0));
    // The function's mask.
    let control = bench.msix_control();
    bench.function.config_write(control, &0xc000_u16.to_le_bytes());
    assert!(serve_one(&bench, &mut queues[0]).is_empty());
    assert_eq!(bench.read(MSIX_PENDING, 8), 1 << 1);
    bench.function.config_write(control, &0x8000_u16.to_le_bytes());
    assert_eq!(bench.messages(), [1]);
    bench.write(COMMON + common::QUEUE_SELECT, 0, 2);
    bench.write(COMMON + common::QUEUE_VECTOR, 0xffff, 2);
    assert!(serve_one(&bench, &mut queues[0]).is_empty(), "VIRTIO_MSI_NO_VECTOR");
    assert_eq!((bench.isr(), bench.line()), (0, false));
}

#[test]
fn without_msix_the_wire_follows_the_isr_status() {
    let (bench, ..) = gated(false);
    let mut queues = bench.start(Wish { msix: false, ..WISH }, RINGS);
    assert!(serve_one(&bench, &mut queues[1]).is_empty());
    assert!(bench.line());
    bench.function.config_write(4, &0x0406_u16.to_le_bytes());
    assert!(!bench.line(), "INTx disabled");
    bench.function.config_write(4, &0x0006_u16.to_le_bytes());
    assert!(bench.line());
    assert_eq!((bench.isr(), bench.line(), bench.isr()), (isr::QUEUE, false, 0));
}

#[test]
fn a_driver_that_breaks_a_ring_is_asked_to_reset() {
    let (bench, ..) = gated(false);
    let mut queues = bench.start(WISH, RINGS);
    bench.memory.write(queues[0].ring.places().driver + 2, &100_u16.to_le_bytes()).unwrap();
    bench.write(NOTIFY, 0, 2);
    bench.settle();
    assert_eq!(bench.status(), 0x4f);
    assert_eq!(bench.messages(), [0], "the configuration's vector");
    bench.offer(&mut queues[1], &[BUFFER], None).unwrap();
    bench.settle();
    assert_eq!(queues[1].ring.take_used(&bench.memory), None, "nothing is served");
    let mut queues = bench.start(WISH, RINGS);
    assert_eq!(serve_one(&bench, &mut queues[0]), [1], "after the reset");
}

#[test]
fn a_device_that_panics_is_stopped_alone() {
    let (bench, gate, _) = gated(true);
    let mut queues = bench.start(WISH, RINGS);
    gate.set(true, Act::Panic);
    bench.offer(&mut queues[0], &[BUFFER], None).unwrap();
    wait_until(|| bench.status() & status::NEEDS_RESET != 0);
    gate.set(true, Act::Complete);
    // Its worker is not stuck, its state can be saved, and it works again after a reset.
    bench.save();
    let mut queues = bench.start(WISH, RINGS);
    bench.offer(&mut queues[0], &[BUFFER], None).unwrap();
    wait_until(|| queues[0].ring.take_used(&bench.memory).is_some());
}

/// The status reads 0 only when nothing is in flight, and what ends late has no effect (virtio 2.4.1).
#[test]
fn a_reset_waits_for_the_request_and_silences_it() {
    for act in [Act::Complete, Act::Fail, Act::Panic] {
        let (bench, gate, _) = gated(true);
        let mut queues = bench.start(WISH, RINGS);
        gate.set(false, act);
        bench.offer(&mut queues[0], &[BUFFER], None).unwrap();
        bench.offer(&mut queues[0], &[BUFFER], None).unwrap();
        gate.wait_for(1);
        std::thread::scope(|scope| {
            let reset = scope.spawn(|| bench.set_status(0));
            wait_until(|| is_recalled(&bench));
            // The reset cannot be over while the request is at the gate.
            for _ in 0..1000 {
                assert!(!reset.is_finished());
                assert_ne!(bench.status(), 0);
                std::thread::yield_now();
            }
            gate.set(true, act);
        });
        assert_eq!((bench.status(), bench.isr()), (0, 0), "{act:?}");
        assert_eq!(gate.entered.load(Ordering::SeqCst), 1, "the second request is not begun");
        let ring: Vec<u8> = (0..64).collect();
        bench.memory.write(RINGS, &ring).unwrap();
        bench.save();
        assert!(bench.messages().is_empty(), "{act:?}");
        assert_eq!((bench.status(), bench.isr()), (0, 0), "{act:?}");
        let mut after = [0; 64];
        bench.memory.read(RINGS, &mut after).unwrap();
        assert_eq!(after[..], ring);
    }
}

#[test]
fn one_queue_is_reset_and_enabled_again() {
    let (bench, gate, _) = gated(true);
    let mut queues = bench.start(WISH, RINGS);
    gate.set(false, Act::Complete);
    bench.offer(&mut queues[0], &[BUFFER], None).unwrap();
    gate.wait_for(1);
    bench.write(COMMON + common::QUEUE_SELECT, 0, 2);
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| bench.write(COMMON + common::QUEUE_RESET, 1, 2));
        wait_until(|| is_recalled(&bench));
        for _ in 0..1000 {
            assert!(!reset.is_finished());
            std::thread::yield_now();
        }
        gate.set(true, Act::Complete);
    });
    assert_eq!(bench.read(COMMON + common::QUEUE_RESET, 2), 0);
    assert_eq!(bench.read(COMMON + common::QUEUE_ENABLE, 2), 0);
    assert_eq!(bench.read(COMMON + common::QUEUE_SIZE, 2), 16);
    bench.save();
    assert!(bench.messages().is_empty(), "an interrupt of a queue that was reset");
    bench.offer(&mut queues[1], &[BUFFER], None).unwrap();
    wait_until(|| queues[1].ring.take_used(&bench.memory).is_some());
    let mut again = bench.start_queue(0, WISH, 0x6000);
    bench.offer(&mut again, &[BUFFER], None).unwrap();
    wait_until(|| again.ring.take_used(&bench.memory).is_some());
    assert_eq!(bench.status(), 0x0f);
}

#[test]
fn nothing_is_served_before_driver_ok_and_bus_mastering() {
    let (bench, gate, _) = gated(false);
    let mut queues = bench.start(WISH, RINGS);
    bench.function.config_write(4, &0x0002_u16.to_le_bytes());
    bench.offer(&mut queues[0], &[BUFFER], None).unwrap();
    bench.settle();
    assert_eq!(gate.entered.load(Ordering::SeqCst), 0);
    bench.function.config_write(4, &0x0006_u16.to_le_bytes());
    bench.settle();
    assert_eq!(gate.entered.load(Ordering::SeqCst), 1);
}

#[test]
fn a_changed_configuration_has_another_generation_and_interrupts() {
    let (bench, _, transport) = gated(false);
    let transport = transport.lock().clone().and_then(|weak| weak.upgrade()).unwrap();
    bench.start(WISH, RINGS);
    let before = bench.read(COMMON + common::GENERATION, 1);
    let mut changed = false;
    transport.change_config(&mut || changed = true);
    assert!(changed);
    assert_ne!(bench.read(COMMON + common::GENERATION, 1), before);
    assert_eq!(bench.messages(), [0]);
    bench.set_status(0);
    transport.change_config(&mut || ());
    assert!(bench.messages().is_empty(), "before DRIVER_OK");
}

/// virtio 4.1.4.9.
#[test]
fn registers_are_reached_through_configuration_space() {
    let (bench, ..) = gated(false);
    let mut access = 0;
    let mut header = [0; 4];
    for at in (0x40..0xf0).step_by(4) {
        bench.function.config_read(at, &mut header);
        if header[0] == 9 && header[3] == 5 {
            access = at;
        }
    }
    let go_to = |bar: u8, offset: u32, length: u32| {
        bench.function.config_write(access + 4, &[bar]);
        bench.function.config_write(access + 8, &offset.to_le_bytes());
        bench.function.config_write(access + 12, &length.to_le_bytes());
    };
    go_to(0, common::STATUS as u32, 1);
    bench.function.config_write(access + 16, &[status::ACKNOWLEDGE]);
    assert_eq!(bench.status(), 1);
    go_to(0, common::NUM_QUEUES as u32, 2);
    let mut data = [0xff; 4];
    bench.function.config_read(access + 16, &mut data);
    assert_eq!(data, [2, 0, 0, 0]);
    // Another BAR, a length that is none, and an offset past the end reach nothing.
    for (bar, offset, length) in [(1, 0x14, 1), (0, 0x14, 3), (0, BAR_SIZE as u32, 1)] {
        go_to(bar, offset, length);
        bench.function.config_write(access + 16, &[3, 0, 0, 0]);
        assert_eq!(bench.status(), 1);
    }
}

/// A sink that looks at the function's registers: it would wait for ever if a lock were held.
struct Curious(Mutex<Weak<VirtioPci>>, AtomicU32);

impl MsiSink for Curious {
    fn signal(&self, _msi: Msi) {
        let function = self.0.lock().upgrade();
        function.iter().for_each(|function| function.write(0, COMMON + common::QUEUE_SELECT, &[0, 0]));
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

struct Nowhere;

impl device::InterruptSink for Nowhere {
    fn set_level(&self, _gsi: u32, _asserted: bool) {}
}

#[test]
fn no_lock_is_held_while_an_interrupt_is_delivered() {
    let sink = Arc::new(Curious(Mutex::new(Weak::new()), AtomicU32::new(0)));
    let memory = Arc::new(GuestMemory::new(&[(0, 0x1_0000)]).unwrap());
    let line = IrqLine::new(Arc::new(Nowhere), 0);
    let wiring = PciWiring { memory, msi: sink.clone(), line, events: None, packed: false };
    let function = VirtioPci::new("curious", rigs::entropy(), wiring).unwrap();
    *sink.0.lock() = Arc::downgrade(&function);
    let write = |offset: u64, bytes: &[u8]| function.write(0, offset, bytes);
    function.config_write(4, &[6, 0]);
    let mut at = [0];
    function.config_read(0x34, &mut at);
    while at[0] != 0 {
        let mut id = [0];
        function.config_read(at[0].into(), &mut id);
        if id[0] == 0x11 {
            function.config_write(u16::from(at[0]) + 2, &[0, 0x80]);
        }
        function.config_read(u16::from(at[0]) + 1, &mut at);
    }
    write(MSIX_TABLE + 12, &[0; 4]);
    write(COMMON + common::CONFIG_VECTOR, &[0, 0]);
    write(COMMON + common::DRIVER_FEATURE_SELECT, &[1, 0, 0, 0]);
    write(COMMON + common::DRIVER_FEATURE, &[1, 0, 0, 0]);
    write(COMMON + common::STATUS, &[0xb]);
    // A queue at an odd address is an error, which the configuration's vector tells.
    write(COMMON + common::QUEUE_DRIVER, &1_u64.to_le_bytes());
    write(COMMON + common::QUEUE_ENABLE, &[1, 0]);
    write(COMMON + common::STATUS, &[0xf]);
    wait_until(|| sink.1.load(Ordering::SeqCst) > 0);
}

#[test]
fn records_of_others_and_impossible_states_are_refused() {
    let (bench, ..) = gated(false);
    bench.start(WISH, RINGS);
    let good = bench.save();
    let other = Bench::new(rigs::entropy(), false);
    assert!(other.function.restore(&good).is_err());
    type Spoil = fn(&mut VirtioPciState);
    let spoils: [Spoil; 6] = [
        |state| state.queues[0].ring.size = 0,
        |state| state.queues[0].ring.size = 32,
        |state| state.queues[1].vector = 9,
        |state| state.queues.truncate(1),
        |state| state.msix.truncate(1),
        |state| state.driver_features |= 1 << 50,
    ];
    for spoil in spoils {
        let mut state: VirtioPciState = good.open(state::KIND, state::VERSION).unwrap();
        spoil(&mut state);
        let record = Record::new("device0", state::KIND, state::VERSION, &state).unwrap();
        assert!(bench.function.restore(&record).is_err());
    }
    bench.function.restore(&good).unwrap();
}

#[test]
fn threads_that_reset_and_enable_at_will_harm_nobody() {
    for (_, build) in rigs::DEVICES {
        let bench = Bench::new(build(), true);
        std::thread::scope(|scope| {
            for seed in 0..3 {
                let bench = &bench;
                scope.spawn(move || hostile::run(bench, &hostile::random_program(seed, 6000)));
            }
        });
        bench.save();
        bench.function.reset();
        assert_eq!(bench.status(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn hostile_drivers_harm_nobody(device in 0..rigs::DEVICES.len(), program in prop::collection::vec(any::<u8>(), 0..1500)) {
        hostile::check(rigs::DEVICES[device].1, &program);
    }
}
