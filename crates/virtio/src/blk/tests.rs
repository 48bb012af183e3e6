//! Requests after virtio 5.2.6, through real rings, against a disk in memory and one in a file.

mod together;

use super::bits::{feature, request, status};
use super::*;
use crate::exercise::rigs::MemoryDisk;
use crate::exercise::{Bench, DriverQueue, Piece, Wish, get, put};
use device::Device;
use proptest::prelude::*;
use std::io::ErrorKind;

const RINGS: u64 = 0x1000;
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x8_0000;
const TABLE: u64 = 0x9_0000;
/// What the status byte holds before.
const UNANSWERED: u8 = 0xee;

const ALL: u64 = feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES;
const WISH: Wish = Wish { packed: false, event_index: true, msix: true, size: 64, features: ALL };

fn bench_of(backend: Arc<dyn BlockBackend>) -> Bench {
    Bench::new(Box::new(Block::new(backend, "vireo-test-serial-0123456789", 1)), false)
}

fn readable(address: u64, len: u32) -> Piece {
    Piece { address, len, writable: false }
}

fn writable(address: u64, len: u32) -> Piece {
    Piece { address, len, writable: true }
}

fn put_header(bench: &Bench, kind: u32, sector: u64) {
    put(&bench.memory, HEADER, &kind.to_le_bytes());
    put(&bench.memory, HEADER + 4, &[0; 4]);
    put(&bench.memory, HEADER + 8, &sector.to_le_bytes());
}

/// Sends a request of these pieces; answers the status and the used length.
fn send(bench: &Bench, queue: &mut DriverQueue, pieces: &[Piece]) -> (u8, u32) {
    put(&bench.memory, STATUS, &[UNANSWERED]);
    let id = bench.offer(queue, pieces, Some(TABLE)).unwrap();
    bench.settle();
    let (used, len) = queue.ring.take_used(&bench.memory).unwrap();
    assert_eq!(used, id);
    let [answer] = get(&bench.memory, STATUS);
    (answer, len)
}

/// A request as drivers usually make it: header, data out, data in, status.
fn run(bench: &Bench, queue: &mut DriverQueue, kind: u32, sector: u64, out: u32, back: u32) -> (u8, u32) {
    put_header(bench, kind, sector);
    let mut pieces = vec![readable(HEADER, 16)];
    pieces.extend((out > 0).then(|| readable(DATA, out)));
    pieces.extend((back > 0).then(|| writable(DATA, back)));
    pieces.push(writable(STATUS, 1));
    send(bench, queue, &pieces)
}

fn put_ranges(bench: &Bench, ranges: &[(u64, u32, u32)]) {
    for (i, (sector, sectors, flags)) in ranges.iter().enumerate() {
        let at = DATA + 16 * i as u64;
        put(&bench.memory, at, &sector.to_le_bytes());
        put(&bench.memory, at + 8, &sectors.to_le_bytes());
        put(&bench.memory, at + 12, &flags.to_le_bytes());
    }
}

#[test]
fn requests_reach_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0x5a; 8192]).unwrap();
    let bench = bench_of(Arc::new(block::RawFile::open(file.path(), false).unwrap()));
    let mut queues = bench.start(WISH, RINGS);
    let queue = &mut queues[0];
    assert_eq!(run(&bench, queue, request::READ, 1, 0, 512), (status::OK, 513));
    assert_eq!(get::<512>(&bench.memory, DATA), [0x5a; 512]);
    put(&bench.memory, DATA, &[7; 512]);
    assert_eq!(run(&bench, queue, request::WRITE, 2, 512, 0), (status::OK, 1));
    put_ranges(&bench, &[(3, 1, 0), (15, 1, 1)]);
    assert_eq!(run(&bench, queue, request::WRITE_ZEROES, 0, 32, 0), (status::OK, 1));
    assert_eq!(run(&bench, queue, request::FLUSH, 0, 0, 0), (status::OK, 1));
    let content = std::fs::read(file.path()).unwrap();
    let sectors: Vec<u8> = content.chunks(512).map(|sector| sector[0]).collect();
    let mut expected = [0x5a; 16];
    (expected[2], expected[3], expected[15]) = (7, 0, 0);
    assert_eq!(sectors, expected);
    assert!(content.chunks(512).all(|sector| sector.iter().all(|byte| byte == &sector[0])));
}

