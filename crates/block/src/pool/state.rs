//! The metadata in memory, and the one function that changes them.
//!
//! A volume's content is a tree of layers. Each says of some chunks where they are, and leaves the others to its parent;
//! without a parent they are zeros. The volume's top layer is written to, the others are snapshots. A place belongs to
//! one layer, so that a snapshot costs nothing when it is made, and what it costs later is what only it refers to.
//!
//! ```text
//! snapshot "monday" ──► snapshot "tuesday" ──► top
//!                  └──► (deleted, but its children share it) ──► …
//! ```
//!
//! A clone is a volume whose oldest layer stands on a snapshot of another volume. Layers that clones need stay when their
//! own volume goes: a clone inherits them.

use super::record::{
    Copies, Filled, LayerId, MemberId, Place, Provisioning, Record, Slot, Stored, VolumeId, VolumeSettings,
};
use super::space::Bits;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// A record that contradicts the state it meets, or a state that contradicts itself.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Contradiction(String);

pub(super) fn contradiction(text: impl Into<String>) -> Contradiction {
    Contradiction(text.into())
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub uuid: u128,
    pub chunks: u32,
    pub failed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volume {
    pub settings: VolumeSettings,
    pub top: LayerId,
    /// It is not written to; the top layer is empty and stands on a snapshot of the volume.
    pub template: bool,
    /// New chunks get checksums.
    pub checksums: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub name: String,
    /// Seconds since 1970.
    pub time: u64,
    /// Of the volume then.
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    pub volume: VolumeId,
    pub parent: Option<LayerId>,
    pub snapshot: Option<Snapshot>,
    pub map: BTreeMap<u32, Slot>,
}

/// How a volume's chunk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nowhere: zeros.
    Zeros,
    /// The top layer has places for it that hold nothing yet: zeros.
    Reserved(Copies),
    /// The top layer has it.
    Own(Stored),
    /// A layer below has it.
    Inherited(Stored),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// Bytes in a chunk.
    pub chunk: u64,
    pub members: BTreeMap<MemberId, Member>,
    pub volumes: BTreeMap<VolumeId, Volume>,
    pub layers: BTreeMap<LayerId, Layer>,
    /// Regions of volumes in which copies may differ, from each other and from their checksums.
    pub dirty: BTreeSet<(VolumeId, u32)>,
    /// Chunks that hold the checksums of a member's groups of chunks.
    pub tables: BTreeMap<(MemberId, u32), u32>,
    pub next_member: MemberId,
    pub next_volume: VolumeId,
    pub next_layer: LayerId,
    /// For each volume one that stands for all it shares layers with, or did since the pool was opened.
    #[serde(skip)]
    pub(super) families: BTreeMap<VolumeId, VolumeId>,
    /// Places of all layers.
    #[serde(skip)]
    pub(super) used: BTreeMap<MemberId, Bits>,
}

/// Bytes of a mirrored volume that become dirty together, unless a chunk is larger.
const REGION: u64 = 64 << 20;

impl State {
    pub fn new(chunk: u64) -> Self {
        State { chunk, ..State::default() }
    }

    /// Chunks of a volume of this many bytes.
    pub fn chunks_of(&self, size: u64) -> u64 {
        size.div_ceil(self.chunk.max(1))
    }

    /// The region a volume's chunk is in.
    pub fn region_of(&self, chunk: u32) -> u32 {
        chunk / (REGION / self.chunk.max(1)).max(1) as u32
    }

    /// No more bytes than this are needed to store the state.
    pub fn stored_size(&self) -> u64 {
        let maps: usize = self.layers.values().map(|layer| layer.map.len()).sum();
        let rest = self.layers.len() * 128 + self.volumes.len() * 512 + self.members.len() * 64;
        (maps as u64) * 32 + (rest + (self.dirty.len() + self.tables.len()) * 16) as u64 + 256
    }

    pub fn volume_named(&self, name: &str) -> Option<(VolumeId, &Volume)> {
        self.volumes.iter().find(|(_, volume)| volume.settings.name == name).map(|(id, volume)| (*id, volume))
    }

    pub fn snapshot_named(&self, volume: VolumeId, name: &str) -> Option<(LayerId, &Snapshot)> {
        self.layers
            .iter()
            .filter(|(_, layer)| layer.volume == volume)
            .filter_map(|(id, layer)| Some((*id, layer.snapshot.as_ref()?)))
            .find(|(_, snapshot)| snapshot.name == name)
    }

