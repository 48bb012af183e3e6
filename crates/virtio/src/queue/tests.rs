//! A driver's side of the split ring, laid out by the tables of virtio 2.7.

use super::*;
use guest_memory::GuestMemory;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

fn memory() -> GuestMemory {
    GuestMemory::new(&[(0, 0x1_0000)]).unwrap()
}

fn queue(event_index: bool) -> SplitQueue {
    SplitQueue::new(SplitQueueState {
        size: 8,
        descriptors: DESCRIPTORS,
        available: AVAILABLE,
        used: USED,
        event_index,
        ..SplitQueueState::default()
    })
}

fn describe(memory: &GuestMemory, at: u64, address: u64, len: u32, flags: u16, next: u16) {
    memory.write(at, &address.to_le_bytes()).unwrap();
    memory.write(at + 8, &len.to_le_bytes()).unwrap();
    memory.write(at + 12, &flags.to_le_bytes()).unwrap();
    memory.write(at + 14, &next.to_le_bytes()).unwrap();
}

fn offer(memory: &GuestMemory, slot: u64, head: u16, index: u16) {
    memory.write(AVAILABLE + 4 + slot * 2, &head.to_le_bytes()).unwrap();
    memory.write(AVAILABLE + 2, &index.to_le_bytes()).unwrap();
}

#[test]
fn a_chain_and_an_indirect_table_are_read() {
    let memory = memory();
    describe(&memory, DESCRIPTORS, 0x5000, 16, 1, 3);
    describe(&memory, DESCRIPTORS + 48, 0x6000, 512, 2, 0);
    describe(&memory, DESCRIPTORS + 16, 0x7000, 32, 4, 0);
    describe(&memory, 0x7000, 0x8000, 4, 1, 1);
    describe(&memory, 0x7010, 0x9000, 8, 2, 0);
    offer(&memory, 0, 0, 1);
    offer(&memory, 1, 1, 2);
    let mut queue = queue(false);
    let first = queue.pop(&memory).unwrap().unwrap();
    assert_eq!(first.readable, [Buffer { address: 0x5000, len: 16 }]);
    assert_eq!(first.writable, [Buffer { address: 0x6000, len: 512 }]);
    let second = queue.pop(&memory).unwrap().unwrap();
    assert_eq!((second.head, second.writable_len()), (1, 8));
    assert_eq!(queue.pop(&memory).unwrap(), None);
    queue.push_used(&memory, 1, 8).unwrap();
    let mut used = [0; 12];
    memory.read(USED, &mut used).unwrap();
    assert_eq!(used, [0, 0, 1, 0, 1, 0, 0, 0, 8, 0, 0, 0]);
}

#[test]
fn broken_rings_are_errors() {
    type Case = (&'static str, fn(&GuestMemory));
    let cases: [Case; 6] = [
        ("loop", |memory| describe(memory, DESCRIPTORS, 0x5000, 1, 1, 0)),
        ("outside of RAM", |memory| describe(memory, DESCRIPTORS, u64::MAX, 1, 0, 0)),
        ("next beyond the table", |memory| describe(memory, DESCRIPTORS, 0x5000, 1, 1, 8)),
        ("odd indirect table", |memory| describe(memory, DESCRIPTORS, 0x5000, 17, 4, 0)),
        ("indirect table in itself", |memory| {
            describe(memory, DESCRIPTORS, 0x5000, 16, 4, 0);
            describe(memory, 0x5000, 0x5000, 16, 4, 0);
        }),
        ("readable after writable", |memory| {
            describe(memory, DESCRIPTORS, 0x5000, 1, 3, 1);
            describe(memory, DESCRIPTORS + 16, 0x5000, 1, 0, 0);
        }),
    ];
    for (name, spoil) in cases {
        let memory = memory();
        spoil(&memory);
        offer(&memory, 0, 0, 1);
        assert!(queue(false).pop(&memory).is_err(), "{name}");
    }
    let memory = memory();
    offer(&memory, 0, 0, 9);
    assert!(queue(false).pop(&memory).is_err(), "available index ran ahead");
}

#[test]
fn the_event_index_decides_on_interrupts() {
    let memory = memory();
    let mut queue = queue(true);
    memory.write(AVAILABLE + 4 + 16, &1_u16.to_le_bytes()).unwrap();
    queue.push_used(&memory, 0, 0).unwrap();
    assert!(!queue.wants_interrupt(&memory).unwrap());
    queue.push_used(&memory, 0, 0).unwrap();
    assert!(queue.wants_interrupt(&memory).unwrap());
    assert!(!queue.wants_interrupt(&memory).unwrap());
}

#[test]
fn rings_at_the_end_of_the_address_space_are_errors() {
    let memory = memory();
    let state = SplitQueueState {
        size: 8,
        descriptors: u64::MAX - 7,
        available: u64::MAX - 1,
        used: u64::MAX - 1,
        ..SplitQueueState::default()
    };
    let mut queue = SplitQueue::new(state);
    assert!(queue.push_used(&memory, 0, 0).is_err());
    offer(&memory, 0, 0, 1);
    let mut queue = SplitQueue::new(SplitQueueState { available: AVAILABLE, ..state });
    assert!(queue.pop(&memory).is_err());
}

/// Random ring contents: any answer is right but a panic or an endless loop.
#[test]
fn random_rings_harm_nobody() {
    let memory = memory();
    let mut seed = 1_u64;
    for _ in 0..2000 {
        for at in (0x1000..0x3100).step_by(8) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = if seed >> 62 == 0 { seed >> 32 } else { seed >> 40 & 0x0007_0003_0000_ffff };
            memory.write(at, &value.to_le_bytes()).unwrap();
        }
        let mut queue = queue(seed & 1 != 0);
        for _ in 0..16 {
            match queue.pop(&memory) {
                Ok(Some(chain)) => {
                    assert!(chain.readable.len() + chain.writable.len() <= 8);
                    let _ = queue.push_used(&memory, chain.head, 1);
                }
                _ => break,
            }
        }
    }
}
