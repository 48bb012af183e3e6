//! A driver's side of the packed ring (virtio 2.8, by its driver requirements).

use super::{DriverRing, Piece, RingPlaces, get16, get32, put, put_descriptor};
use guest_memory::GuestMemory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A place in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    slot: u16,
    wrap: bool,
}

impl Place {
    fn next(self, size: u16) -> Self {
        match self.slot + 1 == size {
            true => Place { slot: 0, wrap: !self.wrap },
            false => Place { slot: self.slot + 1, wrap: self.wrap },
        }
    }

    fn event(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }
}

/// The driver.
#[derive(Clone, Debug)]
pub struct PackedDriver {
    places: RingPlaces,
    size: u16,
    event_index: bool,
    next: Place,
    notified: Place,
    added_since: u16,
    used: Place,
    free_slots: u16,
    /// Slots of each request under way, by its buffer ID.
    spans: Vec<Option<u16>>,
}

impl PackedDriver {
    /// An empty ring of `size` entries at `base`; 16 × size + 8 bytes are its own.
    pub fn new(memory: &GuestMemory, base: u64, size: u16, event_index: bool) -> Self {
        let driver = base + 16 * u64::from(size);
        put(memory, base, &vec![0; usize::from(size) * 16 + 8]);
        let start = Place { slot: 0, wrap: true };
        PackedDriver {
            places: RingPlaces { descriptors: base, driver, device: driver + 4 },
            size,
            event_index,
            next: start,
            notified: start,
            added_since: 0,
            used: start,
            free_slots: size,
            spans: vec![None; size.into()],
        }
    }

    fn at(&self, place: Place) -> u64 {
        self.places.descriptors + 16 * u64::from(place.slot)
    }
}

impl DriverRing for PackedDriver {
    fn places(&self) -> RingPlaces {
        self.places
    }

    fn add(&mut self, memory: &GuestMemory, pieces: &[Piece], table: Option<u64>) -> Option<u16> {
        let needed = if table.is_some() { 1 } else { pieces.len() as u16 };
        if pieces.is_empty() || self.free_slots < needed {
            return None;
        }
        // Any ID that is not under way will do; the highest shows a device that takes IDs for slots.
        let id = self.spans.iter().rposition(Option::is_none)?;
        let write = |piece: &Piece| if piece.writable { WRITE } else { 0 };
        let in_ring: Vec<(Piece, u16)> = if let Some(table) = table {
            for (i, piece) in pieces.iter().enumerate() {
                put_descriptor(memory, table + 16 * i as u64, piece, 0, write(piece));
            }
            let whole = Piece { address: table, len: 16 * pieces.len() as u32, writable: false };
            vec![(whole, INDIRECT)]
        } else {
            let last = pieces.len() - 1;
            let chained =
                |(i, piece): (usize, &Piece)| (*piece, write(piece) | if i < last { NEXT } else { 0 });
            pieces.iter().enumerate().map(chained).collect()
        };
        let first = self.next;
        let mut first_flags = 0;
        for (i, (piece, flags)) in in_ring.iter().enumerate() {
            let place = self.next;
            let flags = flags | if place.wrap { AVAIL } else { USED };
            // The first descriptor's flags make all of them available, so they are written last.
            let now = if i == 0 { get16(memory, self.at(place) + 14) } else { flags };
            put_descriptor(memory, self.at(place), piece, id as u16, now);
            if i == 0 {
                first_flags = flags;
            }
            self.next = place.next(self.size);
        }
        put(memory, self.at(first) + 14, &first_flags.to_le_bytes());
        self.free_slots -= needed;
        self.added_since += needed;
        self.spans[id] = Some(needed);
        Some(id as u16)
    }

    fn must_notify(&mut self, memory: &GuestMemory) -> bool {
        let added = std::mem::take(&mut self.added_since);
        let mut place = std::mem::replace(&mut self.notified, self.next);
        if added == 0 {
            return false;
        }
        let (event, flags) = (get16(memory, self.places.device), get16(memory, self.places.device + 2));
        match flags {
            0 => true,
            1 => false,
            2 => {
                assert!(self.event_index, "the device uses an event index that was not negotiated");
                (0..added).any(|_| {
                    let hit = place.event() == event;
                    place = place.next(self.size);
                    hit
                })
            }
            other => panic!("the device's event flags are {other}"),
        }
    }

    fn take_used(&mut self, memory: &GuestMemory) -> Option<(u16, u32)> {
        let at = self.at(self.used);
        let flags = get16(memory, at + 14);
        let (avail, used) = (flags & AVAIL != 0, flags & USED != 0);
        if avail != used || used != self.used.wrap {
            return None;
        }
        let (len, id) = (get32(memory, at + 8), get16(memory, at + 12));
        let span = self.spans[usize::from(id)].take();
        let span = span.unwrap_or_else(|| panic!("request {id} was given back but is not under way"));
        for _ in 0..span {
            self.used = self.used.next(self.size);
        }
        self.free_slots += span;
        assert!(len == 0 || flags & WRITE != 0, "a length without the write flag");
        Some((id, len))
    }

    fn want_interrupts(&mut self, memory: &GuestMemory, on: bool) {
        let flags: u16 = match (on, self.event_index) {
            (false, _) => 1,
            (true, false) => 0,
            (true, true) => 2,
        };
        put(memory, self.places.driver, &self.used.event().to_le_bytes());
        put(memory, self.places.driver + 2, &flags.to_le_bytes());
    }
}
