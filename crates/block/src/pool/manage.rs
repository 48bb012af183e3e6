//! Making, changing and removing volumes and snapshots; where new chunks go.

use super::record::{
    Copies, Filled, LayerId, Layout, MemberId, Place, Provisioning, Record, Slot, Stored, VolumeId,
    VolumeSettings,
};
use super::volume::PoolVolume;
use super::{Pool, refused};
use crate::BlockBackend;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::sync::Arc;

pub(super) fn not_found(what: &str, name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("The pool has no {what} {name:?}"))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
}

impl Pool {
    /// Makes an empty volume of so many bytes. `members`, by their paths or numbers, are those it is on; without any,
    /// all of the pool.
    pub fn create_volume(
        &self,
        name: &str,
        size: u64,
        layout: Layout,
        provisioning: Provisioning,
        members: &[String],
    ) -> Result<()> {
        let mut members: Vec<MemberId> =
            members.iter().map(|member| self.member_named(member)).collect::<Result<_>>()?;
        let (volume, layer) = {
            let state = &self.inner.read().state;
            if members.is_empty() && layout == Layout::Striped {
                members = state.members.keys().copied().collect();
            }
            let there = if members.is_empty() { state.members.len() } else { members.len() };
            if there < layout.copies() {
                let text = format!("{} copies need as many members; there are {there}", layout.copies());
                return Err(Error::new(ErrorKind::InvalidInput, text));
            }
            (state.next_volume, state.next_layer)
        };
        let settings = VolumeSettings { name: name.to_owned(), size, layout, provisioning, members };
        self.inner.read().state.check_settings(&settings).map_err(refused)?;
        let chunks = size.div_ceil(self.chunk);
        let created = Record::VolumeCreated { volume, layer, settings: settings.clone() };
        self.change_and_reserve(created, &settings, layer, 0..chunks)?;
        self.commit()
    }

    /// Removes a volume. One with snapshots is removed with them only if that is wanted. What clones of it need stays.
    pub fn delete_volume(&self, name: &str, with_snapshots: bool) -> Result<()> {
        let (volume, snapshots) = {
            let state = &self.inner.read().state;
            let (volume, _) = state.volume_named(name).ok_or_else(|| not_found("volume", name))?;
            let named =
                |layer: &LayerId| state.layers.get(layer).is_some_and(|layer| layer.snapshot.is_some());
            (volume, state.layers_of(volume).any(|layer| named(&layer)))
        };
        if snapshots && !with_snapshots {
            let text = format!("Volume {name:?} has snapshots; delete them first, or with it");
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        let gate = self.gate(volume);
        let _gate = gate.write();
        self.change(vec![Record::VolumeDeleted { volume }])?;
        self.regions.lock().forget(volume);
        self.commit()
    }

    /// Keeps the volume's present content under a name.
    pub fn create_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        let volume = self.volume_id(volume)?;
        let gate = self.gate(volume);
        let _gate = gate.write();
        let time = now();
        {
            let mut inner = self.writable_inner()?;
            let layer = inner.state.next_layer;
            inner.change(vec![Record::Snapshotted { volume, layer, name: name.to_owned(), time }])?;
        }
        self.commit()
    }

    /// Goes back to a snapshot: what was written since then is given up, at once and without copying.
    pub fn revert(&self, volume: &str, snapshot: &str) -> Result<()> {
        let volume = self.volume_id(volume)?;
        let gate = self.gate(volume);
        let _gate = gate.write();
        {
            let mut inner = self.writable_inner()?;
            let layer = inner.state.next_layer;
            let found = inner.state.snapshot_named(volume, snapshot).map(|(id, _)| id);
            let snapshot = found.ok_or_else(|| not_found("snapshot", snapshot))?;
            inner.change(vec![Record::Reverted { volume, snapshot, layer }])?;
        }
        self.commit()
    }

    /// Removes a snapshot, and frees what only it had. What clones of it need stays.
    pub fn delete_snapshot(&self, volume: &str, snapshot: &str) -> Result<()> {
        let volume = self.volume_id(volume)?;
        let gate = self.gate(volume);
        let _gate = gate.write();
        {
            let mut inner = self.writable_inner()?;
            let found = inner.state.snapshot_named(volume, snapshot).map(|(id, _)| id);
            let snapshot = found.ok_or_else(|| not_found("snapshot", snapshot))?;
            inner.change(vec![Record::SnapshotDeleted { snapshot }])?;
        }
        self.commit()
    }

    /// A volume as a disk; `NAME@SNAPSHOT` is a snapshot of it, which is read-only.
    pub fn volume(self: &Arc<Self>, name: &str, read_only: bool) -> Result<PoolVolume> {
        let (name, snapshot) = match name.split_once('@') {
            Some((name, snapshot)) => (name, Some(snapshot)),
            None => (name, None),
        };
        let volume = self.volume_id(name)?;
        let found = |name| {
            let found = self.inner.read().state.snapshot_named(volume, name).map(|(id, _)| id);
            found.ok_or_else(|| not_found("snapshot", name))
        };
        let snapshot = snapshot.map(found).transpose()?;
        Ok(PoolVolume {
            pool: self.clone(),
            volume,
            snapshot,
            read_only,
            keep_discarded: false,
            gate: self.gate(volume),
            is_writer: false,
            path: name.into(),
        })
    }

