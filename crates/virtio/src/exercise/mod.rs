//! A driver's side, for the tests of this crate and for the fuzz targets.
//!
//! [`SplitDriver`] and [`PackedDriver`] are written from the driver's sections of the specification, on their own: they
//! share no code with the device's side. [`Bench`] is a function on a board of stubs, with registers that a driver
//! programs; [`hostile`] is a driver that keeps no rule.

mod bench;
pub mod hostile;
mod packed;
pub mod rigs;
pub mod rings;
mod split;

pub use bench::{Bench, DriverQueue, RAM, Wish};
pub use packed::PackedDriver;
pub use split::SplitDriver;

use guest_memory::GuestMemory;

/// A buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// Where the three parts of a ring lie, as the registers want it.
#[derive(Clone, Copy, Debug)]
pub struct RingPlaces {
    /// Descriptor table or packed ring.
    pub descriptors: u64,
    /// Available ring or the driver's event suppression.
    pub driver: u64,
    /// Used ring or the device's event suppression.
    pub device: u64,
}

/// A driver's side of a ring.
pub trait DriverRing {
    /// Where it lies.
    fn places(&self) -> RingPlaces;
    /// Makes a request available: as a chain in the ring, or as a table at the address given. Answers what will
    /// identify it, or none if there is no room.
    fn add(&mut self, memory: &GuestMemory, pieces: &[Piece], table: Option<u64>) -> Option<u16>;
    /// Whether the device wants a notification of what was added since this was last asked.
    fn must_notify(&mut self, memory: &GuestMemory) -> bool;
    /// The next used request and the length the device says.
    fn take_used(&mut self, memory: &GuestMemory) -> Option<(u16, u32)>;
    /// Asks for an interrupt at the next used request, or for none.
    fn want_interrupts(&mut self, memory: &GuestMemory, on: bool);
}

/// A number of guest memory.
///
/// # Panics
/// Outside of RAM, as all of these: the driver under test equipment keeps inside.
pub fn get<const N: usize>(memory: &GuestMemory, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read(address, &mut bytes).unwrap_or_else(|error| panic!("{error}"));
    bytes
}

fn get16(memory: &GuestMemory, address: u64) -> u16 {
    u16::from_le_bytes(get(memory, address))
}

fn get32(memory: &GuestMemory, address: u64) -> u32 {
    u32::from_le_bytes(get(memory, address))
}

/// Writes guest memory.
///
/// # Panics
/// Outside of RAM.
pub fn put(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    memory.write(address, bytes).unwrap_or_else(|error| panic!("{error}"));
}

/// Writes a descriptor: address, length, and the two 16-bit fields in the order of the layout.
fn put_descriptor(memory: &GuestMemory, at: u64, piece: &Piece, low: u16, high: u16) {
    put(memory, at, &piece.address.to_le_bytes());
    put(memory, at + 8, &piece.len.to_le_bytes());
    put(memory, at + 12, &low.to_le_bytes());
    put(memory, at + 14, &high.to_le_bytes());
}