/// virtio 2.6.4.1: a device makes no assumption on how a request is divided.
#[test]
fn any_division_into_buffers_is_the_same_request() {
    let disk = MemoryDisk::new(64);
    disk.content.lock().iter_mut().zip(0_u32..).for_each(|(byte, at)| *byte = (at / 3) as u8);
    let bench = bench_of(disk.clone());
    let mut queues = bench.start(WISH, RINGS);
    let queue = &mut queues[0];
    put_header(&bench, request::READ, 3);
    let whole = disk.content.lock()[3 * 512..5 * 512].to_vec();
    let divisions: [&[Piece]; 4] = [
        &[
            readable(HEADER, 3),
            readable(HEADER + 3, 9),
            readable(HEADER + 12, 4),
            writable(DATA, 1024),
            writable(STATUS, 1),
        ],
        &[
            readable(HEADER, 16),
            writable(DATA, 1),
            writable(DATA + 1, 1022),
            writable(DATA + 1023, 1),
            writable(STATUS, 1),
        ],
        &[
            readable(HEADER, 0),
            readable(HEADER, 16),
            writable(DATA, 1024),
            writable(DATA, 0),
            writable(STATUS, 1),
        ],
        &[readable(HEADER, 16), writable(STATUS - 1024, 1025)],
    ];
    for (i, pieces) in divisions.into_iter().enumerate() {
        put(&bench.memory, DATA, &[0; 1024]);
        assert_eq!(send(&bench, queue, pieces), (status::OK, 1025), "division {i}");
        let at = if i == 3 { STATUS - 1024 } else { DATA };
        assert_eq!(get::<1024>(&bench.memory, at)[..], whole, "division {i}");
    }
    // Header and data of a write in one buffer.
    put_header(&bench, request::WRITE, 60);
    put(&bench.memory, HEADER + 16, &[9; 512]);
    assert_eq!(send(&bench, queue, &[readable(HEADER, 528), writable(STATUS, 1)]), (status::OK, 1));
    assert_eq!(disk.content.lock()[60 * 512..61 * 512], [9; 512]);
}

#[test]
fn what_cannot_be_done_is_answered_so() {
    let disk = MemoryDisk::new(16);
    let bench = bench_of(disk.clone());
    let mut queues = bench.start(WISH, RINGS);
    let queue = &mut queues[0];
    let cases = [
        ("behind the end", request::READ, 16, 0, 512, status::IO_ERROR),
        ("across the end", request::WRITE, 15, 1024, 0, status::IO_ERROR),
        ("past all disks", request::READ, u64::MAX, 0, 512, status::IO_ERROR),
        ("offset that wraps", request::WRITE, u64::MAX / 512, 512, 0, status::IO_ERROR),
        ("not whole sectors", request::READ, 0, 0, 100, status::IO_ERROR),
        ("no such type", 77, 0, 0, 0, status::UNSUPPORTED),
        ("no ranges", request::DISCARD, 0, 0, 0, status::IO_ERROR),
        ("half a range", request::DISCARD, 0, 24, 0, status::IO_ERROR),
        ("too many ranges", request::WRITE_ZEROES, 0, 17 * 16, 0, status::IO_ERROR),
    ];
    for (name, kind, sector, out, back, expected) in cases {
        let (answer, written) = run(&bench, queue, kind, sector, out, back);
        assert_eq!(answer, expected, "{name}");
        assert_eq!(written, u32::from(back == 0), "{name}");
    }
    type Ranges<'a> = (&'a str, u32, &'a [(u64, u32, u32)], u8);
    let ranges: [Ranges<'_>; 7] = [
        ("unmap of a discard", request::DISCARD, &[(0, 1, 1)], status::UNSUPPORTED),
        ("unknown flag", request::WRITE_ZEROES, &[(0, 1, 2)], status::UNSUPPORTED),
        ("range past the end", request::DISCARD, &[(8, 1, 0), (16, 1, 0)], status::IO_ERROR),
        ("too long", request::WRITE_ZEROES, &[(0, bits::RANGE_SECTORS_MAX + 1, 0)], status::IO_ERROR),
        ("all ones", request::DISCARD, &[(u64::MAX, u32::MAX, 0)], status::IO_ERROR),
        ("empty", request::DISCARD, &[(0, 0, 0)], status::OK),
        ("two", request::DISCARD, &[(0, 1, 0), (8, 2, 0)], status::OK),
    ];
    for (name, kind, ranges, expected) in ranges {
        put_ranges(&bench, ranges);
        assert_eq!(run(&bench, queue, kind, 0, 16 * ranges.len() as u32, 0).0, expected, "{name}");
    }
    assert_eq!(*disk.discarded.lock(), [(0, 512), (4096, 1024)], "nothing of a refused request is done");
    put_header(&bench, request::READ, 0);
    let cut = send(&bench, queue, &[readable(HEADER, 15), writable(DATA, 512), writable(STATUS, 1)]);
    assert_eq!(cut, (status::IO_ERROR, 0));
}

