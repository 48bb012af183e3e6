//! Members that come, go, fail and return.

use super::open::{check_room, chunks_of, new_areas};
use super::record::{MemberId, Place, Record};
use super::stored::{self, BLOCK, Superblock};
use super::{Disk, Pool};
use crate::BlockBackend;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Pool {
    /// A member by its path as the pool file has it, or by its number.
    pub(super) fn member_named(&self, name: &str) -> Result<MemberId> {
        let disks = self.disks.read();
        let same = |path: &Path| path == Path::new(name) || path.file_name().is_some_and(|file| file == name);
        let mut found = disks.iter().filter(|(_, disk)| same(&disk.path)).map(|(member, _)| *member);
        let number = name.parse().ok().filter(|number| disks.contains_key(number));
        match (found.next(), found.next()) {
            (Some(member), None) => Ok(member),
            (None, _) if number.is_some() => number.ok_or_else(|| ErrorKind::NotFound.into()),
            (None, _) => {
                let text =
                    format!("The pool has no member {name:?}; give a path or number that pool info shows");
                Err(Error::new(ErrorKind::NotFound, text))
            }
            _ => {
                let text = format!("{name:?} is the name of several members; give a whole path, or a number");
                Err(Error::new(ErrorKind::InvalidInput, text))
            }
        }
    }

    /// Adds a member; what it holds is lost.
    pub fn add_member(&self, path: &Path, file: Arc<dyn BlockBackend>) -> Result<()> {
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        let mut log = self.log.lock();
        let chunks = chunks_of(path, file.size(), self.chunk)?;
        let own = u128::from_be_bytes(crate::mapped::random_uuid());
        let (member, total) = {
            let state = &self.inner.read().state;
            let mut sizes: Vec<(PathBuf, u32)> =
                state.members.iter().map(|(id, member)| (self.name_of(*id).into(), member.chunks)).collect();
            sizes.push((path.to_owned(), chunks));
            let total = sizes.iter().map(|(_, chunks)| u64::from(*chunks)).sum();
            check_room(sizes.iter().map(|(path, chunks)| (path.as_path(), *chunks)), self.chunk, total)?;
            (state.next_member, total)
        };
        let areas = new_areas(&*file, self.chunk, total)?;
        stored::write_superblock(&*file, &Superblock::new(self.uuid, own, self.chunk, chunks))?;
        file.flush()?;
        {
            let mut inner = self.inner.write();
            inner.change(vec![Record::MemberAdded { member, uuid: own, chunks }])?;
            inner.space.add(member, chunks, false);
            for area in areas.areas {
                for chunk in area.start..area.end() {
                    inner.space.claim(Place { member, chunk });
                }
            }
        }
        self.disks.write().insert(member, Disk { path: path.to_owned(), file: Some(file) });
        log.members.insert(member, areas);
        // The log of the new member is empty; only with a checkpoint it is like the others'.
        log.must_checkpoint = true;
        self.commit_with(&mut log)
    }

    /// Moves everything off a member and takes it out of the pool, while volumes are used. `progress` hears how many
    /// chunks were moved for each volume.
    pub fn remove_member(&self, name: &str, progress: &dyn Fn(u64)) -> Result<()> {
        let member = self.member_named(name)?;
        if self.inner.read().state.members.len() < 2 {
            return Err(Error::new(ErrorKind::InvalidInput, "The last member of a pool cannot be removed"));
        }
        self.inner.write().space.set_closed(member, true);
        let left = self.evacuate(member, progress).and_then(|()| {
            let mut log = self.log.lock();
            self.change(vec![Record::MemberRemoved { member }])?;
            // With a checkpoint, no log that another epoch left can bring it back.
            log.must_checkpoint = true;
            self.commit_with(&mut log)?;
            log.members.remove(&member);
            Ok(())
        });
        if let Err(error) = left {
            let healthy = self.inner.read().state.is_healthy(member);
            self.inner.write().space.set_closed(member, !healthy);
            return Err(error);
        }
        self.inner.write().space.remove(member);
        let disk = self.disks.write().remove(&member);
        if let Some(file) = disk.and_then(|disk| disk.file) {
            // It has left, whether or not it can still hear of it.
            drop(file.write_bytes(0, &[0; BLOCK as usize]).and_then(|()| file.flush()));
        }
        Ok(())
    }

    /// Takes failed members that are there again into use, and makes the copies that mirrored volumes lack; tells how
    /// many chunks were copied.
    pub fn rebuild(&self, progress: &dyn Fn(u64)) -> Result<u64> {
        let returned: Vec<MemberId> = {
            let inner = self.inner.read();
            let disks = self.disks.read();
            let failed = inner.state.members.iter().filter(|(_, member)| member.failed).map(|(id, _)| *id);
            failed.filter(|id| disks.get(id).is_some_and(|disk| disk.file.is_some())).collect()
        };
        if !returned.is_empty() {
            let mut log = self.log.lock();
            for member in returned {
                // Copies that missed a write were forgotten; what is still referred to is as it was.
                self.change(vec![Record::MemberRestored { member }])?;
                self.inner.write().space.set_closed(member, false);
            }
            log.must_checkpoint = true;
            self.commit_with(&mut log)?;
        }
        let doubtful = self.regions.lock().doubtful();
        self.resync(doubtful)?;
        self.make_copies(progress)
    }
}
