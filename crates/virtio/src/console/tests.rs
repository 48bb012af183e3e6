//! The console through its rings, with messages laid out after virtio 5.3.6.2.

use super::bits::event;
use super::*;
use crate::exercise::{Bench, DriverQueue, Piece, Wish, get, put};
use crate::pci::bits::DEVICE;

const RINGS: u64 = 0x1000;
const BUFFER: u64 = 0x1_0000;
const PORTS: u64 = feature::SIZE | feature::MULTIPORT;

type Printed = Arc<Mutex<Vec<u8>>>;

fn printing() -> (Arc<Console>, Printed) {
    let printed = Printed::default();
    let sink = printed.clone();
    (Console::new(Box::new(move |bytes| sink.lock().extend(bytes))), printed)
}

fn wish(packed: bool, features: u64) -> Wish {
    Wish { packed, event_index: true, msix: true, size: 16, features }
}

fn piece(address: u64, len: u32, writable: bool) -> Piece {
    Piece { address, len, writable }
}

/// Gives the device a buffer to write to.
fn lend(bench: &Bench, queue: &mut DriverQueue, slot: u64, len: u32) {
    bench.offer(queue, &[piece(BUFFER + 0x100 * slot, len, true)], None).unwrap();
}

/// What the device wrote to the buffer that it gives back next; they come in order.
fn written(bench: &Bench, queue: &mut DriverQueue, slot: u64) -> Option<Vec<u8>> {
    let (_, len) = queue.ring.take_used(&bench.memory)?;
    let bytes: [u8; 64] = get(&bench.memory, BUFFER + 0x100 * slot);
    Some(bytes[..len as usize].to_vec())
}

fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes
}

fn control(bench: &Bench, queues: &mut [DriverQueue], id: u32, event: u16, value: u16) {
    put(&bench.memory, BUFFER + 0x8000, &message(id, event, value));
    bench.offer(&mut queues[CONTROL_TRANSMIT], &[piece(BUFFER + 0x8000, 8, false)], None).unwrap();
    bench.settle();
    assert!(queues[CONTROL_TRANSMIT].ring.take_used(&bench.memory).is_some());
}

#[test]
fn a_driver_with_ports_is_told_everything_in_order() {
    let (console, _) = printing();
    console.resize(132, 43);
    let bench = Bench::new(Box::new(ConsoleDevice(console.clone())), false);
    let mut queues = bench.start(wish(true, PORTS), RINGS);
    assert_eq!((bench.config(0, 2), bench.config(2, 2), bench.config(4, 4)), (132, 43, 1));
    (0..8).for_each(|slot| lend(&bench, &mut queues[CONTROL_RECEIVE], slot, 64));
    bench.settle();
    assert_eq!(queues[CONTROL_RECEIVE].ring.take_used(&bench.memory), None, "before the driver is ready");
    control(&bench, &mut queues, 0, event::DEVICE_READY, 1);
    assert_eq!(written(&bench, &mut queues[CONTROL_RECEIVE], 0), Some(message(0, 1, 1)));
    assert_eq!(written(&bench, &mut queues[CONTROL_RECEIVE], 1), None);
    control(&bench, &mut queues, 0, event::PORT_READY, 1);
    let resize = |columns: u8, rows: u8| [message(0, 5, 0), vec![columns, 0, rows, 0]].concat();
    assert_eq!(written(&bench, &mut queues[CONTROL_RECEIVE], 1), Some(message(0, 4, 1)));
    assert_eq!(
        written(&bench, &mut queues[CONTROL_RECEIVE], 2),
        Some([message(0, 7, 1), b"console".to_vec()].concat())
    );
    assert_eq!(written(&bench, &mut queues[CONTROL_RECEIVE], 3), Some(resize(132, 43)));
    assert_eq!(written(&bench, &mut queues[CONTROL_RECEIVE], 4), Some(message(0, 6, 1)));
    assert_eq!(console.push_input(b"early"), 0, "nobody reads yet");
    control(&bench, &mut queues, 0, event::PORT_OPEN, 1);
    assert!(console.wait_for_room(Duration::ZERO));
    bench.messages();
    console.resize(80, 25);
    assert_eq!(bench.messages(), [0], "the configuration's vector");
    bench.settle();
    assert_eq!(written(&bench, &mut queues[CONTROL_RECEIVE], 5), Some(resize(80, 25)));
    control(&bench, &mut queues, 0, event::PORT_OPEN, 0);
    assert_eq!(console.push_input(b"late"), 0);
}