#[test]
fn buffers_outside_of_ram_are_errors_of_the_request() {
    let bench = bench_of(MemoryDisk::new(16));
    let mut queues = bench.start(WISH, RINGS);
    let queue = &mut queues[0];
    // Behind RAM, in the hole, across the end of a region, at the end of the address space.
    for address in [0x80_0000, 0x10_0000, 0x10_0000 - 256, u64::MAX - 100] {
        for kind in [request::READ, request::WRITE] {
            put_header(&bench, kind, 0);
            let data = Piece { address, len: 512, writable: kind == request::READ };
            let answer = send(&bench, queue, &[readable(HEADER, 16), data, writable(STATUS, 1)]);
            assert_eq!(answer.0, status::IO_ERROR, "{address:#x}");
        }
        let answer = send(&bench, queue, &[readable(address, 16), writable(STATUS, 1)]);
        assert!(answer.0 == status::IO_ERROR || address == 0x10_0000 - 256);
    }
    assert_eq!(bench.status(), 0x0f);
    // Only a status that cannot be written stops the device.
    bench.offer(queue, &[readable(HEADER, 16), writable(0x80_0000, 1)], None);
    bench.settle();
    assert_eq!(bench.status(), 0x4f);
}

#[test]
fn a_failing_disk_fails_requests_and_not_the_device() {
    let disk = MemoryDisk::new(16);
    let bench = bench_of(disk.clone());
    let mut queues = bench.start(WISH, RINGS);
    let queue = &mut queues[0];
    put_ranges(&bench, &[(0, 1, 0)]);
    let kinds = [
        (request::READ, 0, 512),
        (request::WRITE, 512, 0),
        (request::FLUSH, 0, 0),
        (request::DISCARD, 16, 0),
    ];
    for (kind, out, back) in kinds {
        *disk.failure.lock() = Some(ErrorKind::StorageFull);
        assert_eq!(run(&bench, queue, kind, 0, out, back).0, status::IO_ERROR);
        *disk.failure.lock() = Some(ErrorKind::Unsupported);
        assert_eq!(run(&bench, queue, kind, 0, out, back).0, status::UNSUPPORTED);
    }
    *disk.failure.lock() = None;
    assert_eq!(run(&bench, queue, request::READ, 0, 0, 512).0, status::OK);
}

