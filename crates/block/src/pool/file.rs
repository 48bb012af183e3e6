//! Pool files: a few lines of TOML that name a pool's members.

use super::open::{Offered, OpenPool};
use super::{Pool, stored, wrong};
use crate::image::ImageResult;
use crate::options::OpenOptions;
use crate::raw::RawFile;
use crate::{BlockBackend, BlockError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};

/// Longest pool file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The content of a pool file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolFile {
    /// Files and block devices; relative paths begin at the directory of the pool file.
    pub members: Vec<PathBuf>,
}

impl PoolFile {
    /// Reads a pool file.
    pub fn read(path: &Path) -> ImageResult<Self> {
        let failed = |source| BlockError::io(path, "reading the pool file", source);
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > FILE_MAX {
            return Err(wrong(format!("{} is no pool file: it has {size} bytes", path.display())));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        toml::from_str(&text).map_err(|error| {
            let line = error.message().lines().next().unwrap_or_default().to_owned();
            wrong(format!("{} is no pool file (TOML with members = [\"PATH\", …]): {line}", path.display()))
        })
    }

    /// Writes a pool file in place of the one that is there, so that a power loss leaves one of them.
    pub fn write(&self, path: &Path) -> ImageResult<()> {
        let failed = |source| BlockError::io(path, "writing the pool file", source);
        let text = toml::to_string(self).map_err(wrong)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        let mut file = std::fs::File::create(&new).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        std::fs::rename(&new, path).map_err(failed)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    fn resolve(path: &Path, member: &Path) -> PathBuf {
        path.parent().unwrap_or(Path::new("")).join(member)
    }

    /// Opens the pool that a pool file names. A pool that this process has open already is shared.
    pub fn open(path: &Path, options: OpenPool) -> ImageResult<Arc<Pool>> {
        static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<Pool>>>> = LazyLock::new(Mutex::default);
        let key =
            path.canonicalize().map_err(|source| BlockError::io(path, "opening the pool file", source))?;
        let mut open = OPEN.lock();
        if let Some(pool) = open.get(&key).and_then(Weak::upgrade)
            && (options.read_only || !pool.read_only)
        {
            return Ok(pool);
        }
        let file = PoolFile::read(path)?;
        let offer = |member: &PathBuf| -> Offered {
            let found = PoolFile::resolve(path, member);
            let opened = open_member(&found, options.read_only);
            (member.clone(), opened)
        };
        let pool = Pool::open(file.members.iter().map(offer).collect(), options)?;
        open.insert(key, Arc::downgrade(&pool));
        Ok(pool)
    }

    /// Makes an empty pool of these members and the file that names it; what they hold is lost. Members of a pool are
    /// taken only with `overwrite`.
    pub fn create(path: &Path, members: &[PathBuf], chunk: u64, overwrite: bool) -> ImageResult<()> {
        if path.exists() && !overwrite {
            return Err(wrong(format!("{} is there already", path.display())));
        }
        let files = members.iter().map(|member| {
            let file = new_member(&PoolFile::resolve(path, member), overwrite)?;
            Ok((member.clone(), file))
        });
        let files: Vec<(PathBuf, Arc<dyn BlockBackend>)> = files.collect::<ImageResult<_>>()?;
        Pool::create(&files, chunk)?;
        PoolFile { members: members.to_vec() }.write(path)
    }

    /// Adds a member to the pool and to its file.
    pub fn add(path: &Path, pool: &Pool, member: &Path, overwrite: bool) -> ImageResult<()> {
        let file = new_member(&PoolFile::resolve(path, member), overwrite)?;
        let mut list = PoolFile::read(path)?;
        // First in the file: one that is named and does not belong to the pool is harmless.
        list.members.push(member.to_owned());
        list.write(path)?;
        pool.add_member(member, file).map_err(|source| BlockError::io(path, "adding the member", source))
    }

    /// Takes a member out of the pool and of its file, when everything was moved off it.
    pub fn remove(path: &Path, pool: &Pool, member: &str, progress: &dyn Fn(u64)) -> ImageResult<()> {
        let removed =
            pool.member_named(member).map(|id| (pool.name_of(id), pool.remove_member(member, progress)));
        let (name, removed) =
            removed.map_err(|source| BlockError::io(path, "removing the member", source))?;
        removed.map_err(|source| BlockError::io(path, "removing the member", source))?;
        let mut list = PoolFile::read(path)?;
        list.members.retain(|found| found != Path::new(&name));
        list.write(path)
    }
}

fn open_member(path: &Path, read_only: bool) -> ImageResult<Arc<dyn BlockBackend>> {
    let options = OpenOptions { read_only, ..OpenOptions::default() };
    Ok(Arc::new(RawFile::open_storage(path, &options)?))
}

fn new_member(path: &Path, overwrite: bool) -> ImageResult<Arc<dyn BlockBackend>> {
    let file = open_member(path, false)?;
    if stored::is_member(&*file) && !overwrite {
        return Err(wrong(format!("{} belongs to a pool already; --force takes it anyway", path.display())));
    }
    Ok(file)
}
