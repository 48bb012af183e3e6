//! The state's part of clones: layers of a volume that stand on those of another one.

use super::record::{LayerId, Place, VolumeId, VolumeSettings};
use super::state::{Contradiction, State, contradiction};
use std::collections::BTreeMap;

impl State {
    /// One volume for all that share layers with each other. What is held or kept from changing for one of them
    /// is so for all.
    pub fn family(&self, volume: VolumeId) -> VolumeId {
        self.families.get(&volume).copied().unwrap_or(volume)
    }

    /// Finds out which volumes share layers, in a state that was stored.
    pub(super) fn find_families(&mut self) {
        // Parents are older than what stands on them.
        let mut roots: BTreeMap<LayerId, VolumeId> = BTreeMap::new();
        for (id, layer) in &self.layers {
            let below = layer.parent.and_then(|parent| roots.get(&parent)).copied();
            roots.insert(*id, below.unwrap_or(layer.volume));
        }
        let family = |(id, volume): (&VolumeId, &super::state::Volume)| {
            (*id, roots.get(&volume.top).copied().unwrap_or(*id))
        };
        self.families = self.volumes.iter().map(family).collect();
    }

    /// The oldest of the layers that a volume's content is made of and that are its own.
    pub fn bottom(&self, volume: VolumeId) -> Option<LayerId> {
        let mut found = self.volumes.get(&volume)?.top;
        while let Some(parent) = self.layers.get(&found)?.parent {
            if self.layers.get(&parent)?.volume != volume {
                break;
            }
            found = parent;
        }
        Some(found)
    }

    /// The layer of another volume that a clone stands on.
    pub fn origin(&self, volume: VolumeId) -> Option<LayerId> {
        self.layers.get(&self.bottom(volume)?)?.parent
    }

    /// Its name, `VOLUME@SNAPSHOT`; `VOLUME` when it is no snapshot any more.
    pub fn origin_name(&self, volume: VolumeId) -> Option<String> {
        let layer = self.layers.get(&self.origin(volume)?)?;
        let name = &self.volumes.get(&layer.volume)?.settings.name;
        Some(layer.snapshot.as_ref().map_or_else(|| name.clone(), |found| format!("{name}@{}", found.name)))
    }

    /// Names of the volumes whose origin this layer is.
    pub fn clones_of(&self, layer: LayerId) -> Vec<String> {
        let children = self.children_of(layer).into_iter().filter_map(|child| self.layers.get(&child));
        let own = self.layers.get(&layer).map(|layer| layer.volume);
        let clones = children.filter(|child| Some(child.volume) != own);
        let names = clones.filter_map(|child| self.volumes.get(&child.volume));
        names.map(|volume| volume.settings.name.clone()).collect()
    }

    /// Whether a volume was not changed since its last snapshot, so that it may be a template.
    pub fn is_as_its_snapshot(&self, volume: VolumeId) -> bool {
        let Some(found) = self.volumes.get(&volume) else { return false };
        let Some(top) = self.layers.get(&found.top).filter(|top| top.map.is_empty()) else { return false };
        let below =
            top.parent.and_then(|parent| self.layers.get(&parent)).filter(|below| below.volume == volume);
        let snapshot = below.and_then(|below| below.snapshot.as_ref());
        snapshot.is_some_and(|snapshot| snapshot.size == found.settings.size)
    }

    /// The snapshot that a template is.
    pub fn template_snapshot(&self, volume: VolumeId) -> Option<LayerId> {
        let found = self.volumes.get(&volume).filter(|found| found.template)?;
        self.layers.get(&found.top)?.parent
    }

    /// Chunks with data that a layer does not have itself but finds below.
    pub fn inherited(&self, layer: LayerId) -> Vec<u32> {
        let Some(own) = self.layers.get(&layer) else { return Vec::new() };
        let mut below: BTreeMap<u32, bool> = BTreeMap::new();
        let mut next = own.parent;
        while let Some(layer) = next.and_then(|id| self.layers.get(&id)) {
            for (chunk, slot) in layer.map.iter().filter(|(chunk, _)| !own.map.contains_key(chunk)) {
                below.entry(*chunk).or_insert(slot.stored().is_some());
            }
            next = layer.parent;
        }
        below.into_iter().filter_map(|(chunk, data)| data.then_some(chunk)).collect()
    }

    pub(super) fn clone_volume(
        &mut self,
        volume: VolumeId,
        layer: LayerId,
        source: LayerId,
        settings: &VolumeSettings,
    ) -> Result<Vec<Place>, Contradiction> {
        let found = self.layer(source)?;
        let owner = found.volume;
        if found.snapshot.as_ref().is_none_or(|snapshot| snapshot.size != settings.size) {
            return Err(contradiction(format!("Layer {source} is no snapshot of {} bytes", settings.size)));
        }
        self.check_depth(source)?;
        self.create_volume(volume, layer, settings)?;
        self.layer(layer)?.parent = Some(source);
        self.families.insert(volume, self.family(owner));
        let checksums = self.volumes.get(&owner).is_some_and(|owner| owner.checksums);
        self.volume(volume)?.checksums = checksums;
        Ok(Vec::new())
    }

    pub(super) fn detach(&mut self, layer: LayerId) -> Result<Vec<Place>, Contradiction> {
        if !self.inherited(layer).is_empty() {
            return Err(contradiction(format!("Layer {layer} still needs what it stands on")));
        }
        self.layer(layer)?.parent = None;
        self.drop_idle_zeros(layer);
        Ok(self.tidy())
    }

    pub(super) fn set_template(&mut self, volume: VolumeId, on: bool) -> Result<Vec<Place>, Contradiction> {
        self.volume(volume)?;
        if on && !self.is_as_its_snapshot(volume) {
            return Err(contradiction(format!("Volume {volume} is not as one of its snapshots")));
        }
        self.volume(volume)?.template = on;
        Ok(Vec::new())
    }

    /// Gives the layers of a volume that is gone to clones that stand on them, and drops the others.
    pub(super) fn bequeath(&mut self, gone: VolumeId) -> Vec<Place> {
        let layers: Vec<LayerId> = self.layers_of(gone).collect();
        let mut freed = Vec::new();
        // From the youngest on: who stands on a layer is settled before the layer's turn comes.
        for id in layers.into_iter().rev() {
            let heir = self.children_of(id).first().and_then(|child| self.layers.get(child));
            match (heir.map(|heir| heir.volume), self.layers.get_mut(&id)) {
                (Some(heir), Some(layer)) => (layer.volume, layer.snapshot) = (heir, None),
                _ => freed.extend(self.drop_layer(id)),
            }
        }
        freed.extend(self.tidy());
        freed
    }
}
