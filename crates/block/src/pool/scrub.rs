//! Comparing the copies of mirrored volumes, and making them equal.

use super::Pool;
use super::commit::is_full;
use super::record::{Copies, Filled, LayerId, Record, Slot, VolumeId};
use super::request::COPY;
use super::sums::Mend;
use serde::Serialize;
use std::io::Result;

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScrubReport {
    /// Chunks that were read, all copies of each.
    pub chunks: u64,
    /// Chunks whose copies differ.
    pub differing: u64,
    /// Chunks of which a copy cannot be read.
    pub unreadable: u64,
    /// Chunks of which a copy is wrong by its checksum.
    pub rotten: u64,
    /// Chunks that could be read in no copy, or are right in none: their data are lost.
    pub lost: u64,
    /// Chunks that are on fewer members than they should be; `vireo pool rebuild` mends that.
    pub degraded: u64,
    /// Chunks whose copies were made equal.
    pub repaired: u64,
    /// A line for each finding, at most 1000.
    pub findings: Vec<String>,
}

impl ScrubReport {
    /// Nothing wrong is left.
    pub fn is_clean(&self) -> bool {
        self.differing + self.unreadable + self.rotten == self.repaired
            && self.lost == 0
            && self.degraded == 0
    }
}

/// What became of a chunk.
#[derive(Default)]
struct Comparison {
    /// Copies are not equal still: a member is full.
    stuck: bool,
    differs: bool,
    unreadable: bool,
    rotten: bool,
    lost: bool,
    repaired: bool,
}

impl Pool {
    /// Reads everything and compares copies. With `repair`, what differs or cannot be read is written anew, from what
    /// most copies say, or the first of them; what the others have when there is no room for that on a full member.
    /// Volumes may be used meanwhile. `progress` hears the number of each chunk.
    pub fn scrub(&self, repair: bool, progress: &dyn Fn(u64)) -> Result<ScrubReport> {
        let mut report = ScrubReport::default();
        let volumes: Vec<VolumeId> = self.inner.read().state.volumes.keys().copied().collect();
        for volume in volumes {
            let Ok(settings) = self.settings(volume) else { continue };
            for (layer, chunk, _) in self.slots_of(volume) {
                let gate = self.gate(volume);
                let _gate = gate.read();
                let _hold = self.alone(volume, chunk);
                let slot = {
                    let state = &self.inner.read().state;
                    state.layers.get(&layer).and_then(|layer| layer.map.get(&chunk)).copied()
                };
                let Some(Slot::Data { copies, filled }) = slot else { continue };
                let healthy = self.inner.read().state.healthy(&copies);
                let there = healthy.map_or(0, |copies| copies.places().len());
                report.degraded += u64::from(there < settings.layout.copies());
                let Some(healthy) = healthy.filter(|_| filled != Filled::No) else { continue };
                report.chunks += 1;
                progress(report.chunks);
                let found = if filled == Filled::Summed {
                    self.check_sums(&healthy, if repair { Mend::Repair } else { Mend::No })?
                } else {
                    self.compare_copies(&healthy, repair)?
                };
                report.add(&found, &format!("chunk {chunk} of volume {}", settings.name));
            }
        }
        let complete = self.inner.read().state.members.values().all(|member| !member.failed);
        if repair && complete {
            let doubtful = self.regions.lock().doubtful();
            self.resync(doubtful)?;
        }
        Ok(report)
    }

    /// Makes the copies in these dirty regions equal, and checksums that do not fit anew. A region stays dirty when a chunk
    /// in it cannot be reached, or a member is full. Volumes may be used meanwhile.
    pub(super) fn resync(&self, regions: impl IntoIterator<Item = (VolumeId, u32)>) -> Result<()> {
        for (volume, region) in regions {
            let mut missed = false;
            for (layer, chunk, _) in self.slots_of(volume) {
                if self.inner.read().state.region_of(chunk) == region {
                    missed |= !self.resync_chunk(volume, layer, chunk)?;
                }
            }
            let mut regions = self.regions.lock();
            if missed {
                regions.doubt([(volume, region)]);
            } else if regions.trust((volume, region)) {
                self.change(vec![Record::Cleaned { volume, region }])?;
            }
        }
        self.commit()
    }