#[test]
fn a_read_only_disk_offers_and_does_no_change() {
    let disk =
        Arc::new(MemoryDisk { read_only: true, content: vec![3; 8192].into(), ..MemoryDisk::default() });
    let bench = bench_of(disk.clone());
    assert_eq!(
        bench.features() & (feature::READ_ONLY | feature::DISCARD | feature::WRITE_ZEROES),
        feature::READ_ONLY
    );
    let mut queues = bench.start(Wish { features: feature::READ_ONLY, ..WISH }, RINGS);
    assert_eq!(run(&bench, &mut queues[0], request::WRITE, 0, 512, 0).0, status::IO_ERROR);
    assert_eq!(run(&bench, &mut queues[0], request::WRITE_ZEROES, 0, 16, 0).0, status::UNSUPPORTED);
    assert_eq!(run(&bench, &mut queues[0], request::READ, 0, 0, 512), (status::OK, 513));
    assert_eq!(*disk.content.lock(), [3; 8192]);
}

#[test]
fn the_identity_is_the_serial_number() {
    let bench = bench_of(MemoryDisk::new(16));
    let mut queues = bench.start(WISH, RINGS);
    put(&bench.memory, DATA, &[0xff; 32]);
    assert_eq!(run(&bench, &mut queues[0], request::GET_ID, 0, 0, 20), (status::OK, 21));
    assert_eq!(get::<21>(&bench.memory, DATA), *b"vireo-test-serial-01\xff");
    assert_eq!(run(&bench, &mut queues[0], request::GET_ID, 0, 0, 8), (status::OK, 9));
    assert_eq!(run(&bench, &mut queues[0], request::GET_ID, 0, 0, 32), (status::OK, 20));
}

/// virtio 5.2.5.2, 5.2.6.2: what makes a write durable when.
#[test]
fn the_cache_mode_decides_when_writes_are_flushed() {
    let disk = MemoryDisk::new(16);
    let bench = bench_of(disk.clone());
    let flushes = |features, writeback: Option<u64>| {
        let mut queues = bench.start(Wish { features, ..WISH }, RINGS);
        if let Some(writeback) = writeback {
            bench.write(crate::pci::bits::DEVICE + config::WRITEBACK as u64, writeback, 1);
            assert_eq!(bench.config(config::WRITEBACK as u64, 1), writeback);
        }
        let before = *disk.flushes.lock();
        assert_eq!(run(&bench, &mut queues[0], request::WRITE, 0, 512, 0).0, status::OK);
        *disk.flushes.lock() - before
    };
    assert_eq!(flushes(feature::FLUSH, None), 0, "writeback");
    assert_eq!(flushes(0, None), 1, "a driver without flush gets writethrough");
    assert_eq!(flushes(feature::FLUSH | feature::CONFIG_WCE, Some(0)), 1);
    assert_eq!(flushes(feature::FLUSH | feature::CONFIG_WCE, Some(1)), 0);
    assert_eq!(flushes(feature::FLUSH | feature::CONFIG_WCE, Some(0)), 1);
    assert_eq!(flushes(feature::FLUSH | feature::CONFIG_WCE, None), 0, "a reset restores it");
}

/// Offsets from the structure in virtio 5.2.4, not from `bits.rs`.
#[test]
fn the_configuration_is_laid_out_as_the_structure_says() {
    let backend = MemoryDisk::new(5);
    let bench = Bench::new(Box::new(Block::new(backend, "", 3)), false);
    let expected = [
        (0, 8, 5),
        (8, 4, 4 << 20),
        (12, 4, 254),
        (20, 4, 512),
        (24, 1, 3),
        (26, 2, 8),
        (32, 1, 1),
        (34, 2, 3),
    ];
    for (offset, len, value) in expected {
        assert_eq!(bench.config(offset, len), value, "offset {offset}");
    }
    assert_eq!((bench.config(40, 4), bench.config(52, 4), bench.config(56, 1)), (16, 16, 1));
    assert_eq!((bench.config(58, 8), bench.config(0xf00, 4)), (0, 0));
    assert_ne!(bench.features() & 1 << 12, 0);
}

