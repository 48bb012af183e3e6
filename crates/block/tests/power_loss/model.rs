//! What a disk may hold after a crash.

/// What is written whole or not at all.
pub const SECTOR: usize = 512;

/// A sector's possible contents after a crash: that of the last flush, and everything written since.
#[derive(Clone)]
pub struct Model {
    safe: Vec<u8>,
    pub now: Vec<u8>,
    /// Changes so far.
    pub changes: usize,
    /// Values written to each sector since the last flush, besides that of `now`.
    pub possible: Vec<Vec<u8>>,
}

impl Model {
    /// A disk that holds this, durably.
    pub fn of(content: Vec<u8>) -> Self {
        let possible = vec![Vec::new(); content.len() / SECTOR];
        Model { safe: content.clone(), now: content, changes: 0, possible }
    }

    /// Bytes of this value are about to be written.
    pub fn write(&mut self, at: usize, len: usize, value: u8) {
        self.changes += 1;
        for sector in at / SECTOR..(at + len) / SECTOR {
            self.possible[sector].push(value);
        }
        self.now[at..at + len].fill(value);
    }

    /// All before is durable.
    pub fn flush(&mut self) {
        self.safe.clone_from(&self.now);
        self.possible.iter_mut().for_each(Vec::clear);
    }

    /// Whether the disk may hold this.
    pub fn check(&self, content: &[u8]) -> Result<(), String> {
        for (sector, found) in content.chunks(SECTOR).enumerate() {
            let safe = &self.safe[sector * SECTOR..][..SECTOR];
            let written = |value: &u8| found.iter().all(|byte| byte == value);
            if found != safe && !self.possible[sector].iter().any(written) {
                let (is, was) = (found[0], safe[0]);
                return Err(format!(
                    "sector {sector:#x} holds {is:#x}; flushed was {was:#x}, then {:?}",
                    self.possible[sector]
                ));
            }
        }
        Ok(())
    }
}
