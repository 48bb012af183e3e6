//! The image.

use super::{Layout, Pages, Place};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::image::{CheckReport, DiskImage, ImageInfo, ImageResult, Repair};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::HashSet;
use std::io::Result;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a [`Mapped`] is made of.
pub(crate) struct Parts<L> {
    /// The file.
    pub file: Arc<dyn BlockBackend>,
    /// Its name.
    pub path: PathBuf,
    /// Its format.
    pub layout: L,
    /// Size of the disk in bytes.
    pub size: u64,
    /// The backing image.
    pub backing: Option<Arc<dyn DiskImage>>,
    /// Where the disk begins on the backing image's disk.
    pub backing_start: u64,
    /// Writes are refused.
    pub read_only: bool,
}

/// An image of a format with a table of blocks.
pub(crate) struct Mapped<L: Layout> {
    pub(super) file: Arc<dyn BlockBackend>,
    pub(super) path: PathBuf,
    pub(super) layout: L,
    pub(super) size: AtomicU64,
    pub(super) backing: Option<Arc<dyn DiskImage>>,
    pub(super) backing_start: u64,
    read_only: bool,
    pub(super) pages: Pages,
    /// Blocks whose entry or bitmap is about to change.
    claimed: Mutex<HashSet<u64>>,
    released: Condvar,
    /// One flush at a time.
    commit: Mutex<()>,
    /// Held shared by requests, alone by what changes the image as a whole.
    pub(super) structure: RwLock<()>,
    writing: AtomicBool,
    begin: Mutex<()>,
    /// The block that was decompressed last.
    pub(super) decompressed: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
}

/// A block whose entry only its holder changes.
pub(super) struct Claim<'a, L: Layout> {
    image: &'a Mapped<L>,
    block: u64,
}

impl<L: Layout> Drop for Claim<'_, L> {
    fn drop(&mut self) {
        self.image.claimed.lock().remove(&self.block);
        self.image.released.notify_all();
    }
}

impl<L: Layout> Mapped<L> {
    /// An opened image.
    pub fn new(parts: Parts<L>) -> Self {
        Mapped {
            file: parts.file,
            path: parts.path,
            layout: parts.layout,
            size: AtomicU64::new(parts.size),
            backing: parts.backing,
            backing_start: parts.backing_start,
            read_only: parts.read_only,
            pages: Pages::new(L::PAGE),
            claimed: Mutex::default(),
            released: Condvar::new(),
            commit: Mutex::new(()),
            structure: RwLock::new(()),
            writing: AtomicBool::new(false),
            begin: Mutex::new(()),
            decompressed: Mutex::default(),
        }
    }

    /// Adds what only the format has.
    pub fn describe(&self, info: &mut ImageInfo) {
        self.layout.describe(info);
    }

    /// Whether writes are refused.
    pub(super) fn refuses_writes(&self) -> bool {
        self.read_only || self.file.is_read_only()
    }

    /// Blocks of the disk.
    pub(super) fn blocks(&self) -> u64 {
        self.size.load(Ordering::Acquire).div_ceil(self.layout.block_size())
    }

    pub(super) fn place(&self, block: u64) -> Result<Place> {
        self.layout.place(&*self.file, &self.pages, block)
    }

    /// The first block from this one on that has an entry.
    pub(super) fn next_entry(&self, block: u64) -> Result<Option<u64>> {
        let mut block = block;
        while block < self.blocks() {
            match self.layout.without_table(&*self.file, &self.pages, block)? {
                0 => return Ok(Some(block)),
                blocks => block = block.saturating_add(blocks),
            }
        }
        Ok(None)
    }

    pub(super) fn set(&self, block: u64, place: Place) -> Result<()> {
        self.layout.set(&*self.file, &self.pages, block, place)
    }

    /// Waits until nobody else changes the block's entry.
    pub(super) fn claim(&self, block: u64) -> Claim<'_, L> {
        let mut claimed = self.claimed.lock();
        while !claimed.insert(block) {
            self.released.wait(&mut claimed);
        }
        Claim { image: self, block }
    }

    /// Lets the format prepare the file before the first write.
    pub(super) fn begin_writing(&self) -> Result<()> {
        if self.writing.load(Ordering::Acquire) {
            return Ok(());
        }
        let _one = self.begin.lock();
        if !self.writing.load(Ordering::Acquire) {
            self.layout.begin_writing(&*self.file)?;
            self.writing.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Makes data durable, then the table.
    pub(super) fn commit(&self) -> Result<()> {
        let _one = self.commit.lock();
        let dirty = self.pages.dirty();
        self.file.flush()?;
        if !dirty.is_empty() {
            self.layout.commit(&*self.file, &dirty)?;
            self.pages.written(&dirty);
        }
        Ok(())
    }

    pub(super) fn io(&self, action: &'static str) -> impl Fn(std::io::Error) -> BlockError + '_ {
        move |source| BlockError::io(&self.path, action, source)
    }
}

impl<L: Layout> Drop for Mapped<L> {
    fn drop(&mut self) {
        // A failure leaves the image as after a crash: in order, without the latest unflushed writes.
        if *self.writing.get_mut() && self.commit().is_ok() {
            let _ = self.layout.close(&*self.file);
        }
    }
}

impl<L: Layout> DiskImage for Mapped<L> {
    fn info(&self) -> ImageResult<ImageInfo> {
        let mut info = ImageInfo {
            filename: self.path.clone(),
            format: self.layout.format().to_owned(),
            virtual_size: self.size(),
            actual_size: crate::raw::actual_size(&self.path).unwrap_or(self.file.size()),
            cluster_size: Some(self.layout.block_size()),
            ..ImageInfo::default()
        };
        self.layout.describe(&mut info);
        Ok(info)
    }

    fn check(&self, repair: Repair) -> ImageResult<CheckReport> {
        let _alone = self.structure.write();
        super::check::check(self, repair)
    }

    fn cluster_size(&self) -> u64 {
        self.layout.block_size()
    }

    fn backing(&self) -> Option<Arc<dyn DiskImage>> {
        self.backing.clone()
    }

    fn set_backing(&self, backing: Option<(&str, &str)>) -> ImageResult<()> {
        let _alone = self.structure.write();
        self.begin_writing().map_err(self.io("writing"))?;
        self.commit().map_err(self.io("writing the table"))?;
        self.layout.set_backing(&*self.file, &self.path, backing)
    }

    fn make_empty(&self) -> ImageResult<()> {
        let _alone = self.structure.write();
        let emptied = || -> Result<()> {
            self.begin_writing()?;
            let mut next = 0;
            while let Some(block) = self.next_entry(next)? {
                next = block + 1;
                let (head, size) = (self.layout.block_head(), self.layout.block_size());
                match self.place(block)? {
                    Place::Absent => continue,
                    Place::Data(data) | Place::Partial { data, .. } => {
                        self.set(block, Place::Absent)?;
                        self.commit_if_full()?;
                        // Entries are changed first: a crash between leaves content or nothing, never zeros.
                        self.commit()?;
                        self.file.discard(data - head, size + head)?;
                    }
                    Place::Zero | Place::Compressed(_) => self.set(block, Place::Absent)?,
                }
                self.commit_if_full()?;
            }
            self.commit()
        };
        emptied().map_err(self.io("emptying the table"))
    }
}