#[test]
fn all_queues_work_at_once() {
    let disk = MemoryDisk::new(64);
    let bench = Bench::new(Box::new(Block::new(disk.clone(), "", 4)), true);
    let mut queues = bench.start(WISH, RINGS);
    assert_eq!(queues.len(), 4);
    for round in 0..200_u64 {
        for (i, queue) in queues.iter_mut().enumerate() {
            let (header, data) = (HEADER + 32 * i as u64, DATA + 512 * i as u64);
            put(&bench.memory, header, &request::WRITE.to_le_bytes());
            put(&bench.memory, header + 8, &(i as u64 * 16 + round % 16).to_le_bytes());
            put(&bench.memory, data, &[(round as u8).wrapping_add(i as u8); 512]);
            let pieces = [readable(header, 16), readable(data, 512), writable(STATUS + i as u64, 1)];
            bench.offer(queue, &pieces, None).unwrap();
        }
        for queue in &mut queues {
            while queue.ring.take_used(&bench.memory).is_none() {
                std::thread::yield_now();
            }
        }
        assert_eq!(get::<4>(&bench.memory, STATUS), [0; 4]);
    }
    let content = disk.content.lock();
    for (sector, bytes) in content.chunks(512).enumerate() {
        let (i, offset) = (sector / 16, sector % 16);
        let last = (0..200).rfind(|round| round % 16 == offset).unwrap_or_default();
        assert!(bytes.iter().all(|byte| *byte == (last + i) as u8), "sector {sector}");
    }
}

#[test]
fn a_state_is_for_a_disk_of_the_same_size() {
    let bench = bench_of(MemoryDisk::new(16));
    let record = bench.save();
    assert!(bench_of(MemoryDisk::new(17)).function.restore(&record).is_err());
    bench_of(MemoryDisk::new(16)).function.restore(&record).unwrap();
}

#[derive(Clone, Debug)]
struct Order {
    write: bool,
    sector: u64,
    sectors: u64,
    fill: u8,
    move_first: bool,
    together: bool,
}

fn orders() -> impl Strategy<Value = Vec<Order>> {
    let order = (any::<bool>(), 0_u64..30, 1_u64..5, any::<u8>(), prop::bool::weighted(0.2), any::<bool>());
    let make = |(write, sector, sectors, fill, move_first, together)| Order {
        write,
        sector,
        sectors,
        fill,
        move_first,
        together,
    };
    prop::collection::vec(order.prop_map(make), 1..40)
}

/// Does the orders with or without moves; answers statuses, what reads got, and the disk's content.
fn carry_out(wish: Wish, orders: &[Order], moves: bool) -> (Vec<(u8, Vec<u8>)>, Vec<u8>) {
    let disk = MemoryDisk::new(32);
    let device = || Box::new(Block::new(disk.clone(), "", 1));
    let mut bench = Bench::new(device(), false);
    let mut queues = bench.start(wish, RINGS);
    let mut results = Vec::new();
    let mut model = vec![0; 32 * 512];
    for (i, order) in orders.iter().enumerate() {
        let slot = i as u64 % 8;
        let (header, data, answer) = (HEADER + slot * 32, DATA + slot * 4096, STATUS + slot);
        let len = order.sectors * 512;
        put(&bench.memory, header, &u32::from(order.write).to_le_bytes());
        put(&bench.memory, header + 8, &order.sector.to_le_bytes());
        put(&bench.memory, data, &vec![order.fill; len as usize]);
        put(&bench.memory, answer, &[UNANSWERED]);
        let body = Piece { address: data, len: len as u32, writable: !order.write };
        let pieces = [readable(header, 16), body, writable(answer, 1)];
        let id = bench.offer(&mut queues[0], &pieces, order.together.then_some(TABLE + slot * 64)).unwrap();
        // The request is available and was announced, but not served when the state moves.
        if moves && order.move_first {
            bench = bench.moved(device(), false);
        }
        bench.settle();
        let inside = order.sector + order.sectors <= 32;
        let written = if !inside {
            u32::from(order.write)
        } else if order.write {
            1
        } else {
            len as u32 + 1
        };
        assert_eq!(queues[0].ring.take_used(&bench.memory), Some((id, written)));
        let at = order.sector as usize * 512..(order.sector + order.sectors) as usize * 512;
        let mut seen = vec![0; len as usize];
        bench.memory.read(data, &mut seen).unwrap();
        if inside && order.write {
            model[at].fill(order.fill);
        } else if inside {
            assert_eq!(seen, model[at]);
        }
        results.push((get::<1>(&bench.memory, answer)[0], seen));
    }
    let content = disk.content.lock().clone();
    assert_eq!(content, model);
    (results, content)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_move_in_the_middle_changes_nothing(packed in any::<bool>(), event_index in any::<bool>(), orders in orders()) {
        let wish = Wish { packed, event_index, ..WISH };
        prop_assert_eq!(carry_out(wish, &orders, true), carry_out(wish, &orders, false));
    }
}

