//! Giving chunks other places, one at a time, while volumes are used.

use super::Pool;
use super::commit::COMMIT_EVERY;
use super::record::{
    Copies, Filled, LayerId, Layout, MemberId, Place, Record, Slot, Stored, VolumeId, VolumeSettings,
};
use super::request::{COPY, Content};
use std::io::{Error, ErrorKind, Result};

/// What is to be done with a chunk.
struct Plan {
    /// The copy that is given up.
    leave: Option<Place>,
    /// Where there may be another one instead, the best first.
    to: Vec<MemberId>,
}

impl Pool {
    /// Moves a volume to other members, given by their paths or numbers, while it is used. A striped volume is striped
    /// over them. `progress` hears of every chunk that was moved.
    pub fn move_volume(&self, name: &str, to: &[String], progress: &dyn Fn(u64)) -> Result<u64> {
        let volume = self.volume_id(name)?;
        let members: Vec<MemberId> =
            to.iter().map(|member| self.member_named(member)).collect::<Result<_>>()?;
        let copies = self.settings(volume)?.layout.copies();
        if members.len() < copies {
            let text = format!("{copies} copies need as many members; {} are named", members.len());
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        self.change(vec![Record::VolumeMoved { volume, members: members.clone() }])?;
        let plan = |settings: &VolumeSettings, chunk: u32, copies: &Copies| {
            let right = |member: MemberId| match settings.layout {
                Layout::Striped => members.get(chunk as usize % members.len().max(1)) == Some(&member),
                Layout::Linear | Layout::Mirrored(_) => members.contains(&member),
            };
            let leave = copies.places().iter().copied().find(|place| !right(place.member))?;
            Some(Plan { leave: Some(leave), to: self.candidates(settings, chunk, copies.places()) })
        };
        self.relocate(volume, &plan, progress)
    }

    /// Moves everything away from a member.
    pub(super) fn evacuate(&self, member: MemberId, progress: &dyn Fn(u64)) -> Result<()> {
        let volumes: Vec<VolumeId> = self.inner.read().state.volumes.keys().copied().collect();
        for volume in volumes {
            self.replace_member(volume, member)?;
            let plan = |settings: &VolumeSettings, chunk: u32, copies: &Copies| {
                let leave = copies.places().iter().copied().find(|place| place.member == member)?;
                let to = self.candidates(settings, chunk, copies.places());
                Some(Plan { leave: Some(leave), to })
            };
            self.relocate(volume, &plan, progress)?;
        }
        Ok(())
    }

    /// Takes a member off the list of those a volume is on, and puts another one there if there is one.
    fn replace_member(&self, volume: VolumeId, gone: MemberId) -> Result<()> {
        let settings = self.settings(volume)?;
        if !settings.members.contains(&gone) {
            return Ok(());
        }
        let mut members = settings.members.clone();
        let other = {
            let inner = self.inner.read();
            let unused = inner.state.members.keys().filter(|other| !members.contains(other));
            unused
                .copied()
                .max_by_key(|other| inner.space.available(*other))
                .filter(|other| inner.space.available(*other) > 0)
        };
        match other {
            Some(other) => {
                members.iter_mut().filter(|member| **member == gone).for_each(|member| *member = other)
            }
            None => members.retain(|member| *member != gone),
        }
        if members.len() < settings.layout.copies() {
            let text = format!("Volume {:?} needs {} members", settings.name, settings.layout.copies());
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        self.change(vec![Record::VolumeMoved { volume, members }])
    }

    /// Makes the copies that mirrored volumes lack; tells how many.
    pub(super) fn make_copies(&self, progress: &dyn Fn(u64)) -> Result<u64> {
        let volumes: Vec<VolumeId> = self.inner.read().state.volumes.keys().copied().collect();
        let mut made = 0;
        for volume in volumes {
            let plan = |settings: &VolumeSettings, chunk: u32, copies: &Copies| {
                let healthy = self.inner.read().state.healthy(copies);
                let there = healthy.map_or(0, |copies| copies.places().len());
                if settings.layout.copies() < 2 || there >= settings.layout.copies() || there == 0 {
                    return None;
                }
                let works = |place: &&Place| healthy.is_some_and(|healthy| healthy.on(place.member));
                let leave = copies.places().iter().find(|place| !works(place)).copied();
                Some(Plan { leave, to: self.candidates(settings, chunk, copies.places()) })
            };
            made += self.relocate(volume, &plan, progress)?;
        }
        Ok(made)
    }

    /// Carries out plans until there are none. Layers may come, go and be joined between two chunks, so that it looks
    /// again until it finds nothing.
    fn relocate(
        &self,
        volume: VolumeId,
        plan: &dyn Fn(&VolumeSettings, u32, &Copies) -> Option<Plan>,
        progress: &dyn Fn(u64),
    ) -> Result<u64> {
        let mut moved = 0;
        loop {
            let Ok(settings) = self.settings(volume) else { return Ok(moved) };
            let slots: Vec<(LayerId, u32, Copies)> = self.slots_of(volume);
            let mut found = false;
            for (layer, chunk, copies) in slots {
                if plan(&settings, chunk, &copies).is_none() {
                    continue;
                }
                found = true;
                if self.relocate_chunk(volume, layer, chunk, plan)? {
                    moved += 1;
                    progress(moved);
                    if moved % COMMIT_EVERY == 0 {
                        self.commit()?;
                    }
                }
            }
            if !found {
                return self.commit().map(|()| moved);
            }
        }
    }

    /// Everything that a volume's layers have places for.
    pub(super) fn slots_of(&self, volume: VolumeId) -> Vec<(LayerId, u32, Copies)> {
        let state = &self.inner.read().state;
        let mut slots = Vec::new();
        for (id, layer) in state.layers.iter().filter(|(_, layer)| layer.volume == volume) {
            slots.extend(layer.map.iter().filter_map(|(chunk, slot)| match slot {
                Slot::Data { copies, .. } => Some((*id, *chunk, *copies)),
                Slot::Zero => None,
            }));
        }
        slots
    }

    fn relocate_chunk(
        &self,
        volume: VolumeId,
        layer: LayerId,
        chunk: u32,
        plan: &dyn Fn(&VolumeSettings, u32, &Copies) -> Option<Plan>,
    ) -> Result<bool> {
        let gate = self.gate(volume);
        let _gate = gate.read();
        let _hold = self.alone(volume, chunk);
        let settings = self.settings(volume)?;
        let slot =
            self.inner.read().state.layers.get(&layer).and_then(|layer| layer.map.get(&chunk)).copied();
        let Some(Slot::Data { copies, filled }) = slot else { return Ok(false) };
        let Some(Plan { leave, to }) = plan(&settings, chunk, &copies) else { return Ok(false) };
        let place = self.take_place(&to)?;
        let changed = self.copy_to(volume, chunk, &copies, place, filled).and_then(|()| {
            let mut places: Vec<Place> =
                copies.places().iter().copied().filter(|old| Some(*old) != leave).collect();
            places.push(place);
            let copies =
                Copies::new(&places).ok_or_else(|| Error::other("A chunk would have too many copies"))?;
            self.change(vec![Record::Mapped { layer, chunk, slot: Slot::Data { copies, filled } }])
        });
        if changed.is_err() {
            self.give_back(&[place]);
        }
        changed.map(|()| true)
    }

    fn copy_to(&self, volume: VolumeId, chunk: u32, from: &Copies, to: Place, filled: Filled) -> Result<()> {
        let summed = filled == Filled::Summed;
        let to = Stored { copies: Copies::new(&[to]).ok_or(ErrorKind::InvalidInput)?, summed };
        if filled == Filled::No {
            return Ok(());
        }
        // All of the chunk is "the rest": nothing is written into it.
        debug_assert!(self.chunk.is_multiple_of(COPY.min(self.chunk)));
        let from = Stored { copies: *from, summed };
        self.fill(volume, chunk, &to, Some(&from), 0, &Content::Bytes(&[])).map(drop)
    }
}
