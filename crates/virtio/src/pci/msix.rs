//! MSI-X table and pending bits (PCI Local Bus 3.0, 6.8.2).

use device::Msi;
use serde::{Deserialize, Serialize};

const MASKED: u32 = 1;

/// The vectors of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixTable {
    /// Address low, address high, data, control.
    entries: Vec<[u32; 4]>,
    pending: Vec<bool>,
}

impl MsixTable {
    /// All masked.
    pub fn new(vectors: usize) -> Self {
        MsixTable { entries: vec![[0, 0, 0, MASKED]; vectors], pending: vec![false; vectors] }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> usize {
        self.entries.len()
    }

    /// Reads four or eight bytes of the table.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset as usize + i;
            let word = self.entries.get(at / 16).map_or(0, |entry| entry[at / 4 % 4]);
            *byte = word.to_le_bytes()[at % 4];
        }
    }

    /// Writes bytes of the table. Returns a message that was pending on the vector, if it is unmasked now.
    pub fn write(&mut self, offset: u64, data: &[u8], function_masked: bool) -> Option<Msi> {
        for (i, value) in data.iter().enumerate() {
            let at = offset as usize + i;
            if let Some(entry) = self.entries.get_mut(at / 16) {
                let mut bytes = entry[at / 4 % 4].to_le_bytes();
                bytes[at % 4] = *value;
                entry[at / 4 % 4] = u32::from_le_bytes(bytes);
            }
        }
        let vector = offset as usize / 16;
        if function_masked || !self.pending.get(vector).copied().unwrap_or(false) {
            return None;
        }
        self.signal(vector, false)
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let first = (offset as usize + i) * 8;
            let bit = |n: usize| u8::from(self.pending.get(first + n).copied().unwrap_or(false)) << n;
            *byte = (0..8).map(bit).sum();
        }
    }

    /// Signals a vector: the message to send, or none if it is masked (it is then pending) or does not exist.
    pub fn signal(&mut self, vector: usize, function_masked: bool) -> Option<Msi> {
        let entry = self.entries.get(vector)?;
        let masked = function_masked || entry[3] & MASKED != 0;
        self.pending[vector] = masked;
        let address = u64::from(entry[0] & !3) | u64::from(entry[1]) << 32;
        (!masked).then_some(Msi { address, data: entry[2] })
    }

    /// Messages that were pending while the function was masked.
    pub fn unmask_function(&mut self) -> Vec<Msi> {
        (0..self.vectors())
            .filter(|&vector| self.pending[vector])
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|vector| self.signal(vector, false))
            .collect()
    }

    /// Whether a saved table has as many vectors.
    pub fn fits(&self, other: &MsixTable) -> bool {
        self.entries.len() == other.entries.len() && self.pending.len() == other.pending.len()
    }
}