/// A disk whose errors stop the machine, what was told, and its driver's queue.
fn stoppable(disk: &Arc<MemoryDisk>, wish: Wish, link: &Arc<DiskLink>) -> (Bench, DriverQueue) {
    let device = Block::linked(disk.clone(), "", 1, link.clone());
    let bench = Bench::new(Box::new(device), false);
    let queue = bench.start(wish, RINGS).remove(0);
    (bench, queue)
}

fn told() -> (Arc<parking_lot::Mutex<Vec<HostFailure>>>, OnStop) {
    let failures = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let to = failures.clone();
    (failures, Box::new(move |failure| to.lock().push(failure)))
}

/// A request that failed is answered only after the machine paused, resumed, and the host does it: in all ring layouts,
/// with others behind it, and on a machine that was moved meanwhile.
#[test]
fn a_request_that_stops_the_machine_is_done_after_it_resumed() {
    for (packed, event_index, moved, together) in [
        (false, false, false, false),
        (false, true, false, true),
        (true, true, false, false),
        (true, false, true, true),
        (false, true, true, false),
        (true, true, false, true),
    ] {
        let disk = MemoryDisk::new(16);
        *disk.batches.lock() = together.then(Vec::new);
        let (failures, on_stop) = told();
        let link = DiskLink::new(ErrorAction::Stop, ErrorAction::Enospc, on_stop);
        let (mut bench, mut queue) = stoppable(&disk, Wish { packed, event_index, ..WISH }, &link);
        *disk.failure.lock() = Some(ErrorKind::StorageFull);
        let mut ids = Vec::new();
        for at in 0..3_u64 {
            let (header, data) = (HEADER + 32 * at, DATA + 512 * at);
            put(&bench.memory, header, &request::WRITE.to_le_bytes());
            put(&bench.memory, header + 8, &at.to_le_bytes());
            put(&bench.memory, data, &[at as u8 + 1; 512]);
            put(&bench.memory, STATUS + at, &[UNANSWERED]);
            let pieces = [readable(header, 16), readable(data, 512), writable(STATUS + at, 1)];
            ids.push(bench.offer(&mut queue, &pieces, None).unwrap());
            bench.settle();
        }
        let failure = HostFailure { write: true, error: "no storage space".to_owned(), no_space: true };
        assert_eq!(*failures.lock(), [failure]);
        assert_eq!(queue.ring.take_used(&bench.memory), None);
        // Still no space: it stops again.
        bench.function.pause();
        bench.function.resume();
        bench.settle();
        assert_eq!((failures.lock().len(), queue.ring.take_used(&bench.memory)), (2, None));
        bench.function.pause();
        if moved {
            bench = bench.moved(Box::new(Block::new(disk.clone(), "", 1)), false);
            bench.function.pause();
        }
        *disk.failure.lock() = None;
        bench.function.resume();
        bench.settle();
        for (at, id) in ids.into_iter().enumerate() {
            assert_eq!(queue.ring.take_used(&bench.memory), Some((id, 1)));
            assert_eq!(get::<1>(&bench.memory, STATUS + at as u64), [status::OK]);
            assert_eq!(disk.content.lock()[at * 512..at * 512 + 512], [at as u8 + 1; 512]);
        }
        assert_eq!((failures.lock().len(), link.errors()), (2, (0, 2)));
    }
}

