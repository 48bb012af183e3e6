//! A driver's side of the split ring (virtio 2.7, by its driver requirements).

use super::{DriverRing, Piece, RingPlaces, get16, get32, put, put_descriptor};
use guest_memory::GuestMemory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The driver.
#[derive(Clone, Debug)]
pub struct SplitDriver {
    places: RingPlaces,
    size: u16,
    event_index: bool,
    free: Vec<u16>,
    /// Descriptors of each request under way, by its first.
    owned: Vec<Vec<u16>>,
    available: u16,
    notified: u16,
    used: u16,
}

impl SplitDriver {
    /// An empty ring of `size` entries at `base`; 16 × size + 2 × size + 8 × size + 12 bytes are its own.
    pub fn new(memory: &GuestMemory, base: u64, size: u16, event_index: bool) -> Self {
        let entries = u64::from(size);
        let driver = base + 16 * entries;
        let device = (driver + 6 + 2 * entries).next_multiple_of(4);
        put(memory, base, &vec![0; (device + 6 + 8 * entries - base) as usize]);
        SplitDriver {
            places: RingPlaces { descriptors: base, driver, device },
            size,
            event_index,
            free: (0..size).rev().collect(),
            owned: vec![Vec::new(); size.into()],
            available: 0,
            notified: 0,
            used: 0,
        }
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index % self.size)
    }
}

/// vring_need_event (virtio 2.7.10): whether going from `old` to `new` passed `event`.
fn passed(event: u16, old: u16, new: u16) -> bool {
    (0..new.wrapping_sub(old)).any(|step| old.wrapping_add(step) == event)
}

impl DriverRing for SplitDriver {
    fn places(&self) -> RingPlaces {
        self.places
    }

    fn add(&mut self, memory: &GuestMemory, pieces: &[Piece], table: Option<u64>) -> Option<u16> {
        let needed = if table.is_some() { 1 } else { pieces.len() };
        if pieces.is_empty() || self.free.len() < needed {
            return None;
        }
        let taken: Vec<u16> = self.free.drain(self.free.len() - needed..).collect();
        let at = |index: u16| self.places.descriptors + 16 * u64::from(index);
        let flags = |piece: &Piece, last: bool| {
            (if piece.writable { WRITE } else { 0 }) | if last { 0 } else { NEXT }
        };
        let head = *taken.first()?;
        if let Some(table) = table {
            for (i, piece) in pieces.iter().enumerate() {
                let last = i + 1 == pieces.len();
                put_descriptor(memory, table + 16 * i as u64, piece, flags(piece, last), i as u16 + 1);
            }
            let whole = Piece { address: table, len: 16 * pieces.len() as u32, writable: false };
            put_descriptor(memory, at(head), &whole, INDIRECT, 0);
        } else {
            for (i, piece) in pieces.iter().enumerate() {
                let next = taken.get(i + 1);
                let index = taken.get(i).copied().unwrap_or_default();
                put_descriptor(
                    memory,
                    at(index),
                    piece,
                    flags(piece, next.is_none()),
                    next.copied().unwrap_or(0),
                );
            }
        }
        put(memory, self.places.driver + 4 + 2 * self.slot(self.available), &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        put(memory, self.places.driver + 2, &self.available.to_le_bytes());
        if let Some(owned) = self.owned.get_mut(usize::from(head)) {
            *owned = taken;
        }
        Some(head)
    }

    fn must_notify(&mut self, memory: &GuestMemory) -> bool {
        let old = std::mem::replace(&mut self.notified, self.available);
        if old == self.available {
            return false;
        }
        match self.event_index {
            true => {
                let event = get16(memory, self.places.device + 4 + 8 * u64::from(self.size));
                passed(event, old, self.available)
            }
            false => get16(memory, self.places.device) & 1 == 0,
        }
    }

    fn take_used(&mut self, memory: &GuestMemory) -> Option<(u16, u32)> {
        if get16(memory, self.places.device + 2) == self.used {
            return None;
        }
        let at = self.places.device + 4 + 8 * self.slot(self.used);
        self.used = self.used.wrapping_add(1);
        let (id, len) = (get32(memory, at), get32(memory, at + 4));
        let descriptors = std::mem::take(&mut self.owned[id as usize]);
        assert!(!descriptors.is_empty(), "request {id} was given back but is not under way");
        self.free.extend(descriptors);
        Some((id as u16, len))
    }

    fn want_interrupts(&mut self, memory: &GuestMemory, on: bool) {
        if self.event_index {
            // Far ahead is what drivers write for "none for long".
            let event = if on { self.used } else { self.used.wrapping_add(0x8000) };
            put(memory, self.places.driver + 4 + 2 * u64::from(self.size), &event.to_le_bytes());
        } else {
            put(memory, self.places.driver, &u16::from(!on).to_le_bytes());
        }
    }
}