    /// False when a chunk with checksums cannot be reached, or copies cannot be made equal.
    fn resync_chunk(&self, volume: VolumeId, layer: LayerId, chunk: u32) -> Result<bool> {
        let gate = self.gate(volume);
        let _gate = gate.read();
        let _hold = self.alone(volume, chunk);
        let (copies, filled, is_top, healthy) = {
            let state = &self.inner.read().state;
            let slot = state.layers.get(&layer).and_then(|layer| layer.map.get(&chunk));
            let Some(Slot::Data { copies, filled }) = slot else { return Ok(true) };
            let top = state.volumes.get(&volume).map(|volume| volume.top);
            (*copies, *filled, top == Some(layer), state.healthy(copies))
        };
        let found = match healthy {
            None => return Ok(filled != Filled::Summed),
            // Only the top layer was written to since its last flush.
            Some(healthy) if filled == Filled::Summed => {
                self.check_sums(&healthy, if is_top { Mend::Accept } else { Mend::Repair })?
            }
            Some(healthy) if copies.places().len() > 1 => self.compare_copies(&healthy, true)?,
            Some(_) => return Ok(true),
        };
        Ok(!found.stuck)
    }

    /// Compares the copies of a chunk with their checksums.
    fn check_sums(&self, copies: &Copies, how: Mend) -> Result<Comparison> {
        let mut found = Comparison::default();
        let step = self.chunk.min(COPY);
        for at in (0..self.chunk).step_by(step as usize) {
            let Ok(mended) = self.mend(copies, at, step, how) else {
                found.lost = true;
                return Ok(found);
            };
            found.lost |= !mended.lost.is_empty();
            found.rotten |= mended.rotten;
            found.unreadable |= mended.unreadable;
            found.differs |= mended.differs;
            match mended.repaired {
                Err(error) if is_full(&error) => {
                    found.stuck |= !self.level(copies, true, at..at + step);
                    found.repaired = true;
                }
                repaired => found.repaired |= repaired?,
            }
        }
        found.repaired &= !found.stuck;
        Ok(found)
    }

    fn compare_copies(&self, copies: &Copies, repair: bool) -> Result<Comparison> {
        let mut found = Comparison::default();
        let mut wrote = false;
        let mut at = 0;
        while at < self.chunk {
            let len = (self.chunk - at).min(COPY) as usize;
            let read = |place: &super::Place| {
                let mut bytes = vec![0; len];
                let disk = self.disk(place.member).ok()?;
                disk.read_bytes(self.offset(*place) + at, &mut bytes).ok().map(|()| bytes)
            };
            let mut full = false;
            let contents: Vec<Option<Vec<u8>>> = copies.places().iter().map(read).collect();
            let votes =
                |content: &&Vec<u8>| contents.iter().flatten().filter(|other| other == content).count();
            let most = contents.iter().flatten().map(|content| votes(&content)).max();
            let Some(right) = contents.iter().flatten().find(|content| Some(votes(content)) == most) else {
                found.lost = true;
                return Ok(found);
            };
            for (place, content) in copies.places().iter().zip(&contents) {
                if content.as_ref() == Some(right) {
                    continue;
                }
                found.differs |= content.is_some();
                found.unreadable |= content.is_none();
                if repair {
                    let disk = self.disk(place.member)?;
                    match disk.write_bytes(self.offset(*place) + at, right) {
                        Err(error) if is_full(&error) => full = true,
                        written => written?,
                    }
                    wrote = true;
                }
            }
            if full {
                found.stuck |= !self.level(copies, false, at..at + len as u64);
            }
            at += len as u64;
        }
        found.repaired = wrote && !found.stuck;
        Ok(found)
    }
}

impl ScrubReport {
    fn add(&mut self, found: &Comparison, which: &str) {
        // Each counts once.
        let (lost, unreadable) = (found.lost, found.unreadable && !found.lost);
        let rotten = found.rotten && !lost && !unreadable;
        self.lost += u64::from(lost);
        self.unreadable += u64::from(unreadable);
        self.rotten += u64::from(rotten);
        self.differing += u64::from(found.differs && !lost && !unreadable && !rotten);
        self.repaired += u64::from(found.repaired && !lost);
        let what = match found {
            Comparison { lost: true, rotten: true, .. } => "is wrong by its checksum on all its members",
            Comparison { lost: true, .. } => "cannot be read on any member",
            Comparison { unreadable: true, .. } => "cannot be read on one of its members",
            Comparison { rotten: true, .. } => "is wrong by its checksum on one of its members",
            Comparison { differs: true, .. } => "has copies that differ",
            _ => return,
        };
        if self.findings.len() < 1000 {
            let repaired = if found.repaired { "; repaired" } else { "" };
            self.findings.push(format!("{which} {what}{repaired}"));
        }
    }
}
