//! The entropy device through its ring.

use super::*;
use crate::exercise::rigs::{Counting, entropy};
use crate::exercise::{Bench, Piece, Wish, get, put};

const WISH: Wish = Wish { packed: true, event_index: true, msix: true, size: 16, features: 0 };
const BUFFER: u64 = 0x8000;

fn writable(address: u64, len: u32) -> Piece {
    Piece { address, len, writable: true }
}

#[test]
fn buffers_are_filled_in_their_order_and_no_further() {
    let bench = Bench::new(entropy(), false);
    let mut queues = bench.start(WISH, 0x1000);
    put(&bench.memory, BUFFER, &[0; 16]);
    let pieces =
        [Piece { writable: false, ..writable(BUFFER, 4) }, writable(BUFFER + 2, 3), writable(BUFFER + 8, 2)];
    let id = bench.offer(&mut queues[0], &pieces, None).unwrap();
    bench.settle();
    assert_eq!(queues[0].ring.take_used(&bench.memory), Some((id, 5)));
    assert_eq!(get::<12>(&bench.memory, BUFFER), [0, 0, 1, 2, 3, 0, 0, 0, 4, 5, 0, 0]);
}

#[test]
fn a_request_gets_a_part_of_much() {
    let bench = Bench::new(entropy(), false);
    let mut queues = bench.start(WISH, 0x1000);
    let id = bench.offer(&mut queues[0], &[writable(BUFFER, 0x1_0000)], None).unwrap();
    bench.settle();
    assert_eq!(queues[0].ring.take_used(&bench.memory), Some((id, REQUEST_MAX as u32)));
    let id = bench.offer(&mut queues[0], &[Piece { writable: false, ..writable(BUFFER, 8) }], None).unwrap();
    bench.settle();
    assert_eq!(queues[0].ring.take_used(&bench.memory), Some((id, 0)), "nothing to write to");
}

#[test]
fn a_buffer_outside_of_ram_stops_the_device() {
    let bench = Bench::new(entropy(), false);
    let mut queues = bench.start(WISH, 0x1000);
    bench.offer(&mut queues[0], &[writable(0x80_0000, 8)], None).unwrap();
    bench.settle();
    assert_eq!(bench.status(), 0x4f);
}

/// Writes that keep making their own ring available again.
struct Feeding;

impl guest_clock::Entropy for Feeding {
    fn fill(&self, buffer: &mut [u8]) {
        static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(2);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::SeqCst).to_le_bytes();
        buffer.iter_mut().zip(next).for_each(|(to, from)| *to = from);
    }
}

/// Each request's bytes land in the available index and announce the next one: there is no end to it, but the
/// device looks around between batches, stops when told, and rests.
#[test]
fn a_ring_that_feeds_itself_holds_nobody_up() {
    let wish = Wish { packed: false, event_index: false, ..WISH };
    let bench = Bench::new(Box::new(Entropy::new(Arc::new(Feeding))), false);
    let mut queues = bench.start(wish, 0x1000);
    let index = queues[0].ring.places().driver + 2;
    bench.offer(&mut queues[0], &[writable(index, 2)], None).unwrap();
    for _ in 0..100 {
        assert!(bench.function.serve_now(), "the ring does not end");
    }
    assert_eq!(bench.status(), 0x0f);
    let threaded = bench.moved(Box::new(Entropy::new(Arc::new(Feeding))), true);
    threaded.save();
    threaded.set_status(0);
    assert_eq!(threaded.status(), 0);
    assert!(!Entropy::new(Arc::new(Counting::default())).rest().is_zero());
}

#[test]
fn a_move_in_the_middle_changes_nothing() {
    for packed in [false, true] {
        let mut bench = Bench::new(entropy(), false);
        let mut queues = bench.start(Wish { packed, ..WISH }, 0x1000);
        for round in 0..40 {
            let id = bench.offer(&mut queues[0], &[writable(BUFFER, 8)], None).unwrap();
            if round % 3 == 0 {
                bench = bench.moved(entropy(), false);
            }
            bench.settle();
            assert_eq!(queues[0].ring.take_used(&bench.memory), Some((id, 8)), "round {round}");
        }
    }
}
