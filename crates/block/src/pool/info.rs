//! What is known about a pool.

use super::Pool;
use super::record::{Filled, LayerId, Layout, Provisioning, Slot, VolumeId};
use serde::Serialize;
use std::path::PathBuf;

/// A pool.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoolInfo {
    /// Identity.
    pub uuid: String,
    /// Bytes in a chunk.
    pub chunk_size: u64,
    /// Its members.
    pub members: Vec<MemberInfo>,
    /// Its volumes.
    pub volumes: Vec<VolumeInfo>,
}

/// A member.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemberInfo {
    /// Number, by which it can be named.
    pub number: u16,
    /// File; empty when it is missing.
    pub path: PathBuf,
    /// Identity.
    pub uuid: String,
    /// Bytes.
    pub size: u64,
    /// Bytes that volumes use.
    pub used: u64,
    /// Bytes that are free.
    pub free: u64,
    /// `ok`, `failed` or `missing`.
    pub state: &'static str,
}

/// A volume.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeInfo {
    /// Name.
    pub name: String,
    /// Bytes of the disk.
    pub size: u64,
    /// On which members its chunks are.
    pub layout: Layout,
    /// When it takes space.
    pub provisioning: Provisioning,
    /// Numbers of the members it is on; none means all.
    pub members: Vec<u16>,
    /// Bytes on the members that it and its snapshots take.
    pub allocated: u64,
    /// Of these, what reverting to the last snapshot would free: written since then.
    pub redirected: u64,
    /// Chunks that are on fewer members than they should be.
    pub degraded_chunks: u64,
    /// New chunks get checksums.
    pub checksums: bool,
    /// Bytes on the members that have none.
    pub unchecked: u64,
    /// It is not written to, and clones are made of it.
    pub template: bool,
    /// What it is a clone of: `VOLUME@SNAPSHOT`, or `VOLUME` alone when that snapshot was deleted or the volume inherited
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Bytes of its content that it shares with its origin: what flattening it copies.
    pub shared: u64,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<PoolSnapshotInfo>,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoolSnapshotInfo {
    /// Name.
    pub name: String,
    /// Seconds since 1970.
    pub time: u64,
    /// Bytes of the disk then.
    pub size: u64,
    /// Bytes on the members that deleting it would free.
    pub exclusive: u64,
    /// Volumes that are clones of it.
    pub clones: Vec<String>,
}

fn uuid(number: u128) -> String {
    let hex = format!("{number:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|part| hex.get(part).unwrap_or_default().to_owned()).join("-")
}

impl Pool {
    /// Facts.
    pub fn info(&self) -> PoolInfo {
        let members = self.inner.read().state.members.keys().copied().collect::<Vec<_>>();
        let volumes = self.inner.read().state.volumes.keys().copied().collect::<Vec<_>>();
        PoolInfo {
            uuid: uuid(self.uuid),
            chunk_size: self.chunk,
            members: members.into_iter().filter_map(|member| self.member_info(member)).collect(),
            volumes: volumes.into_iter().filter_map(|volume| self.volume_info(volume)).collect(),
        }
    }

    fn member_info(&self, number: u16) -> Option<MemberInfo> {
        let inner = self.inner.read();
        let disk = self.disks.read().get(&number).cloned()?;
        let member = inner.state.members.get(&number)?;
        let state = match (member.failed, disk.file.is_some()) {
            (_, false) => "missing",
            (true, _) => "failed",
            _ => "ok",
        };
        Some(MemberInfo {
            number,
            path: disk.path,
            uuid: uuid(member.uuid),
            size: u64::from(member.chunks) * self.chunk,
            used: inner.state.used_on(number) * self.chunk,
            free: inner.space.free(number) * self.chunk,
            state,
        })
    }

    fn volume_info(&self, volume: VolumeId) -> Option<VolumeInfo> {
        let state = &self.inner.read().state;
        let found = state.volumes.get(&volume)?;
        let settings = found.settings.clone();
        let bytes = |layer: LayerId| {
            let map = state.layers.get(&layer).map(|layer| &layer.map);
            map.map_or(0, |map| map.values().map(|slot| slot.places().len() as u64).sum::<u64>()) * self.chunk
        };
        let layers: Vec<LayerId> = state.layers_of(volume).collect();
        let snapshots = layers.iter().filter_map(|layer| {
            let snapshot = state.layers.get(layer)?.snapshot.clone()?;
            let exclusive = state.exclusive_chunks(*layer) * self.chunk;
            Some(PoolSnapshotInfo {
                name: snapshot.name,
                time: snapshot.time,
                size: snapshot.size,
                exclusive,
                clones: state.clones_of(*layer),
            })
        });
        let snapshots: Vec<PoolSnapshotInfo> = snapshots.collect();
        let slots =
            layers.iter().filter_map(|layer| state.layers.get(layer)).flat_map(|layer| layer.map.values());
        let degraded = slots.filter(|slot| match slot {
            Slot::Data { copies, .. } => {
                let there = state.healthy(copies).map_or(0, |copies| copies.places().len());
                there < settings.layout.copies()
            }
            Slot::Zero => false,
        });
        let slots =
            layers.iter().filter_map(|layer| state.layers.get(layer)).flat_map(|layer| layer.map.values());
        let unchecked = slots.filter(|slot| matches!(slot, Slot::Data { filled: Filled::Plain, .. }));
        let shared = state.bottom(volume).map_or(0, |bottom| state.inherited(bottom).len() as u64);
        Some(VolumeInfo {
            template: found.template,
            checksums: found.checksums,
            unchecked: unchecked.count() as u64 * self.chunk,
            origin: state.origin_name(volume),
            shared: shared * self.chunk,
            degraded_chunks: degraded.count() as u64,
            allocated: layers.iter().map(|layer| bytes(*layer)).sum(),
            redirected: if snapshots.is_empty() { 0 } else { bytes(found.top) },
            name: settings.name,
            size: settings.size,
            layout: settings.layout,
            provisioning: settings.provisioning,
            members: settings.members,
            snapshots,
        })
    }
}
