//! MSI-X table and pending bits (PCI Local Bus 3.0, 6.8.2).

use super::bits::NO_VECTOR;
use super::registers::Message;
use device::Msi;
use serde::{Deserialize, Serialize};

const MASKED: u32 = 1;
const ENTRY_LEN: usize = 16;

/// One vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntry {
    /// Message address, low half.
    pub address_low: u32,
    /// Message address, high half.
    pub address_high: u32,
    /// Message data.
    pub data: u32,
    /// Vector control: bit 0 masks.
    pub control: u32,
    /// Pending bit.
    pub pending: bool,
}

const EMPTY: MsixEntry =
    MsixEntry { address_low: 0, address_high: 0, data: 0, control: MASKED, pending: false };

impl MsixEntry {
    fn word(&mut self, index: usize) -> &mut u32 {
        match index {
            0 => &mut self.address_low,
            1 => &mut self.address_high,
            2 => &mut self.data,
            _ => &mut self.control,
        }
    }

    /// The message, or none if the vector is masked; it is then pending.
    fn signal(&mut self, function_masked: bool) -> Option<Msi> {
        self.pending = function_masked || self.control & MASKED != 0;
        let address = u64::from(self.address_low & !3) | u64::from(self.address_high) << 32;
        (!self.pending).then_some(Msi { address, data: self.data })
    }
}

/// The vectors of a function.
#[derive(Clone, Debug)]
pub struct MsixTable(Vec<MsixEntry>);

impl MsixTable {
    /// All masked.
    pub fn new(vectors: usize) -> Self {
        MsixTable(vec![EMPTY; vectors])
    }

    /// A saved table.
    pub fn restored(entries: Vec<MsixEntry>) -> Self {
        MsixTable(entries)
    }

    /// For saving.
    pub fn entries(&self) -> &[MsixEntry] {
        &self.0
    }

    /// Number of vectors.
    pub fn vectors(&self) -> usize {
        self.0.len()
    }

    /// What a vector register reads after `value` was written to it: the vector, or none if there is no such.
    pub fn checked(&self, value: u64) -> u16 {
        if value < self.0.len() as u64 { value as u16 } else { NO_VECTOR }
    }

    /// Reads bytes of the table; zeros past its end.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            let word = self.0.get(at / ENTRY_LEN).map_or(0, |&entry| *{ entry }.word(at / 4 % 4));
            *byte = (word >> (at % 4 * 8)) as u8;
        }
    }

    /// Writes bytes of the table; answers the messages that were pending on vectors unmasked by it.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], function_masked: bool) -> Vec<Message> {
        for (at, &value) in (offset as usize..).zip(data) {
            if let Some(entry) = self.0.get_mut(at / ENTRY_LEN) {
                let word = entry.word(at / 4 % 4);
                let shift = at % 4 * 8;
                *word = *word & !(0xff << shift) | u32::from(value) << shift;
            }
        }
        self.send_pending(function_masked)
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            let entries = self.0.iter().skip(at.saturating_mul(8)).take(8);
            *byte = entries.enumerate().map(|(n, entry)| u8::from(entry.pending) << n).sum();
        }
    }

    /// Signals a vector: the message to send, or none if it is masked (it is then pending) or does not exist.
    pub(super) fn signal(&mut self, vector: u16, function_masked: bool) -> Option<Message> {
        let msi = self.0.get_mut(usize::from(vector))?.signal(function_masked)?;
        Some(Message { vector, msi })
    }

    /// The messages that are pending and not masked any more.
    pub(super) fn send_pending(&mut self, function_masked: bool) -> Vec<Message> {
        let pending = (0..).zip(&mut self.0).filter(|(_, entry)| entry.pending);
        pending
            .filter_map(|(vector, entry)| Some(Message { vector, msi: entry.signal(function_masked)? }))
            .collect()
    }
}
