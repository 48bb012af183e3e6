//! The tree of layers: snapshots, and what becomes of them. And the check of a state as a whole.

use super::record::{LayerId, MemberId, Place, Slot, VolumeId};
use super::space::Bits;
use super::state::{Contradiction, Layer, Snapshot, State, check_name, contradiction};
use std::collections::{BTreeMap, BTreeSet};

/// Layers of a volume, of which reading a chunk may visit all.
const LAYERS_MAX: usize = 512;

impl State {
    pub(super) fn layers_of(&self, volume: VolumeId) -> impl Iterator<Item = LayerId> {
        self.layers.iter().filter(move |(_, layer)| layer.volume == volume).map(|(id, _)| *id)
    }

    pub(super) fn children_of(&self, parent: LayerId) -> Vec<LayerId> {
        self.layers.iter().filter(|(_, layer)| layer.parent == Some(parent)).map(|(id, _)| *id).collect()
    }

    pub(super) fn new_layer(&mut self, layer: LayerId) -> Result<(), Contradiction> {
        if layer != self.next_layer {
            return Err(contradiction(format!("Layer {layer} is there already")));
        }
        self.next_layer =
            layer.checked_add(1).ok_or_else(|| contradiction("No number is left for a layer"))?;
        Ok(())
    }

    pub(super) fn make_snapshot(
        &mut self,
        volume: VolumeId,
        layer: LayerId,
        name: &str,
        time: u64,
    ) -> Result<Vec<Place>, Contradiction> {
        check_name("snapshot", name)?;
        if self.snapshot_named(volume, name).is_some() {
            return Err(contradiction(format!("The volume has a snapshot {name:?} already")));
        }
        let others = self.layers_of(volume).count();
        if others >= LAYERS_MAX {
            return Err(contradiction(format!("A volume has at most {} snapshots", LAYERS_MAX - 1)));
        }
        let found = self.volume(volume)?;
        let (top, size) = (found.top, found.settings.size);
        self.layer(top)?;
        self.check_depth(top)?;
        self.new_layer(layer)?;
        self.layer(top)?.snapshot = Some(Snapshot { name: name.to_owned(), time, size });
        let map = BTreeMap::new();
        self.layers.insert(layer, Layer { volume, parent: Some(top), snapshot: None, map });
        self.volume(volume)?.top = layer;
        Ok(Vec::new())
    }

    /// Checks that another layer may stand on this one.
    pub(super) fn check_depth(&self, layer: LayerId) -> Result<(), Contradiction> {
        if std::iter::successors(Some(layer), |id| self.layers.get(id)?.parent).count() < LAYERS_MAX {
            return Ok(());
        }
        let text = format!("A volume stands on at most {} snapshots; flatten the clone", LAYERS_MAX - 1);
        Err(contradiction(text))
    }

    pub(super) fn revert(
        &mut self,
        volume: VolumeId,
        snapshot: LayerId,
        layer: LayerId,
    ) -> Result<Vec<Place>, Contradiction> {
        let found = self.layer(snapshot)?;
        let size = match &found.snapshot {
            Some(snapshot) if found.volume == volume => snapshot.size,
            _ => return Err(contradiction(format!("Layer {snapshot} is no snapshot of volume {volume}"))),
        };
        let found = self.volume(volume)?;
        found.check_writable()?;
        let old = found.top;
        self.new_layer(layer)?;
        let mut freed = self.drop_layer(old);
        let map = BTreeMap::new();
        self.layers.insert(layer, Layer { volume, parent: Some(snapshot), snapshot: None, map });
        let found = self.volume(volume)?;
        found.top = layer;
        found.settings.size = size;
        freed.extend(self.tidy());
        Ok(freed)
    }

