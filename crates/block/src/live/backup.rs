//! Backup: the disk as it was at the start, while the guest goes on writing.
//!
//! A set of grains says what is still to be copied. A change of the disk first copies those of its grains that are in
//! the set; the grains are locked meanwhile, so job and change never copy the same. A target that fails ends the
//! backup, never the guest's change.

use super::grains::Grains;
use super::job::{Control, End, STEP, copy_range, guarded};
use super::{Layer, LiveDisk, Watcher};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::image::{Bitmaps, DiskImage, ImageResult};
use parking_lot::Mutex;
use std::io::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Backup {
    size: u64,
    todo: Grains,
    target: Arc<dyn BlockBackend>,
    fresh: bool,
    copied: AtomicU64,
    /// What ended it.
    error: Mutex<Option<Error>>,
}

impl Backup {
    /// Copies what is to be copied of these grains, which are locked.
    fn copy(&self, disk: &dyn BlockBackend, grains: &Range<u64>, buffer: &mut Vec<u8>) {
        while let Some(run) = self.todo.first_in(grains.clone(), STEP) {
            self.todo.remove(run.clone());
            let bytes = run.end - run.start;
            if let Err(error) = copy_range(disk, &*self.target, run, buffer, self.fresh) {
                self.error.lock().get_or_insert(error);
                self.todo.remove(0..self.size);
                return;
            }
            self.copied.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl Watcher for Backup {
    fn before_change(&self, disk: &dyn BlockBackend, grains: Range<u64>) {
        self.copy(disk, &grains, &mut Vec::new());
    }
    fn after_change(&self, _range: Range<u64>) {}
}

/// A bitmap that starts anew with the backup.
struct Restarted {
    image: Arc<dyn DiskImage>,
    name: String,
    /// What it marked.
    marked: Vec<Range<u64>>,
}

type Work = Box<dyn FnOnce(&Control) -> Result<(), End> + Send>;

pub(super) fn start(
    live: &Arc<LiveDisk>,
    target: &Layer,
    fresh: bool,
    bitmap: Option<String>,
    full: bool,
) -> ImageResult<Work> {
    let mut top = live.idle_top()?;
    let size = top.layer.disk.size();
    super::check_target(target, size)?;
    let restarted = bitmap.map(|name| restart(&top.layer, name)).transpose()?;
    let todo = Grains::new(size);
    match &restarted {
        Some(bitmap) if !full => bitmap.marked.iter().for_each(|range| todo.add(range.clone())),
        _ => todo.add(0..size),
    }
    let path = target.path.clone();
    let target = target.disk.clone();
    let copied = AtomicU64::new(0);
    let backup = Arc::new(Backup { size, todo, target, fresh, copied, error: Mutex::new(None) });
    top.watcher = Some(backup.clone());
    let live = live.clone();
    Ok(Box::new(move |control| {
        let result = guarded(|| run(&live, &backup, control)).map_err(|end| end.copying_to(&path));
        let mut top = live.top.write();
        top.watcher = None;
        match (restarted, result) {
            (Some(bitmap), Err(end)) => {
                // As if it had gone on: what it marked, and what was written since.
                bitmaps_of(&bitmap.image)?.merge(&bitmap.name, &bitmap.marked)?;
                Err(end)
            }
            (_, result) => result,
        }
    }))
}

fn bitmaps_of(image: &Arc<dyn DiskImage>) -> ImageResult<&dyn Bitmaps> {
    image.bitmaps().ok_or_else(|| BlockError::option("bitmap", "the disk's format has none; qcow2 does"))
}

/// No request is under way.
fn restart(layer: &Layer, name: String) -> ImageResult<Restarted> {
    let image = layer.image.clone();
    let bitmaps = bitmaps_of(&image)?;
    let found = bitmaps.list()?.into_iter().find(|bitmap| bitmap.name == name);
    let found =
        found.ok_or_else(|| BlockError::option("bitmap", format!("the disk has no bitmap {name:?}")))?;
    if !found.enabled {
        return Err(BlockError::option("bitmap", format!("{name:?} does not record writes; make a new one")));
    }
    let marked = bitmaps.dirty_ranges(&name)?;
    bitmaps.clear(&name)?;
    Ok(Restarted { image, name, marked })
}

fn run(live: &LiveDisk, backup: &Backup, control: &Control) -> Result<(), End> {
    let mut buffer = Vec::new();
    control.set_total(backup.todo.bytes());
    let mut told = 0;
    while let Some(run) = backup.todo.next_from(0, STEP) {
        control.checkpoint()?;
        let bytes = run.end - run.start;
        live.with_grains(run.clone(), |layer| backup.copy(&*layer.disk, &run, &mut buffer));
        let copied = backup.copied.load(Ordering::Relaxed);
        control.advance(copied.saturating_sub(told));
        told = copied;
        control.pace(bytes);
    }
    if let Some(error) = backup.error.lock().take() {
        return Err(End::Failed(error));
    }
    control.checkpoint()?;
    // Changes that are still copying hold the top.
    drop(live.top.write());
    if let Some(error) = backup.error.lock().take() {
        return Err(End::Failed(error));
    }
    backup.target.flush()?;
    Ok(())
}
