//! Regions of volumes in which copies may differ, from each other and from their checksums.
//!
//! A region becomes dirty, durably, before the first write into it, and clean some time after the last one: when a
//! commit finds that nothing was written since the one before, whose flush covered all that was. After a power loss
//! the copies in dirty regions are made equal, and checksums that do not fit are made anew, before anything reads them.

use super::Pool;
use super::record::{Record, VolumeId};
use std::collections::{HashMap, HashSet};
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
pub(super) struct Regions {
    active: HashMap<(VolumeId, u32), Activity>,
    /// Stay dirty: a member that failed may have lost what was written to it, and may come back.
    doubtful: HashSet<(VolumeId, u32)>,
}

impl Regions {
    /// Forgets a volume that is gone.
    pub fn forget(&mut self, gone: VolumeId) {
        self.active.retain(|(volume, _), _| *volume != gone);
        self.doubtful.retain(|(volume, _)| *volume != gone);
    }

    /// Keeps regions from becoming clean.
    pub fn doubt(&mut self, regions: impl IntoIterator<Item = (VolumeId, u32)>) {
        self.doubtful.extend(regions);
    }

    /// Ends that, and tells whether nobody has written there.
    pub fn trust(&mut self, region: (VolumeId, u32)) -> bool {
        self.doubtful.remove(&region);
        !self.active.contains_key(&region)
    }

    /// Those that are kept so.
    pub fn doubtful(&self) -> Vec<(VolumeId, u32)> {
        self.doubtful.iter().copied().collect()
    }
}

/// A write under way. The region stays dirty as long.
pub(super) struct RegionUse<'a> {
    pool: &'a Pool,
    key: (VolumeId, u32),
}

impl Drop for RegionUse<'_> {
    fn drop(&mut self) {
        if let Some(activity) = self.pool.regions.lock().active.get_mut(&self.key) {
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
        let activity = regions.active.entry(key).or_default();
        activity.in_flight += 1;
        activity.recent = true;
        let durable = activity.durable;
        let region_use = RegionUse { pool: self, key };
        if !durable {
            let known = self.inner.read().state.dirty.contains(&key);
            let said = if known { Ok(()) } else { self.change(vec![Record::Dirtied { volume, region }]) };
            drop(regions);
            said.and_then(|()| self.commit())?;
            if let Some(activity) = self.regions.lock().active.get_mut(&key) {
                activity.durable = true;
            }
        }
        Ok(region_use)
    }

    /// Says which regions rest. Called when a commit begins; with `all`, when nobody writes any more.
    pub(super) fn rest_regions(&self, all: bool) -> Result<()> {
        let mut regions = self.regions.lock();
        let mut clean = Vec::new();
        let Regions { active, doubtful } = &mut *regions;
        active.retain(|(volume, region), activity| {
            let trusted = !doubtful.contains(&(*volume, *region));
            let rests = activity.in_flight == 0 && (all || !activity.recent) && trusted;
            if rests {
                clean.push(Record::Cleaned { volume: *volume, region: *region });
            }
            activity.recent &= activity.in_flight != 0;
            !rests
        });
        if clean.is_empty() { Ok(()) } else { self.change(clean) }
    }
}
