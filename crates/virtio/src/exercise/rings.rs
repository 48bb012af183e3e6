//! Rings of random bytes, read by a queue alone.

use super::put;
use crate::queue::{CHAIN_MAX, Queue, RingState};
use guest_memory::GuestMemory;

const DESCRIPTORS: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
/// Bytes of a program that become memory; the rest changes it between requests.
const LAID_OUT: usize = 512;

/// Lays a program's bytes out as rings and descriptors and takes requests from them; the rest of the program rewrites
/// them meanwhile, as a driver on another processor would.
///
/// # Panics
/// If a chain exceeds the limits or the queue leaves its ring: that is what it is for.
pub fn check(packed: bool, program: &[u8]) {
    let [choice, size, program @ ..] = program else { return };
    let memory = GuestMemory::new(&[(0, 0x8000)]).unwrap_or_else(|error| panic!("{error}"));
    let state = RingState {
        packed,
        indirect: choice & 1 != 0,
        event_index: choice & 2 != 0,
        size: if packed { u16::from(*size).max(1) } else { 1 << (size & 7) },
        descriptors: DESCRIPTORS,
        available: DRIVER,
        used: DEVICE,
        ..RingState::default()
    };
    let state = state.started();
    let (layout, mut changes) = program.split_at(program.len().min(LAID_OUT));
    put(&memory, DESCRIPTORS, layout.get(..256.min(layout.len())).unwrap_or_default());
    put(&memory, DRIVER, layout.get(256..).unwrap_or_default());
    let mut queue = Queue::new(state);
    for _ in 0..200 {
        let Ok(Some(chain)) = queue.pop(&memory) else { break };
        assert!(chain.buffers() <= CHAIN_MAX as usize);
        assert!(chain.readable_len() + chain.writable_len() <= u64::from(u32::MAX));
        if queue.push_used(&memory, chain.ticket, choice.wrapping_mul(31).into()).is_err() {
            break;
        }
        if queue.wants_interrupt(&memory).is_err() {
            break;
        }
        assert!(queue.state().is_sound(state.size), "the queue left its ring");
        if let [page, offset, low, high, rest @ ..] = changes {
            let at = DESCRIPTORS + u64::from(page % 3) * 0x1000 + u64::from(*offset) * 2;
            put(&memory, at, &[*low, *high]);
            changes = rest;
        }
        let moved = queue.state();
        queue = Queue::new(moved);
    }
}