    pub(super) fn delete_snapshot(&mut self, snapshot: LayerId) -> Result<Vec<Place>, Contradiction> {
        let found = self.layer(snapshot)?;
        let volume = found.volume;
        let name = found.snapshot.as_ref().map(|snapshot| snapshot.name.clone());
        let name = name.ok_or_else(|| contradiction(format!("Layer {snapshot} is no snapshot")))?;
        let found = self.volume(volume)?;
        let (top, template) = (found.top, found.template);
        if template && self.layer(top)?.parent == Some(snapshot) {
            return Err(contradiction(format!("Snapshot {name:?} is what the template is made of")));
        }
        self.layer(snapshot)?.snapshot = None;
        Ok(self.tidy())
    }

    /// Removes a layer and tells the places it had.
    pub(super) fn drop_layer(&mut self, layer: LayerId) -> Vec<Place> {
        let map = self.layers.remove(&layer).map(|layer| layer.map).unwrap_or_default();
        let freed: Vec<Place> = map.values().flat_map(Slot::places).copied().collect();
        self.release(&freed);
        freed
    }

    /// Removes layers without a name that nobody stands on, and joins those that one stands on with that one.
    pub(super) fn tidy(&mut self) -> Vec<Place> {
        let mut freed = Vec::new();
        let tops: BTreeSet<LayerId> = self.volumes.values().map(|volume| volume.top).collect();
        loop {
            // What stands on each, and how many do.
            let mut children: BTreeMap<LayerId, (usize, LayerId)> = BTreeMap::new();
            for (id, layer) in &self.layers {
                if let Some(parent) = layer.parent {
                    children.entry(parent).or_insert((0, *id)).0 += 1;
                }
            }
            let idle = self.layers.iter().find_map(|(id, layer)| {
                let (count, child) = children.get(id).copied().unzip();
                let needed = layer.snapshot.is_some() || tops.contains(id) || count > Some(1);
                (!needed).then_some((*id, child))
            });
            match idle {
                None => return freed,
                Some((layer, None)) => freed.extend(self.drop_layer(layer)),
                Some((layer, Some(child))) => freed.extend(self.join(layer, child)),
            }
        }
    }