    pub(super) fn volume_id(&self, name: &str) -> Result<VolumeId> {
        let found = self.inner.read().state.volume_named(name).map(|(id, _)| id);
        found.ok_or_else(|| not_found("volume", name))
    }

    pub(super) fn settings(&self, volume: VolumeId) -> Result<VolumeSettings> {
        let found = self.inner.read().state.volumes.get(&volume).map(|volume| volume.settings.clone());
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "The volume was deleted"))
    }

    pub(super) fn writable_inner(&self) -> Result<parking_lot::RwLockWriteGuard<'_, super::Inner>> {
        if self.read_only { Err(ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(self.inner.write()) }
    }

    /// Members on which a volume may take a place for a chunk besides those it has, the best first.
    pub(super) fn candidates(
        &self,
        settings: &VolumeSettings,
        chunk: u32,
        besides: &[Place],
    ) -> Vec<MemberId> {
        let inner = self.inner.read();
        let mut members: Vec<MemberId> = match settings.members.as_slice() {
            [] => inner.state.members.keys().copied().collect(),
            members => members.to_vec(),
        };
        match settings.layout {
            Layout::Linear => {}
            Layout::Striped => {
                let column = members.get(chunk as usize % members.len().max(1)).copied();
                members = column.into_iter().collect();
            }
            Layout::Mirrored(_) => {
                members.sort_by_key(|member| std::cmp::Reverse(inner.space.available(*member)));
            }
        }
        members.retain(|member| {
            besides.iter().all(|place| place.member != *member) && inner.state.is_healthy(*member)
        });
        members
    }

    /// Takes a place on the first of these members that has one. What unflushed records freed counts as free.
    pub(super) fn take_place(&self, members: &[MemberId]) -> Result<Place> {
        for again in [true, false] {
            {
                let mut inner = self.inner.write();
                if let Some(place) = members.iter().find_map(|member| inner.space.take(*member)) {
                    return Ok(place);
                }
                if inner.freed.is_empty() {
                    break;
                }
            }
            if again {
                self.commit()?;
            }
        }
        let names: Vec<String> = members.iter().map(|member| self.name_of(*member)).collect();
        let text = match names.as_slice() {
            [] => "No member that works is left for this volume".to_owned(),
            names => format!("No chunk is free on {}", names.join(", ")),
        };
        Err(Error::new(ErrorKind::StorageFull, text))
    }

    /// Takes the places of a new chunk. With failed members, a mirrored one may have fewer copies than it should.
    pub(super) fn allocate(&self, settings: &VolumeSettings, chunk: u32) -> Result<Copies> {
        let mut places: Vec<Place> = Vec::new();
        let degraded = self.inner.read().state.members.values().any(|member| member.failed);
        while places.len() < settings.layout.copies() {
            match self.take_place(&self.candidates(settings, chunk, &places)) {
                Ok(place) => places.push(place),
                Err(_) if degraded && !places.is_empty() => break,
                Err(error) => {
                    self.give_back(&places);
                    return Err(error);
                }
            }
        }
        Copies::new(&places).ok_or_else(|| Error::other("A chunk got no place"))
    }

    pub(super) fn give_back(&self, places: &[Place]) {
        let mut inner = self.inner.write();
        places.iter().for_each(|place| inner.space.give_back(*place));
    }

    /// Records a change and, for a thick volume, the places of these chunks, all at once.
    pub(super) fn change_and_reserve(
        &self,
        change: Record,
        settings: &VolumeSettings,
        layer: LayerId,
        chunks: Range<u64>,
    ) -> Result<()> {
        let mut records = vec![change];
        let mut taken: Vec<Place> = Vec::new();
        let result = self.reserve(settings, layer, chunks, &mut records, &mut taken);
        let result = result.and_then(|()| self.change(records));
        if result.is_err() {
            self.give_back(&taken);
        }
        result
    }

    fn reserve(
        &self,
        settings: &VolumeSettings,
        layer: LayerId,
        chunks: Range<u64>,
        records: &mut Vec<Record>,
        taken: &mut Vec<Place>,
    ) -> Result<()> {
        if !settings.provisioning.is_thick() {
            return Ok(());
        }
        let owner = self.inner.read().state.layers.get(&layer).map(|layer| layer.volume);
        let summed = owner.is_some_and(|volume| self.has_checksums(volume));
        for chunk in chunks {
            let chunk = u32::try_from(chunk).map_err(|_| ErrorKind::InvalidInput)?;
            let mut copies = self.allocate(settings, chunk)?;
            taken.extend(copies.places());
            let eager = settings.provisioning == Provisioning::Eager;
            if eager {
                let zero =
                    |disk: &dyn BlockBackend, place| disk.write_zeroes(self.offset(place), self.chunk, false);
                copies = self.write_copies(&copies, zero)?;
                if summed {
                    copies = self.write_zero_sums(&copies)?;
                }
            }
            let filled = if eager { Stored::filled(summed) } else { Filled::No };
            records.push(Record::Mapped { layer, chunk, slot: Slot::Data { copies, filled } });
        }
        Ok(())
    }
}
