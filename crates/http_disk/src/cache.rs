//! The blocks that were fetched last.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Bytes of a block.
pub const BLOCK: u64 = 256 << 10;
/// Most blocks that are kept: 16 MiB.
const BLOCKS_MAX: usize = 64;

/// Blocks by their numbers.
#[derive(Default)]
pub struct Cache {
    blocks: HashMap<u64, (u64, Arc<[u8]>)>,
    /// When each was used, oldest first.
    used: BTreeSet<(u64, u64)>,
    clock: u64,
    /// The block behind the last that was fetched, and how many were fetched with it.
    next: Option<(u64, u64)>,
}

impl Cache {
    pub fn get(&mut self, number: u64) -> Option<Arc<[u8]>> {
        self.clock += 1;
        let (used, block) = self.blocks.get_mut(&number)?;
        self.used.remove(&(*used, number));
        *used = self.clock;
        self.used.insert((self.clock, number));
        Some(block.clone())
    }

    pub fn put(&mut self, number: u64, block: Arc<[u8]>) {
        self.clock += 1;
        if let Some((used, _)) = self.blocks.insert(number, (self.clock, block)) {
            self.used.remove(&(used, number));
        }
        self.used.insert((self.clock, number));
        while self.blocks.len() > BLOCKS_MAX
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.blocks.remove(&oldest);
        }
    }

    /// How many blocks to fetch from a missing one on: twice as many as before, up to `most`, where somebody reads on;
    /// else one.
    pub fn run(&mut self, number: u64, most: u64) -> u64 {
        let count = match self.next {
            Some((next, count)) if next == number => (count * 2).min(most),
            _ => 1,
        };
        self.next = Some((number + count, count));
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_blocks_go_and_readers_get_more_at_a_time() {
        let mut cache = Cache::default();
        for number in 0..100 {
            cache.put(number, Arc::from([number as u8]));
            assert!(cache.get(0).is_some(), "it is used all the time");
        }
        assert_eq!(cache.blocks.len(), BLOCKS_MAX);
        assert_eq!(cache.used.len(), BLOCKS_MAX);
        assert!(cache.get(1).is_none() && cache.get(99).is_some());
        let runs: Vec<u64> = [0, 1, 3, 7, 15, 31, 500, 3].map(|number| cache.run(number, 16)).to_vec();
        assert_eq!(runs, [1, 2, 4, 8, 16, 16, 1, 1]);
    }
}