/// The table of actions in the book: what the guest sees of an error, and whether the machine stops.
#[test]
fn each_action_does_with_errors_what_the_book_says() {
    use ErrorAction::{Enospc, Ignore, Report, Stop};
    let full = ErrorKind::StorageFull;
    for (action, error, seen) in [
        (Report, full, Some(status::IO_ERROR)),
        (Ignore, full, Some(status::OK)),
        (Stop, ErrorKind::Other, None),
        (Enospc, full, None),
        (Enospc, ErrorKind::QuotaExceeded, None),
        (Enospc, ErrorKind::Other, Some(status::IO_ERROR)),
    ] {
        for kind in [request::READ, request::WRITE, request::FLUSH, request::DISCARD, request::WRITE_ZEROES] {
            let disk = MemoryDisk::new(16);
            let (failures, on_stop) = told();
            let other = if action == Report { Ignore } else { Report };
            let (reads, writes) = if kind == request::READ { (action, other) } else { (other, action) };
            let (bench, mut queue) = stoppable(&disk, WISH, &DiskLink::new(reads, writes, on_stop));
            *disk.failure.lock() = Some(error);
            put_header(&bench, kind, 0);
            put_ranges(&bench, &[(0, 1, 0)]);
            put(&bench.memory, STATUS, &[UNANSWERED]);
            let body = match kind {
                request::READ => Some(writable(DATA, 512)),
                request::WRITE => Some(readable(DATA, 512)),
                request::FLUSH => None,
                _ => Some(readable(DATA, 16)),
            };
            let pieces: Vec<Piece> =
                [Some(readable(HEADER, 16)), body, Some(writable(STATUS, 1))].into_iter().flatten().collect();
            bench.offer(&mut queue, &pieces, None).unwrap();
            bench.settle();
            let answered = queue.ring.take_used(&bench.memory).map(|_| get::<1>(&bench.memory, STATUS)[0]);
            assert_eq!(answered, seen, "{action:?} {error:?} request {kind}");
            assert_eq!(failures.lock().len(), usize::from(seen.is_none()));
        }
    }
}

/// What the driver asks wrongly is its own affair, and a reset forgets what failed before.
#[test]
fn guest_errors_stop_no_machine_and_a_reset_lets_go() {
    let disk = MemoryDisk::new(16);
    let (failures, on_stop) = told();
    let (bench, mut queue) =
        stoppable(&disk, WISH, &DiskLink::new(ErrorAction::Stop, ErrorAction::Stop, on_stop));
    assert_eq!(run(&bench, &mut queue, request::READ, 99, 0, 512).0, status::IO_ERROR);
    assert_eq!(run(&bench, &mut queue, 77, 0, 0, 512).0, status::UNSUPPORTED);
    assert!(failures.lock().is_empty());
    *disk.failure.lock() = Some(ErrorKind::Other);
    put_header(&bench, request::FLUSH, 0);
    bench.offer(&mut queue, &[readable(HEADER, 16), writable(STATUS, 1)], None).unwrap();
    bench.settle();
    assert_eq!(failures.lock().len(), 1);
    *disk.failure.lock() = None;
    let mut queue = bench.start(WISH, RINGS).remove(0);
    assert_eq!(run(&bench, &mut queue, request::WRITE, 0, 512, 0).0, status::OK);
}

#[test]
fn a_new_size_is_told_with_an_interrupt() {
    let disk = MemoryDisk::new(16);
    let link = DiskLink::reporting();
    let (bench, mut queue) = stoppable(&disk, WISH, &link);
    let generation = bench.read(crate::pci::bits::COMMON + crate::pci::bits::common::GENERATION, 1);
    disk.content.lock().resize(32 * 512, 0);
    link.resized(32 * 512);
    assert_eq!(bench.messages(), [0], "the configuration's vector");
    assert_ne!(bench.read(crate::pci::bits::COMMON + crate::pci::bits::common::GENERATION, 1), generation);
    assert_eq!(bench.config(0, 8), 32);
    assert_eq!(run(&bench, &mut queue, request::WRITE, 31, 512, 0).0, status::OK);
}