    /// Gives the child what it does not hide.
    fn join(&mut self, layer: LayerId, child: LayerId) -> Vec<Place> {
        let Some(gone) = self.layers.remove(&layer) else { return Vec::new() };
        let mut freed = Vec::new();
        if let Some(child) = self.layers.get_mut(&child) {
            child.parent = gone.parent;
            for (chunk, slot) in gone.map {
                match child.map.entry(chunk) {
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        entry.insert(slot);
                    }
                    std::collections::btree_map::Entry::Occupied(_) => freed.extend(slot.places()),
                }
            }
        }
        self.release(&freed);
        self.drop_idle_zeros(child);
        freed
    }

    /// Forgets zeros that hide nothing.
    pub(super) fn drop_idle_zeros(&mut self, layer: LayerId) {
        let Some(found) = self.layers.get(&layer) else { return };
        let idle: Vec<u32> = found
            .map
            .iter()
            .filter(|(_, slot)| matches!(slot, Slot::Zero))
            .map(|(chunk, _)| *chunk)
            .filter(|chunk| !matches!(self.resolve(found.parent, *chunk), Some(Slot::Data { .. })))
            .collect();
        if let Some(found) = self.layers.get_mut(&layer) {
            idle.iter().for_each(|chunk| {
                found.map.remove(chunk);
            });
        }
    }

    /// Chunks of members that would be free if the snapshot were deleted.
    pub fn exclusive_chunks(&self, snapshot: LayerId) -> u64 {
        let Some(layer) = self.layers.get(&snapshot) else { return 0 };
        let children: Vec<&Layer> =
            self.children_of(snapshot).iter().filter_map(|id| self.layers.get(id)).collect();
        let hidden = |chunk: &u32| match children.as_slice() {
            [] => true,
            [child] => child.map.contains_key(chunk),
            _ => false,
        };
        let slots = layer.map.iter().filter(|(chunk, _)| hidden(chunk));
        slots.map(|(_, slot)| slot.places().len() as u64).sum()
    }

    /// Looks for contradictions in a state that was stored, and finds out what is used.
    pub fn verify(&mut self) -> Result<(), Contradiction> {
        self.used = self.members.keys().map(|member| (*member, Bits::default())).collect();
        let uuids: BTreeSet<u128> = self.members.values().map(|member| member.uuid).collect();
        if uuids.len() != self.members.len() {
            return Err(contradiction("Two members have one UUID"));
        }
        if self.members.keys().next_back().is_some_and(|last| *last >= self.next_member) {
            return Err(contradiction("A member has a number that is not given yet"));
        }
        self.verify_volumes()?;
        self.find_families();
        let ids: Vec<LayerId> = self.layers.keys().copied().collect();
        for id in ids {
            self.verify_layer(id)?;
        }
        for ((member, group), chunk) in self.tables.clone() {
            self.claim_table(member, group, chunk)?;
        }
        let unknown = self.dirty.iter().find(|(volume, _)| !self.volumes.contains_key(volume));
        match unknown {
            Some((volume, _)) => {
                Err(contradiction(format!("A region of volume {volume} is dirty, which does not exist")))
            }
            None => Ok(()),
        }
    }

    fn verify_volumes(&self) -> Result<(), Contradiction> {
        let mut names = BTreeSet::new();
        for (id, volume) in &self.volumes {
            self.check_settings(&volume.settings)?;
            let top = self.layers.get(&volume.top);
            if !names.insert(&volume.settings.name) || *id >= self.next_volume {
                return Err(contradiction(format!("The name or number of volume {id} is not its own")));
            }
            if volume.template && !self.is_as_its_snapshot(*id) {
                return Err(contradiction(format!("Volume {id} is a template, but no snapshot of it")));
            }
            if top.is_none_or(|layer| layer.volume != *id || layer.snapshot.is_some())
                || !self.children_of(volume.top).is_empty()
            {
                return Err(contradiction(format!("Volume {id} has no top layer")));
            }
        }
        Ok(())
    }

    fn verify_layer(&mut self, id: LayerId) -> Result<(), Contradiction> {
        let Some(layer) = self.layers.get(&id) else { return Ok(()) };
        let wrong = |what: &str| Err(contradiction(format!("Layer {id} {what}")));
        if !self.volumes.contains_key(&layer.volume) {
            return wrong("is of no volume");
        }
        // Parents are older than their children: there is no loop.
        let parent = layer.parent.map(|parent| self.layers.get(&parent).filter(|_| parent < id));
        if parent.is_some_and(|parent| parent.is_none()) {
            return wrong("has a parent that is none");
        }
        if id >= self.next_layer {
            return wrong("has a number that is not given yet");
        }
        if let Some(snapshot) = &layer.snapshot {
            check_name("snapshot", &snapshot.name)?;
            self.check_size(snapshot.size)?;
            if self.snapshot_named(layer.volume, &snapshot.name).is_some_and(|(other, _)| other != id) {
                return wrong("has the name of another snapshot");
            }
        }
        let data = layer.map.iter().rev().find(|(_, slot)| matches!(slot, Slot::Data { .. }));
        let last = data.map(|(chunk, _)| u64::from(*chunk));
        if last.zip(self.end_of(id, layer)).is_some_and(|(last, end)| last >= end) {
            return wrong("goes on beyond the end of its volume");
        }
        let places: Vec<Place> = layer.map.values().flat_map(Slot::places).copied().collect();
        for place in places {
            self.check_place(place)?;
            let Place { member, chunk } = place;
            if !self.used.entry(member).or_default().insert(chunk) {
                return Err(contradiction(format!("Chunk {chunk} of member {member} has two owners")));
            }
        }
        Ok(())
    }

    /// Chunks of a member that layers own.
    pub fn used_on(&self, member: MemberId) -> u64 {
        let tables = self.tables.range((member, 0)..=(member, u32::MAX)).count() as u64;
        self.used.get(&member).map_or(0, Bits::count).saturating_sub(tables)
    }
}