    /// What a layer or the ones below it say of a chunk.
    pub fn resolve(&self, mut layer: Option<LayerId>, chunk: u32) -> Option<Slot> {
        loop {
            let at = self.layers.get(&layer?)?;
            if let Some(slot) = at.map.get(&chunk) {
                return Some(*slot);
            }
            layer = at.parent;
        }
    }

    /// How a chunk reads through a layer, and what the layer itself has.
    pub fn find(&self, layer: LayerId, chunk: u32) -> Found {
        let Some(top) = self.layers.get(&layer) else { return Found::Zeros };
        match top.map.get(&chunk) {
            Some(Slot::Data { copies, filled: Filled::No }) => Found::Reserved(*copies),
            Some(slot) => slot.stored().map_or(Found::Zeros, Found::Own),
            None => {
                let below = self.resolve(top.parent, chunk).and_then(|slot| slot.stored());
                below.map_or(Found::Zeros, Found::Inherited)
            }
        }
    }

    pub fn is_healthy(&self, member: MemberId) -> bool {
        self.members.get(&member).is_some_and(|member| !member.failed)
    }

    /// The copies on members that did not fail.
    pub fn healthy(&self, copies: &Copies) -> Option<Copies> {
        copies.filter(|place| self.is_healthy(place.member))
    }

    /// Changes the state by one record, and tells the places that are free when the record is durable. A record that
    /// is refused changes nothing.
    pub fn apply(&mut self, record: &Record) -> Result<Vec<Place>, Contradiction> {
        match record {
            Record::MemberAdded { member, uuid, chunks } => self.add_member(*member, *uuid, *chunks),
            Record::MemberRemoved { member } => self.remove_member(*member),
            Record::MemberFailed { member } => self.fail_member(*member),
            Record::MemberRestored { member } => {
                self.member(*member)?.failed = false;
                Ok(Vec::new())
            }
            Record::VolumeCreated { volume, layer, settings } => {
                self.create_volume(*volume, *layer, settings)
            }
            Record::VolumeDeleted { volume } => self.delete_volume(*volume),
            Record::VolumeResized { volume, size } => self.resize_volume(*volume, *size),
            Record::VolumeMoved { volume, members } => {
                self.check_members(members)?;
                self.volume(*volume)?.settings.members.clone_from(members);
                Ok(Vec::new())
            }
            Record::Mapped { layer, chunk, slot } => self.map(*layer, *chunk, *slot),
            Record::Cleared { layer, chunk, keep } => self.clear(*layer, *chunk, *keep),
            Record::Snapshotted { volume, layer, name, time } => {
                self.make_snapshot(*volume, *layer, name, *time)
            }
            Record::Reverted { volume, snapshot, layer } => self.revert(*volume, *snapshot, *layer),
            Record::SnapshotDeleted { snapshot } => self.delete_snapshot(*snapshot),
            Record::Cloned { volume, layer, source, settings } => {
                self.clone_volume(*volume, *layer, *source, settings)
            }
            Record::Detached { layer } => self.detach(*layer),
            Record::Templated { volume, on } => self.set_template(*volume, *on),
            Record::Summing { volume, on } => self.set_checksums(*volume, *on),
            Record::TableMade { member, group, chunk } => self.add_table(*member, *group, *chunk),
            Record::Dirtied { volume, region } => {
                self.volume(*volume)?;
                self.dirty.insert((*volume, *region));
                Ok(Vec::new())
            }
            Record::Cleaned { volume, region } => {
                self.dirty.remove(&(*volume, *region));
                Ok(Vec::new())
            }
        }
    }

    fn member(&mut self, member: MemberId) -> Result<&mut Member, Contradiction> {
        self.members.get_mut(&member).ok_or_else(|| contradiction(format!("There is no member {member}")))
    }

    pub(super) fn volume(&mut self, volume: VolumeId) -> Result<&mut Volume, Contradiction> {
        self.volumes.get_mut(&volume).ok_or_else(|| contradiction(format!("There is no volume {volume}")))
    }

    pub(super) fn layer(&mut self, layer: LayerId) -> Result<&mut Layer, Contradiction> {
        self.layers.get_mut(&layer).ok_or_else(|| contradiction(format!("There is no layer {layer}")))
    }

    fn check_members(&self, members: &[MemberId]) -> Result<(), Contradiction> {
        let distinct: BTreeSet<MemberId> = members.iter().copied().collect();
        match members.iter().find(|member| !self.members.contains_key(member)) {
            Some(member) => {
                Err(contradiction(format!("A volume is on member {member}, which does not exist")))
            }
            None if distinct.len() != members.len() => Err(contradiction("A volume is on one member twice")),
            None => Ok(()),
        }
    }

