//! Holds on the chunks of volumes: shared by requests that use a chunk where it is, alone for what gives it another
//! place. While a chunk is held, its places are not freed.

use super::record::VolumeId;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;

type Chunk = (VolumeId, u64);

#[derive(Default)]
struct Held {
    /// -1 for one that is alone.
    users: i64,
    /// Waiting to be alone: who comes later and would share waits too.
    waiting: u32,
}

#[derive(Default)]
pub(super) struct Holds {
    held: Mutex<HashMap<Chunk, Held>>,
    ended: Condvar,
}

impl Holds {
    /// Waits until nobody has the chunk alone, or wants to.
    pub fn share(&self, volume: VolumeId, chunk: u64) -> Hold<'_> {
        let key = (volume, chunk);
        let mut held = self.held.lock();
        while held.get(&key).is_some_and(|now| now.users < 0 || now.waiting > 0) {
            self.ended.wait(&mut held);
        }
        held.entry(key).or_default().users += 1;
        Hold { holds: self, key }
    }

    /// Waits until nobody has the chunk.
    pub fn alone(&self, volume: VolumeId, chunk: u64) -> Hold<'_> {
        let key = (volume, chunk);
        let mut held = self.held.lock();
        held.entry(key).or_default().waiting += 1;
        loop {
            let now = held.entry(key).or_default();
            if now.users == 0 {
                (now.users, now.waiting) = (-1, now.waiting.saturating_sub(1));
                return Hold { holds: self, key };
            }
            self.ended.wait(&mut held);
        }
    }
}

/// Ends when it is dropped.
pub(super) struct Hold<'a> {
    holds: &'a Holds,
    key: Chunk,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut held = self.holds.held.lock();
        let Some(now) = held.get_mut(&self.key) else { return };
        now.users = if now.users < 0 { 0 } else { now.users - 1 };
        let last = now.users == 0;
        if last && now.waiting == 0 {
            held.remove(&self.key);
        }
        drop(held);
        if last {
            self.holds.ended.notify_all();
        }
    }
}
