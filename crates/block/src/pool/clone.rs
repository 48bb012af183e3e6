//! Linked clones, and templates to make them from.

use super::Pool;
use super::commit::COMMIT_EVERY;
use super::manage::not_found;
use super::record::{Provisioning, Record, Stored, VolumeId};
use super::request::Content;
use std::io::{Error, ErrorKind, Result};

/// Name of the snapshot that a template gets when it is as none of those it has.
const TEMPLATE: &str = "template";

impl Pool {
    /// Makes a volume with the content of a snapshot (`VOLUME@SNAPSHOT`) or a template (`VOLUME`), whose chunks it shares
    /// until it writes to them. It is thin, and on the members that its source is on.
    ///
    /// # Errors
    /// When there is no such source, or a volume of this name.
    pub fn clone_volume(&self, source: &str, name: &str) -> Result<()> {
        let (volume, snapshot) = match source.split_once('@') {
            Some((volume, snapshot)) => (self.volume_id(volume)?, Some(snapshot)),
            None => (self.volume_id(source)?, None),
        };
        let gate = self.gate(volume);
        let _gate = gate.write();
        let mut settings = self.settings(volume)?;
        {
            let mut inner = self.writable_inner()?;
            let state = &inner.state;
            let found = match snapshot {
                Some(name) => state.snapshot_named(volume, name).map(|(id, _)| id),
                None => state.template_snapshot(volume),
            };
            let found = found.ok_or_else(|| match snapshot {
                Some(name) => not_found("snapshot", name),
                None => {
                    let text =
                        format!("Volume {source:?} is no template; name a snapshot: {source}@SNAPSHOT");
                    Error::new(ErrorKind::InvalidInput, text)
                }
            })?;
            let snapshot = state.layers.get(&found).and_then(|layer| layer.snapshot.as_ref());
            settings.size = snapshot.map_or(settings.size, |snapshot| snapshot.size);
            name.clone_into(&mut settings.name);
            settings.provisioning = Provisioning::Thin;
            let (volume, layer) = (state.next_volume, state.next_layer);
            inner.change(vec![Record::Cloned { volume, layer, source: found, settings }])?;
        }
        self.commit()
    }

    /// Copies everything that a clone and its snapshots share with their source, so that they share nothing any more,
    /// while volumes are used. Tells how many chunks were copied; `progress` hears of every one.
    pub fn flatten(&self, name: &str, progress: &dyn Fn(u64)) -> Result<u64> {
        let volume = self.volume_id(name)?;
        if self.inner.read().state.origin(volume).is_none() {
            let text = format!("Volume {name:?} is no clone: it stands on no other volume");
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        let mut copied = 0;
        loop {
            let chunks = {
                let state = &self.inner.read().state;
                state.bottom(volume).map(|bottom| state.inherited(bottom)).unwrap_or_default()
            };
            for chunk in chunks {
                if self.copy_inherited(volume, chunk)? {
                    copied += 1;
                    progress(copied);
                    if copied % COMMIT_EVERY == 0 {
                        self.commit()?;
                    }
                }
            }
            if self.detach(volume)? {
                return self.commit().map(|()| copied);
            }
        }
    }

    /// Gives the oldest layer of a clone its own copy of a chunk.
    fn copy_inherited(&self, volume: VolumeId, chunk: u32) -> Result<bool> {
        let gate = self.gate(volume);
        let _gate = gate.read();
        let _hold = self.alone(volume, chunk);
        let (layer, source) = {
            let state = &self.inner.read().state;
            let bottom = state.bottom(volume).and_then(|id| Some((id, state.layers.get(&id)?)));
            let Some((id, bottom)) = bottom else { return Ok(false) };
            match state.resolve(bottom.parent, chunk).and_then(|slot| slot.stored()) {
                Some(stored) if !bottom.map.contains_key(&chunk) => (id, stored),
                _ => return Ok(false),
            }
        };
        let summed = source.summed || self.has_checksums(volume);
        let target = self.allocate(&self.settings(volume)?, chunk)?;
        let new = Stored { copies: target, summed };
        let filled = self.fill(volume, chunk, &new, Some(&source), 0, &Content::Bytes(&[]));
        self.map_filled(layer, chunk, &new, filled)?;
        Ok(true)
    }

    /// Ends the clone's relation with its source, if it needs nothing any more.
    fn detach(&self, volume: VolumeId) -> Result<bool> {
        let gate = self.gate(volume);
        let _gate = gate.write();
        let mut inner = self.writable_inner()?;
        let state = &inner.state;
        let Some(layer) = state.bottom(volume).filter(|_| state.origin(volume).is_some()) else {
            return Ok(true);
        };
        if !state.inherited(layer).is_empty() {
            return Ok(false);
        }
        inner.change(vec![Record::Detached { layer }])?;
        Ok(true)
    }

    /// Makes a volume a template: it is not written to any more, and clones are made of it by its name alone. With `on`
    /// false it becomes a volume like others again; its clones are not touched.
    ///
    /// # Errors
    /// When somebody writes to it.
    pub fn set_template(&self, name: &str, on: bool) -> Result<()> {
        let volume = self.volume_id(name)?;
        let gate = self.gate(volume);
        let _gate = gate.write();
        let writers = self.writers.lock();
        if on && writers.contains(&volume) {
            let text = format!("Volume {name:?} is in use; a template is not written to");
            return Err(Error::new(ErrorKind::ResourceBusy, text));
        }
        {
            let mut inner = self.writable_inner()?;
            let state = &inner.state;
            let mut records = Vec::new();
            if on && !state.is_as_its_snapshot(volume) {
                let (layer, time) = (state.next_layer, super::manage::now());
                records.push(Record::Snapshotted { volume, layer, name: TEMPLATE.to_owned(), time });
            }
            records.push(Record::Templated { volume, on });
            inner.change(records)?;
        }
        drop(writers);
        self.commit()
    }
}