    fn add_member(&mut self, member: MemberId, uuid: u128, chunks: u32) -> Result<Vec<Place>, Contradiction> {
        let known = self.members.values().any(|other| other.uuid == uuid);
        if known || member != self.next_member {
            return Err(contradiction(format!("Member {member} is there already")));
        }
        self.next_member =
            member.checked_add(1).ok_or_else(|| contradiction("No number is left for a member"))?;
        self.members.insert(member, Member { uuid, chunks, failed: false });
        self.used.insert(member, Bits::default());
        Ok(Vec::new())
    }

    fn remove_member(&mut self, member: MemberId) -> Result<Vec<Place>, Contradiction> {
        self.member(member)?;
        let used = self.used_on(member) != 0;
        let named = self.volumes.values().any(|volume| volume.settings.members.contains(&member));
        if used || named {
            return Err(contradiction(format!("Member {member} is still used")));
        }
        self.members.remove(&member);
        self.tables.retain(|(owner, _), _| *owner != member);
        self.used.remove(&member);
        Ok(Vec::new())
    }

    fn fail_member(&mut self, failed: MemberId) -> Result<Vec<Place>, Contradiction> {
        self.member(failed)?.failed = true;
        // What was written to the copy since the last flush may be lost, even though the write had succeeded.
        let mut stale = Vec::new();
        for (id, layer) in &self.layers {
            for (chunk, slot) in &layer.map {
                let Slot::Data { copies, .. } = slot else { continue };
                let dirty = self.dirty.contains(&(layer.volume, self.region_of(*chunk)));
                if dirty && copies.on(failed) && self.healthy(copies).is_some() {
                    stale.push((*id, *chunk, *slot));
                }
            }
        }
        let mut freed = Vec::new();
        for (layer, chunk, slot) in stale {
            if let Slot::Data { copies, filled } = slot
                && let Some(copies) = copies.filter(|place| place.member != failed)
            {
                freed.extend(self.map(layer, chunk, Slot::Data { copies, filled })?);
            }
        }
        Ok(freed)
    }

    pub(super) fn create_volume(
        &mut self,
        volume: VolumeId,
        layer: LayerId,
        settings: &VolumeSettings,
    ) -> Result<Vec<Place>, Contradiction> {
        if volume != self.next_volume || layer != self.next_layer {
            return Err(contradiction(format!("Volume {volume} or its layer {layer} is there already")));
        }
        if self.volume_named(&settings.name).is_some() {
            return Err(contradiction(format!("There is a volume {:?} already", settings.name)));
        }
        self.check_settings(settings)?;
        let ids = volume.checked_add(1).zip(layer.checked_add(1));
        (self.next_volume, self.next_layer) =
            ids.ok_or_else(|| contradiction("No number is left for a volume"))?;
        let map = BTreeMap::new();
        self.layers.insert(layer, Layer { volume, parent: None, snapshot: None, map });
        self.volumes.insert(
            volume,
            Volume { settings: settings.clone(), top: layer, template: false, checksums: false },
        );
        self.families.insert(volume, volume);
        Ok(Vec::new())
    }

