//! Formats by name, and the way from a path to an opened image.
//!
//! The format is stated by whoever opens an image. It is guessed from the file's first bytes only on request, because
//! a guest that owns a raw disk can write any header there, with any backing file in it.

use crate::image::{DiskImage, ImageResult};
use crate::options::{BackingPolicy, CreateOptions, OpenOptions};
use crate::qcow2::{Measure, Qcow2Format};
use crate::raw::{RawFile, RawFormat};
use crate::{BlockBackend, BlockError, dmg, pool};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Code for one format. A new format is a line in [`DRIVERS`].
pub trait Driver: Sync {
    /// Its name, as `qemu-img` says it.
    fn name(&self) -> &'static str;
    /// Options of [`CreateOptions::options`], each with a line of help.
    fn options(&self) -> &'static [(&'static str, &'static str)];
    /// Whether a file that begins like this, at most 64 KiB, and has this size, is of this format. Raw says no to
    /// everything.
    fn probe(&self, head: &[u8], size: u64) -> bool;
    /// Opens the image in `file`; `path` is for messages and for files beside it.
    fn open(
        &self,
        file: Arc<dyn BlockBackend>,
        path: &Path,
        options: &OpenOptions,
    ) -> ImageResult<Arc<dyn DiskImage>>;
    /// How large a file becomes whose disk has `data` at these ranges; `options` as for [`Driver::create`].
    fn measure(&self, options: CreateOptions, data: &[Range<u64>]) -> ImageResult<Measure> {
        let _ = (options, data);
        Err(BlockError::option(
            "format",
            format!("the size of {} files is not known in advance", self.name()),
        ))
    }
    /// Makes an empty image at `path`, which is overwritten.
    fn create(&self, path: &Path, options: CreateOptions) -> ImageResult<()>;
}

/// Every format.
static DRIVERS: &[&dyn Driver] = &[
    &RawFormat,
    &Qcow2Format,
    &crate::vdi::VdiFormat,
    &crate::vhd::VhdFormat,
    &crate::vhdx::VhdxFormat,
    &crate::vmdk::VmdkFormat,
    &crate::luks::LuksFormat,
    &crate::dmg::DmgFormat,
];

/// All formats, in the order of their help.
pub fn drivers() -> impl Iterator<Item = &'static dyn Driver> {
    DRIVERS.iter().copied()
}

/// A format by its name.
pub fn driver(name: &str) -> ImageResult<&'static dyn Driver> {
    if name == "iso" {
        let problem = "iso is no format: an .iso is raw, for reading only: format=raw";
        return Err(BlockError::option("format", problem));
    }
    drivers().find(|driver| driver.name() == name).ok_or_else(|| {
        let names: Vec<&str> = drivers().map(Driver::name).collect();
        BlockError::option("format", format!("{name:?} is unknown; known: {}", names.join(", ")))
    })
}

/// Opens and locks an image of a stated format: one of the drivers', or `pool` for a volume (`POOL-FILE/VOLUME`).
pub fn open(path: &Path, format: &str, options: &OpenOptions) -> ImageResult<Arc<dyn DiskImage>> {
    if format == pool::image::FORMAT {
        return pool::image::open(path, options);
    }
    let driver = driver(format)?;
    let file = RawFile::open_storage(path, options)?;
    driver.open(Arc::new(file), path, options)
}

/// Name of the format the file's first bytes show; `raw` when they show none.
pub fn probe(path: &Path) -> ImageResult<&'static str> {
    if pool::image::is_volume(path) {
        return Ok(pool::image::FORMAT);
    }
    let options = OpenOptions { ignore_locks: true, ..OpenOptions::reading() };
    let file = RawFile::open_storage(path, &options)?;
    if dmg::is_there(&file).map_err(|source| BlockError::io(path, "reading the end", source))? {
        return Ok("dmg");
    }
    let mut head = vec![0; file.size().min(1 << 16) as usize];
    file.read_bytes(0, &mut head).map_err(|source| BlockError::io(path, "reading the header", source))?;
    Ok(drivers().find(|driver| driver.probe(&head, file.size())).map_or("raw", Driver::name))
}

/// Makes an empty image; a file that is there is overwritten. A volume of a pool is made by the same path as it is opened.
/// A new file for which there is no space is removed again.
pub fn create(path: &Path, format: &str, options: CreateOptions) -> ImageResult<()> {
    if format == pool::image::FORMAT {
        return pool::image::create(path, options);
    }
    let is_new = std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let made = driver(format)?.create(path, options);
    if let Err(BlockError::Io { source, .. }) = &made
        && matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        && is_new
    {
        // The error that counts is the first one.
        drop(std::fs::remove_file(path));
    }
    made
}

/// Images of one chain: more are taken for an attack.
const CHAIN_MAX: usize = 200;

/// The file that `name`, as stored in the image at `path`, leads to, if `options` allow it.
pub fn referred_file(path: &Path, name: &str, options: &OpenOptions) -> ImageResult<PathBuf> {
    let refuse =
        |problem: String| BlockError::Reference { path: path.to_owned(), other: name.to_owned(), problem };
    let plain = name.strip_prefix("file:").unwrap_or(name);
    let joined = path.parent().unwrap_or(Path::new("")).join(plain);
    let real = joined.canonicalize().map_err(|error| refuse(error.to_string()))?;
    let allowed = match &options.backing {
        BackingPolicy::Anywhere => true,
        BackingPolicy::Refuse | BackingPolicy::Ignore => false,
        BackingPolicy::Inside(folders) => folders
            .iter()
            .filter_map(|folder| folder.canonicalize().ok())
            .any(|folder| real.starts_with(folder)),
    };
    if allowed { Ok(real) } else { Err(refuse("it is not inside a directory that was allowed".to_owned())) }
}

/// Opens the backing image that the image at `path` names; `None` when the policy says to go without. The format must
/// be stored in the image: guessing would let the guest of the backing file choose it.
pub fn open_backing(
    path: &Path,
    name: &str,
    format: Option<&str>,
    options: &OpenOptions,
) -> ImageResult<Option<Arc<dyn DiskImage>>> {
    if let Some(opened) = &options.opened_backing {
        return Ok(Some(opened.0.clone()));
    }
    if options.backing == BackingPolicy::Ignore {
        return Ok(None);
    }
    let refuse =
        |problem: String| BlockError::Reference { path: path.to_owned(), other: name.to_owned(), problem };
    let file = referred_file(path, name, options)?;
    let own = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if file == own || options.chain.contains(&file) {
        return Err(refuse("the backing chain comes back to itself".to_owned()));
    }
    if options.chain.len() >= CHAIN_MAX {
        return Err(refuse(format!("the backing chain has more than {CHAIN_MAX} images")));
    }
    let format = format.ok_or_else(|| {
        refuse(
            "the image does not say the format of its backing file; set it with: vireo image rebase -u -F"
                .into(),
        )
    })?;
    let mut below = options.clone();
    below.chain.push(own);
    below.read_only = options.read_only || !options.write_backing;
    below.write_backing = false;
    below.for_check = false;
    open(&file, format, &below).map(Some).map_err(|error| match error {
        error @ BlockError::Reference { .. } => error,
        error => refuse(with_causes(&error)),
    })
}

/// The text of an error and its causes on one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
