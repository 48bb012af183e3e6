//! What a program changes in an image, before it is opened.

use super::memory::Memory;
use block::BlockBackend;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a change.
pub const CHANGE: usize = 12;
/// Changes of a program.
const CHANGES_MAX: usize = 16;

/// A valid image.
pub struct Seed {
    /// Name of its format.
    pub format: &'static str,
    pub bytes: Arc<Vec<u8>>,
    /// Where its metadata are; whatever is in there, something uses it.
    pub fields: Vec<Range<usize>>,
    /// A change that knows more than fields; says whether it was one.
    pub change: fn(&Seed, &Memory, &[u8; CHANGE]) -> bool,
    /// Makes checksums right again.
    pub seal: fn(&Memory),
}

impl Seed {
    pub fn new(format: &'static str, bytes: Vec<u8>, fields: Vec<Range<usize>>) -> Self {
        Seed { format, bytes: Arc::new(bytes), fields, change: |_, _, _| false, seal: |_| () }
    }

    /// The image after a program.
    pub fn changed(&self, program: &[u8], seal: bool) -> Arc<Memory> {
        let file = Memory::new(self.bytes.clone(), true);
        for change in program.as_chunks::<CHANGE>().0.iter().take(CHANGES_MAX) {
            if !(self.change)(self, &file, change) {
                self.field(&file, change);
            }
        }
        if seal {
            (self.seal)(&file);
        }
        file
    }

    /// One place: a byte for the table, two for the place there, one for what is done, eight with a value.
    fn field(&self, file: &Memory, change: &[u8; CHANGE]) {
        let [table, low, high, how, value @ ..] = *change;
        let place = usize::from(u16::from_le_bytes([low, high]));
        let width = 1_usize << (how & 3);
        let size = file.size() as usize;
        let all = 0..size;
        let range = self.fields.get(usize::from(table)).unwrap_or(&all);
        let step = if range.len() > 1 << 16 || how & 0x20 != 0 { width.max(range.len() >> 16) } else { 1 };
        let at = range.start + (place * step) % range.len().max(1);
        let raw = u64::from_le_bytes(value);
        let mut old = [0; 8];
        let _ = file.read_bytes(at as u64, &mut old[..width]);
        let big = how & 4 != 0;
        let number = match how >> 3 & 3 {
            0 => raw,
            1 => telling(value[0], value[1], size as u64),
            2 => {
                let old =
                    if big { u64::from_be_bytes(old) >> (64 - 8 * width) } else { u64::from_le_bytes(old) };
                old.wrapping_add(i64::from(value[0].cast_signed()) as u64)
            }
            _ => {
                // What is at another place, or the file's end.
                let from = raw as usize % size.max(1);
                let mut other = [0; 8];
                let _ = file.read_bytes(from as u64, &mut other);
                u64::from_le_bytes(other)
            }
        };
        let bytes = if big { number << (64 - 8 * width) } else { number };
        let bytes = if big { bytes.to_be_bytes() } else { bytes.to_le_bytes() };
        if how & 0xc0 == 0xc0 {
            // Cut off, or with something behind it.
            let _ = file.resize((at as u64).saturating_add(number % 4096));
        } else {
            let _ = file.write_bytes(at as u64, &bytes[..width]);
        }
    }
}

/// Numbers at which something changes.
fn telling(which: u8, shift: u8, size: u64) -> u64 {
    let power = 1_u64 << (shift & 63);
    match which % 12 {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => i64::MAX as u64,
        4 => power,
        5 => power - 1,
        6 => power.wrapping_neg(),
        7 => size,
        8 => size / 512,
        9 => size.saturating_sub(512),
        10 => u64::from(shift),
        _ => size + u64::from(shift) * 512,
    }
}