    pub(super) fn check_settings(&self, settings: &VolumeSettings) -> Result<(), Contradiction> {
        check_name("volume", &settings.name)?;
        self.check_size(settings.size)?;
        self.check_members(&settings.members)?;
        let copies = settings.layout.copies();
        match settings.layout {
            super::Layout::Striped if settings.members.is_empty() => {
                Err(contradiction("A striped volume needs members to be striped over"))
            }
            super::Layout::Mirrored(_) if !(2..=super::record::COPIES_MAX).contains(&copies) => {
                Err(contradiction(format!("A mirrored volume has 2 or 3 copies, not {copies}")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_size(&self, size: u64) -> Result<(), Contradiction> {
        let right = size != 0 && size.is_multiple_of(512) && self.chunks_of(size) <= u64::from(u32::MAX);
        let max = u64::from(u32::MAX).saturating_mul(self.chunk);
        if right {
            Ok(())
        } else {
            Err(contradiction(format!("A volume of {size} bytes: a multiple of 512 up to {max} is needed")))
        }
    }

    fn delete_volume(&mut self, volume: VolumeId) -> Result<Vec<Place>, Contradiction> {
        self.volume(volume)?;
        self.volumes.remove(&volume);
        self.families.remove(&volume);
        self.dirty.retain(|(dirty, _)| *dirty != volume);
        Ok(self.bequeath(volume))
    }

    fn resize_volume(&mut self, volume: VolumeId, size: u64) -> Result<Vec<Place>, Contradiction> {
        self.check_size(size)?;
        let found = self.volume(volume)?;
        found.check_writable()?;
        found.settings.size = size;
        let top = found.top;
        let end = u32::try_from(self.chunks_of(size)).unwrap_or(u32::MAX);
        // What is beyond must not come back when the volume grows again, whichever layer has it.
        let mut beyond = BTreeSet::new();
        let mut next = Some(top);
        while let Some(layer) = next.and_then(|id| self.layers.get(&id)) {
            beyond.extend(layer.map.range(end..).map(|(chunk, _)| *chunk));
            next = layer.parent;
        }
        let mut freed = Vec::new();
        for chunk in beyond {
            freed.extend(self.clear(top, chunk, false)?);
        }
        Ok(freed)
    }

    fn map(&mut self, layer: LayerId, chunk: u32, slot: Slot) -> Result<Vec<Place>, Contradiction> {
        let found = self.layers.get(&layer);
        let found = found.ok_or_else(|| contradiction(format!("There is no layer {layer}")))?;
        let old = found.map.get(&chunk).copied();
        let beyond = self.end_of(layer, found).is_some_and(|end| u64::from(chunk) >= end);
        if old.is_none() && beyond {
            return Err(contradiction(format!("Chunk {chunk} is beyond the end of its volume")));
        }
        let had = old.as_ref().map(Slot::places).unwrap_or_default();
        for place in slot.places() {
            self.check_place(*place)?;
            if !had.contains(place) && self.used.get(&place.member).is_some_and(|bits| bits.get(place.chunk))
            {
                let Place { member, chunk } = place;
                return Err(contradiction(format!("Chunk {chunk} of member {member} has two owners")));
            }
        }
        let freed: Vec<Place> = had.iter().copied().filter(|place| !slot.places().contains(place)).collect();
        self.layer(layer)?.map.insert(chunk, slot);
        self.release(&freed);
        for place in slot.places() {
            self.used.entry(place.member).or_default().insert(place.chunk);
        }
        Ok(freed)
    }

    /// Chunks after which a layer has no data. A layer whose name is gone keeps what others need, however long their
    /// disks are.
    pub(super) fn end_of(&self, id: LayerId, layer: &Layer) -> Option<u64> {
        let volume = self.volumes.get(&layer.volume);
        let size = volume.map_or(0, |volume| volume.settings.size);
        let is_top = volume.is_none_or(|volume| volume.top == id);
        match &layer.snapshot {
            Some(snapshot) => Some(self.chunks_of(snapshot.size.max(size))),
            None => is_top.then(|| self.chunks_of(size)),
        }
    }

    pub(super) fn check_place(&self, place: Place) -> Result<(), Contradiction> {
        let Place { member, chunk } = place;
        let there = self.members.get(&member).is_some_and(|found| (1..found.chunks).contains(&chunk));
        if there { Ok(()) } else { Err(contradiction(format!("Member {member} has no chunk {chunk}"))) }
    }

    pub(super) fn release(&mut self, places: &[Place]) {
        for place in places {
            if let Some(bits) = self.used.get_mut(&place.member) {
                bits.remove(place.chunk);
            }
        }
    }

    fn clear(&mut self, layer: LayerId, chunk: u32, keep: bool) -> Result<Vec<Place>, Contradiction> {
        let parent = self.layer(layer)?.parent;
        let inherited = matches!(self.resolve(parent, chunk), Some(Slot::Data { .. }));
        let map = &mut self.layer(layer)?.map;
        if keep && let Some(Slot::Data { filled, .. }) = map.get_mut(&chunk) {
            *filled = Filled::No;
            return Ok(Vec::new());
        }
        let old = if inherited { map.insert(chunk, Slot::Zero) } else { map.remove(&chunk) };
        let freed = old.map(|slot| slot.places().to_vec()).unwrap_or_default();
        self.release(&freed);
        Ok(freed)
    }

    /// Whether a volume keeps the space of what is discarded.
    pub fn is_thick(&self, volume: VolumeId) -> bool {
        self.volumes.get(&volume).is_some_and(|volume| volume.settings.provisioning != Provisioning::Thin)
    }
}

impl Volume {
    /// A template stays as it is.
    pub(super) fn check_writable(&self) -> Result<(), Contradiction> {
        let name = &self.settings.name;
        if self.template {
            return Err(contradiction(format!("Volume {name:?} is a template, which is not changed")));
        }
        Ok(())
    }
}

/// Names become arguments and parts of paths.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), Contradiction> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let right = name.bytes().all(allowed)
        && name.len() <= 64
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if right {
        return Ok(());
    }
    let rule = "1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit";
    Err(contradiction(format!("{name:?} is no name of a {what}: {rule}")))
}
