//! The device's side against drivers written from the specification, and against rings that keep no rule.

use super::*;
use crate::exercise::{DriverRing, PackedDriver, Piece, RingPlaces, SplitDriver, put};
use device::exercise::noise;
use guest_memory::GuestMemory;
use proptest::prelude::*;
use std::collections::VecDeque;

const BASE: u64 = 0x1000;
const TABLES: u64 = 0x8000;

fn memory() -> GuestMemory {
    GuestMemory::new(&[(0, 0x10_0000)]).unwrap()
}

#[derive(Clone, Copy, Debug)]
struct Layout {
    packed: bool,
    event_index: bool,
    size: u16,
}

fn start(memory: &GuestMemory, layout: Layout) -> (Box<dyn DriverRing>, Queue) {
    let Layout { packed, event_index, size } = layout;
    let driver: Box<dyn DriverRing> = match packed {
        true => Box::new(PackedDriver::new(memory, BASE, size, event_index)),
        false => Box::new(SplitDriver::new(memory, BASE, size, event_index)),
    };
    let queue = Queue::new(state(driver.places(), layout).started());
    (driver, queue)
}

fn state(places: RingPlaces, layout: Layout) -> RingState {
    RingState {
        packed: layout.packed,
        indirect: true,
        event_index: layout.event_index,
        size: layout.size,
        descriptors: places.descriptors,
        available: places.driver,
        used: places.device,
        ..RingState::default()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Lengths of readable and of writable buffers; indirect.
    Add(Vec<u32>, Vec<u32>, bool),
    /// The device serves so many requests at most.
    Serve(u8),
    /// The driver takes what is used.
    Collect,
    /// The driver wants interrupts, or none.
    Interrupts(bool),
    /// The device is saved and another goes on.
    Move,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lengths = || prop::collection::vec(1_u32..5000, 0..4);
    let step = prop_oneof![
        4 => (lengths(), lengths(), any::<bool>()).prop_map(|(r, w, i)| Step::Add(r, w, i)),
        3 => (0_u8..6).prop_map(Step::Serve),
        2 => Just(Step::Collect),
        1 => any::<bool>().prop_map(Step::Interrupts),
        1 => Just(Step::Move),
    ];
    prop::collection::vec(step, 1..200)
}

fn layouts() -> impl Strategy<Value = Layout> {
    (any::<bool>(), any::<bool>(), 0_u16..6, 1_u16..40).prop_map(|(packed, event_index, power, any_size)| {
        Layout { packed, event_index, size: if packed { any_size } else { 1 << power } }
    })
}

/// What must hold at every moment.
struct Run {
    memory: GuestMemory,
    driver: Box<dyn DriverRing>,
    queue: Queue,
    /// Under way, in order: identity, pieces.
    available: VecDeque<(u16, Vec<Piece>)>,
    /// Served and not collected: identity, length.
    served: VecDeque<(u16, u32)>,
    /// The device found the queue empty and will not look again by itself.
    asleep: bool,
    /// The driver armed interrupts after it had collected everything, and got none since.
    armed: bool,
    silent: bool,
    count: u64,
}

impl Run {
    fn add(&mut self, readable: &[u32], writable: &[u32], indirect: bool) {
        let mut address = 0x2_0000 + self.count * 64;
        let mut piece = |&len: &u32, writable| {
            address += 0x10;
            Piece { address, len, writable }
        };
        let mut pieces: Vec<Piece> = readable.iter().map(|len| piece(len, false)).collect();
        pieces.extend(writable.iter().map(|len| piece(len, true)));
        let table = indirect.then_some(TABLES + self.count % 64 * 256);
        self.count += 1;
        // A table that is under way must not be overwritten.
        if indirect && self.available.len() > 60 {
            return;
        }
        let Some(id) = self.driver.add(&self.memory, &pieces, table) else { return };
        self.available.push_back((id, pieces));
        let notified = self.driver.must_notify(&self.memory);
        assert!(notified || !self.asleep, "the device sleeps and asked for no notification");
        self.asleep &= !notified;
    }

    fn serve(&mut self, most: u8) {
        for _ in 0..most {
            let Some(chain) = self.queue.pop(&self.memory).unwrap() else {
                assert!(self.available.is_empty(), "an available request was not seen");
                self.asleep = true;
                break;
            };
            let (id, pieces) = self.available.pop_front().expect("a request that was not made");
            let buffers = |writable| -> Vec<Buffer> {
                let of_kind = pieces.iter().filter(|piece| piece.writable == writable);
                of_kind.map(|piece| Buffer { address: piece.address, len: piece.len }).collect()
            };
            assert_eq!(chain.ticket.id, id);
            assert_eq!(chain.readable(), buffers(false));
            assert_eq!(chain.writable(), buffers(true));
            let written = (chain.writable_len() / 2) as u32;
            self.queue.push_used(&self.memory, chain.ticket, written).unwrap();
            self.served.push_back((id, written));
        }
        let interrupt = self.queue.wants_interrupt(&self.memory).unwrap();
        let fresh = !self.served.is_empty();
        assert!(!self.armed || !fresh || interrupt, "an interrupt that the driver waits for does not come");
        assert!(!(interrupt && self.silent), "an interrupt that nobody wants");
        self.armed &= !interrupt;
    }

    fn collect(&mut self) {
        while let Some(used) = self.driver.take_used(&self.memory) {
            assert_eq!(Some(used), self.served.pop_front());
        }
        assert!(self.served.is_empty(), "a used request is not seen");
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Add(readable, writable, indirect) => self.add(readable, writable, *indirect),
            Step::Serve(most) => self.serve(*most),
            Step::Collect => self.collect(),
            Step::Interrupts(on) => {
                // By the book: arm, then look once more.
                self.driver.want_interrupts(&self.memory, *on);
                self.collect();
                self.driver.want_interrupts(&self.memory, *on);
                (self.armed, self.silent) = (*on, !*on);
            }
            Step::Move => {
                let state = self.queue.state();
                assert!(state.is_sound(64));
                self.queue = Queue::new(state);
                // Whoever restores looks at all queues once.
                self.serve(0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_request_comes_back_once_and_nobody_oversleeps(layout in layouts(), steps in steps()) {
        let memory = memory();
        let (driver, queue) = start(&memory, layout);
        let mut run = Run {
            memory,
            driver,
            queue,
            available: VecDeque::new(),
            served: VecDeque::new(),
            asleep: false,
            armed: false,
            silent: false,
            count: 0,
        };
        for step in &steps {
            run.step(step);
        }
        run.serve(u8::MAX);
        run.collect();
        prop_assert!(run.available.is_empty());
    }

    /// Any answer is right but a panic, an endless loop, a chain past the limits, or a place outside of the ring.
    #[test]
    fn random_rings_harm_nobody(layout in layouts(), seed in any::<u64>(), mask in any::<u64>()) {
        let memory = memory();
        let (_, mut queue) = start(&memory, layout);
        for (at, value) in (BASE..BASE + 0x600).step_by(8).zip(noise(seed)) {
            // Descriptors with plausible flags and small lengths, or anything.
            let value = if value >> 60 < 12 { value & mask & 0x8087_000f_0000_ffff } else { value };
            put(&memory, at, &value.to_le_bytes());
        }
        for _ in 0..200 {
            match queue.pop(&memory) {
                Ok(Some(chain)) => {
                    prop_assert!(chain.buffers() <= CHAIN_MAX as usize);
                    prop_assert!(chain.writable_len() <= u64::from(u32::MAX));
                    let _ = queue.push_used(&memory, chain.ticket, 1);
                    let _ = queue.wants_interrupt(&memory);
                }
                _ => break,
            }
            prop_assert!(queue.state().is_sound(layout.size));
        }
    }
}

fn piece(address: u64, len: u32, writable: bool) -> Piece {
    Piece { address, len, writable }
}

/// Offers one chain whose descriptors are written by hand: (address, length, flags, next).
fn offer_split(memory: &GuestMemory, descriptors: &[(u64, u32, u16, u16)]) -> Queue {
    let (_, queue) = start(memory, Layout { packed: false, event_index: false, size: 8 });
    for (i, (address, len, flags, next)) in descriptors.iter().enumerate() {
        let at = BASE + 16 * i as u64;
        put(memory, at, &address.to_le_bytes());
        put(memory, at + 8, &len.to_le_bytes());
        put(memory, at + 12, &flags.to_le_bytes());
        put(memory, at + 14, &next.to_le_bytes());
    }
    put(memory, BASE + 128 + 2, &1_u16.to_le_bytes());
    queue
}

/// The tables of virtio 2.7, byte by byte: the model driver is not the only witness.
#[test]
fn a_split_chain_is_read_and_given_back_as_the_tables_say() {
    let memory = memory();
    let mut queue =
        offer_split(&memory, &[(0x5000, 16, 1, 3), (0, 0, 0, 0), (0, 0, 0, 0), (0x6000, 512, 2, 0)]);
    let chain = queue.pop(&memory).unwrap().unwrap();
    assert_eq!(chain.readable(), [Buffer { address: 0x5000, len: 16 }]);
    assert_eq!(chain.writable(), [Buffer { address: 0x6000, len: 512 }]);
    queue.push_used(&memory, chain.ticket, 8).unwrap();
    let mut used = [0xff; 12];
    memory.read(BASE + 128 + 24, &mut used).unwrap();
    assert_eq!(used, [1, 0, 1, 0, 0, 0, 0, 0, 8, 0, 0, 0]);
}

/// The example of virtio 2.8.1: AVAIL 1, USED 0 in the first lap; both 1 when used.
#[test]
fn a_packed_descriptor_is_given_back_as_the_text_says() {
    let memory = memory();
    let layout = Layout { packed: true, event_index: false, size: 3 };
    let (mut driver, mut queue) = start(&memory, layout);
    driver.add(&memory, &[piece(0x5000, 16, false), piece(0x6000, 32, true)], None).unwrap();
    let mut flags = [0; 2];
    memory.read(BASE + 14, &mut flags).unwrap();
    assert_eq!(u16::from_le_bytes(flags), 1 | 1 << 7);
    let chain = queue.pop(&memory).unwrap().unwrap();
    assert_eq!(chain.ticket.span, 2);
    queue.push_used(&memory, chain.ticket, 32).unwrap();
    let mut descriptor = [0; 8];
    memory.read(BASE + 8, &mut descriptor).unwrap();
    assert_eq!(descriptor, [32, 0, 0, 0, 2, 0, 0x82, 0x80]);
    assert_eq!(queue.state().next_used, 2 | 1 << 15);
    // One more of two descriptors does not fit; one does, and wraps both counters.
    assert_eq!(driver.take_used(&memory), Some((2, 32)));
    driver.add(&memory, &[piece(0x5000, 16, false), piece(0x6000, 32, true)], None).unwrap();
    let chain = queue.pop(&memory).unwrap().unwrap();
    queue.push_used(&memory, chain.ticket, 0).unwrap();
    assert_eq!((queue.state().next_used, queue.state().next_available), (1, 1));
}

#[test]
fn broken_split_chains_are_errors() {
    type Case<'a> = (&'a str, &'a [(u64, u32, u16, u16)]);
    let cases: [Case<'_>; 7] = [
        ("loop", &[(0x5000, 1, 1, 0)]),
        ("next beyond the table", &[(0x5000, 1, 1, 8)]),
        ("odd indirect table", &[(0x5000, 17, 4, 0)]),
        ("empty indirect table", &[(0x5000, 0, 4, 0)]),
        ("indirect and next", &[(0x5000, 16, 5, 1)]),
        ("indirect table outside of RAM", &[(u64::MAX - 15, 16, 4, 0)]),
        ("readable after writable", &[(0x5000, 1, 3, 1), (0x5000, 1, 0, 0)]),
    ];
    for (name, descriptors) in cases {
        let memory = memory();
        assert!(offer_split(&memory, descriptors).pop(&memory).is_err(), "{name}");
    }
    let memory = memory();
    let mut queue = offer_split(&memory, &[(0x5000, 16, 4, 0)]);
    put(&memory, 0x5000, &[0x00, 0x50, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 4, 0, 0, 0]);
    assert!(queue.pop(&memory).is_err(), "indirect table in itself");
    let huge = [(0x5000, u32::MAX, 1, 1), (0x5000, 1, 0, 0)];
    assert!(offer_split(&memory, &huge).pop(&memory).is_err(), "more than 4 GiB");
    let mut queue = offer_split(&memory, &[(0x5000, 1, 0, 0)]);
    put(&memory, BASE + 128 + 2, &9_u16.to_le_bytes());
    assert!(queue.pop(&memory).is_err(), "available index ran ahead");
}

/// virtio 2.7.5.3.2: buffers of the ring may precede the table.
#[test]
fn a_table_may_end_a_split_chain_but_not_a_packed_one() {
    let memory = memory();
    put(&memory, 0x5000, &[0x00, 0x60, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0]);
    let mut queue = offer_split(&memory, &[(0x7000, 4, 1, 1), (0x5000, 16, 4, 0)]);
    assert_eq!(queue.pop(&memory).unwrap().unwrap().buffers(), 2);
    let layout = Layout { packed: true, event_index: false, size: 4 };
    let (mut driver, mut queue) = start(&memory, layout);
    driver.add(&memory, &[piece(0x7000, 4, false), piece(0x5000, 16, false)], None).unwrap();
    put(&memory, BASE + 16 + 14, &(1_u16 << 7 | 4).to_le_bytes());
    assert!(queue.pop(&memory).is_err());
}

/// Without VIRTIO_F_INDIRECT_DESC nobody may use tables.
#[test]
fn tables_that_were_not_negotiated_are_errors() {
    for packed in [false, true] {
        let memory = memory();
        let layout = Layout { packed, event_index: false, size: 4 };
        let (mut driver, queue) = start(&memory, layout);
        driver.add(&memory, &[piece(0x7000, 4, false)], Some(TABLES)).unwrap();
        let mut queue = Queue::new(RingState { indirect: false, ..queue.state() });
        assert!(queue.pop(&memory).is_err());
    }
}

#[test]
fn rings_at_the_end_of_memory_and_of_the_address_space_are_errors() {
    let memory = memory();
    for packed in [false, true] {
        let layout = Layout { packed, event_index: true, size: 8 };
        for address in
            [u64::MAX, u64::MAX - 1, u64::MAX - 15, u64::MAX << 4, 0x10_0000 - 2, 0x10_0000, 0x1001]
        {
            let places = RingPlaces { descriptors: address, driver: address, device: address };
            let mut queue = Queue::new(state(places, layout).started());
            assert!(queue.pop(&memory).is_err() || queue.push_used(&memory, Ticket::default(), 0).is_err());
            let _ = queue.wants_interrupt(&memory);
        }
    }
}

/// A full circle of the 16-bit indices and of the wrap counters, without proptest's small numbers.
#[test]
fn indices_wrap() {
    for (packed, event_index) in [(false, false), (false, true), (true, false), (true, true)] {
        let memory = memory();
        let (mut driver, mut queue) = start(&memory, Layout { packed, event_index, size: 8 });
        for round in 0..70_000_u32 {
            let id = driver.add(&memory, &[piece(0x5000, 64, true)], None).unwrap();
            driver.want_interrupts(&memory, true);
            assert!(driver.must_notify(&memory), "round {round}");
            let chain = queue.pop(&memory).unwrap().unwrap();
            queue.push_used(&memory, chain.ticket, round % 65).unwrap();
            assert!(queue.wants_interrupt(&memory).unwrap(), "round {round}");
            assert_eq!(driver.take_used(&memory), Some((id, round % 65)));
            assert_eq!(queue.pop(&memory).unwrap(), None);
        }
    }
}
