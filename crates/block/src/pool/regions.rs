//! Regions of mirrored volumes whose copies may differ.
//!
//! A region becomes dirty, durably, before the first write into it, and clean some time after the last one: when a
//! commit finds that nothing was written since the one before, whose flush covered all that was. After a power loss
//! the copies in dirty regions are made equal before anything reads them.

use super::Pool;
use super::record::{Record, VolumeId};
use std::collections::HashMap;
use std::io::Result;

#[derive(Default)]
struct Activity {
    in_flight: u32,
    /// Written to since the last commit began.
    recent: bool,
    /// The log says that it is dirty.
    durable: bool,
}

#[derive(Default)]
pub(super) struct Regions(HashMap<(VolumeId, u32), Activity>);

impl Regions {
    /// Forgets a volume that is gone.
    pub fn forget(&mut self, gone: VolumeId) {
        self.0.retain(|(volume, _), _| *volume != gone);
    }
}

/// A write under way. The region stays dirty as long.
pub(super) struct RegionUse<'a> {
    pool: &'a Pool,
    key: (VolumeId, u32),
}

impl Drop for RegionUse<'_> {
    fn drop(&mut self) {
        if let Some(activity) = self.pool.regions.lock().0.get_mut(&self.key) {
            activity.in_flight = activity.in_flight.saturating_sub(1);
        }
    }
}

impl Pool {
    /// Says that copies of a chunk are about to differ, and waits until that is durable.
    pub(super) fn use_region(&self, volume: VolumeId, chunk: u32) -> Result<RegionUse<'_>> {
        let region = self.inner.read().state.region_of(chunk);
        let key = (volume, region);
        let mut regions = self.regions.lock();
        let activity = regions.0.entry(key).or_default();
        activity.in_flight += 1;
        activity.recent = true;
        let durable = activity.durable;
        let region_use = RegionUse { pool: self, key };
        if !durable {
            let known = self.inner.read().state.dirty.contains(&key);
            let said = if known { Ok(()) } else { self.change(vec![Record::Dirtied { volume, region }]) };
            drop(regions);
            said.and_then(|()| self.commit())?;
            if let Some(activity) = self.regions.lock().0.get_mut(&key) {
                activity.durable = true;
            }
        }
        Ok(region_use)
    }

    /// Says which regions rest. Called when a commit begins; with `all`, when nobody writes any more.
    pub(super) fn rest_regions(&self, all: bool) -> Result<()> {
        let mut regions = self.regions.lock();
        let mut clean = Vec::new();
        regions.0.retain(|(volume, region), activity| {
            let rests = activity.in_flight == 0 && (all || !activity.recent);
            if rests {
                clean.push(Record::Cleaned { volume: *volume, region: *region });
            }
            activity.recent &= activity.in_flight != 0;
            !rests
        });
        if clean.is_empty() { Ok(()) } else { self.change(clean) }
    }
}