#[test]
fn odd_control_messages_change_nothing() {
    let (console, _) = printing();
    let bench = Bench::new(Box::new(ConsoleDevice(console.clone())), false);
    let mut queues = bench.start(wish(false, PORTS), RINGS);
    (0..4).for_each(|slot| lend(&bench, &mut queues[CONTROL_RECEIVE], slot, 64));
    for (id, event, value) in
        [(1, 3, 1), (u32::MAX, 6, 1), (0, 6, 2), (0, 77, 1), (0, 1, 1), (0, 3, 0), (0, 0, 0)]
    {
        control(&bench, &mut queues, id, event, value);
    }
    bench.offer(&mut queues[CONTROL_TRANSMIT], &[piece(BUFFER, 7, false)], None).unwrap();
    bench.settle();
    assert_eq!(queues[CONTROL_RECEIVE].ring.take_used(&bench.memory), None);
    assert_eq!((console.push_input(b"x"), bench.status()), (0, 0x0f));
    // Asking a thousand times is answered once.
    (0..1000).for_each(|_| console.inner.lock().port.handle(&[0, 0, 0, 0, 3, 0, 1, 0]).unwrap());
    console.inner.lock().port.announced(event::CONSOLE_PORT);
    assert_eq!(console.inner.lock().port.announcement().map(|(event, _)| event), Some(event::PORT_NAME));
}

#[test]
fn output_arrives_whole_and_in_order() {
    for packed in [false, true] {
        let (console, printed) = printing();
        let bench = Bench::new(Box::new(ConsoleDevice(console)), false);
        let mut queues = bench.start(wish(packed, 0), RINGS);
        let long: Vec<u8> = (0..10_000_u32).map(|at| (at % 251) as u8).collect();
        put(&bench.memory, BUFFER, &long);
        let pieces =
            [piece(BUFFER, 1, false), piece(BUFFER + 1, 8999, false), piece(BUFFER + 9000, 1000, false)];
        let id = bench.offer(&mut queues[TRANSMIT], &pieces, None).unwrap();
        bench.settle();
        assert_eq!(queues[TRANSMIT].ring.take_used(&bench.memory), Some((id, 0)));
        assert_eq!(*printed.lock(), long);
    }
}

#[test]
fn an_emergency_write_needs_no_driver() {
    let (console, printed) = printing();
    let bench = Bench::new(Box::new(ConsoleDevice(console)), false);
    bench.write(DEVICE + config::EMERGENCY_WRITE as u64, 0x41, 4);
    bench.write(DEVICE, 0x42, 4);
    assert_eq!(*printed.lock(), b"A");
}

/// All input comes, in order, with moves in the middle, as far as the guest lends buffers.
#[test]
fn input_survives_slow_guests_and_moves() {
    for (packed, features) in [(false, 0), (true, 0), (false, PORTS), (true, PORTS)] {
        let (mut console, _) = printing();
        let mut bench = Bench::new(Box::new(ConsoleDevice(console.clone())), false);
        let mut queues = bench.start(wish(packed, features), RINGS);
        if features & feature::MULTIPORT != 0 {
            control(&bench, &mut queues, 0, event::PORT_OPEN, 1);
        }
        bench.settle();
        let sent: Vec<u8> = (0..60_000_u32).map(|at| (at % 253) as u8).collect();
        let (mut pushed, mut got, mut round) = (0, Vec::new(), 0_u64);
        while got.len() < sent.len() {
            round += 1;
            pushed += console.push_input(&sent[pushed..sent.len().min(pushed + 700)]);
            bench.settle();
            if round % 4 == 0 {
                let moved = printing().0;
                bench = bench.moved(Box::new(ConsoleDevice(moved.clone())), false);
                console = moved;
            }
            lend(&bench, &mut queues[RECEIVE], round % 8, 1 + (round % 64) as u32);
            bench.settle();
            got.extend(written(&bench, &mut queues[RECEIVE], round % 8).unwrap_or_default());
        }
        assert_eq!(got, sent);
        assert!(pushed <= sent.len());
    }
}

#[test]
fn a_paused_console_takes_no_input() {
    let (console, _) = printing();
    let bench = Bench::new(Box::new(ConsoleDevice(console.clone())), false);
    bench.start(wish(false, 0), RINGS);
    bench.settle();
    ::device::Device::pause(bench.function.as_ref());
    assert_eq!(console.push_input(b"x"), 0);
    assert!(!console.wait_for_room(Duration::ZERO));
    ::device::Device::resume(bench.function.as_ref());
    assert_eq!(console.push_input(&[0; 5000]), bits::INPUT_LEN, "no more than has room");
}

#[test]
fn impossible_states_are_refused() {
    let state = ConsoleState { input: vec![0; bits::INPUT_LEN + 1], ..ConsoleState::default() };
    assert!(Port::restored(state).is_err());
    assert!(Port::restored(ConsoleState { announcements: 1, ..ConsoleState::default() }).is_err());
}
