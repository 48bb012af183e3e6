//! Mirror, and commit, which mirrors what the top image has into its backing image.
//!
//! A set of grains says where the target may differ. A change of the disk adds its grains after it happened; the job
//! takes grains out before it reads them. So whatever the job reads too early is in the set again when the change is
//! done. The job is complete when the set is empty while no request is under way.

use super::grains::Grains;
use super::job::{Control, End, STEP, Wish, copy_range, guarded};
use super::{Layer, LiveDisk, Watcher};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::image::ImageResult;
use std::ops::Range;
use std::sync::Arc;

/// With so few bytes to be copied, the guest may wait for the rest.
const REST: u64 = 4 << 20;
/// How often a guest that writes faster than that is followed before it has to wait for more.
const ROUNDS: u32 = 16;

struct Followed(Grains);

impl Watcher for Followed {
    fn before_change(&self, _disk: &dyn BlockBackend, _grains: Range<u64>) {}
    fn after_change(&self, range: Range<u64>) {
        self.0.add(range);
    }
}

type Work = Box<dyn FnOnce(&Control) -> Result<(), End> + Send>;

pub(super) fn start(live: &Arc<LiveDisk>, target: Layer, fresh: bool) -> ImageResult<Work> {
    let mut top = live.idle_top()?;
    let size = top.layer.disk.size();
    super::check_target(&target, size)?;
    let dirty = Arc::new(Followed(Grains::new(size)));
    dirty.0.add(0..size);
    top.watcher = Some(dirty.clone());
    let live = live.clone();
    Ok(Box::new(move |control| run(&live, &target, &dirty, fresh, control)))
}

pub(super) fn start_commit(live: &Arc<LiveDisk>) -> ImageResult<Work> {
    let mut top = live.idle_top()?;
    let base = top.layer.image.backing();
    let base = base.ok_or_else(|| BlockError::option("commit", "the disk has no backing image"))?;
    if base.is_read_only() {
        return Err(BlockError::option(
            "commit",
            "the backing image is open for reading only; run the machine with commit=on",
        ));
    }
    let disk = top.layer.disk.clone();
    let size = disk.size();
    let failed = |error: std::io::Error| BlockError::option("commit", error);
    if base.size() < size {
        base.resize(size).map_err(failed)?;
    }
    let dirty = Arc::new(Followed(Grains::new(size)));
    let mut at = 0;
    while at < size {
        let extent = disk.block_status(at, size - at).map_err(failed)?;
        if extent.present && extent.depth == 0 {
            dirty.0.add(at..at + extent.length);
        }
        at += extent.length.max(1);
    }
    let facts = base.info()?;
    let target = Layer::of(base, &facts.filename, &facts.format);
    top.watcher = Some(dirty.clone());
    let live = live.clone();
    Ok(Box::new(move |control| run(&live, &target, &dirty, false, control)))
}

fn run(live: &LiveDisk, target: &Layer, dirty: &Followed, fresh: bool, control: &Control) -> Result<(), End> {
    let result = guarded(|| {
        let pivot = follow(live, target, dirty, fresh, control)?;
        finish(live, target, dirty, pivot, control)
    });
    live.top.write().watcher = None;
    result.map_err(|end| end.copying_to(&target.path))
}

/// Copies and follows until somebody wishes the end; answers whether the target becomes the disk.
fn follow(
    live: &LiveDisk,
    target: &Layer,
    dirty: &Followed,
    mut fresh: bool,
    control: &Control,
) -> Result<bool, End> {
    let mut buffer = Vec::new();
    let mut at = 0;
    let mut rounds = 0;
    loop {
        control.checkpoint()?;
        if let Some(range) = dirty.0.next_from(at, STEP) {
            // Once around, the target has something everywhere.
            let around = range.start < at;
            fresh &= !around;
            rounds += u32::from(around);
            at = range.end;
            step(live, target, dirty, range, fresh, &mut buffer, control)?;
        }
        let left = dirty.0.bytes();
        if left == 0 || left <= REST && control.report().status == super::JobStatus::Ready {
            match control.ready() {
                Wish::Complete { pivot } => return Ok(pivot),
                Wish::Cancel => return Err(End::Cancelled),
                Wish::GoOn => rounds = 0,
            }
        } else if rounds >= ROUNDS
            && let Wish::Complete { pivot } = control.wish()
        {
            return Ok(pivot);
        }
    }
}

fn step(
    live: &LiveDisk,
    target: &Layer,
    dirty: &Followed,
    range: Range<u64>,
    fresh: bool,
    buffer: &mut Vec<u8>,
    control: &Control,
) -> Result<(), End> {
    let bytes = range.end - range.start;
    dirty.0.remove(range.clone());
    let top = live.top.read();
    copy_range(&*top.layer.disk, &*target.disk, range, buffer, fresh)?;
    drop(top);
    let done = control.advance(bytes);
    control.set_total(done + dirty.0.bytes());
    control.pace(bytes);
    Ok(())
}

/// Copies what is left while no request is under way.
fn finish(
    live: &LiveDisk,
    target: &Layer,
    dirty: &Followed,
    pivot: bool,
    control: &Control,
) -> Result<(), End> {
    let mut top = live.top.write();
    let mut buffer = Vec::new();
    while let Some(range) = dirty.0.next_from(0, STEP) {
        let bytes = range.end - range.start;
        dirty.0.remove(range.clone());
        copy_range(&*top.layer.disk, &*target.disk, range, &mut buffer, false)?;
        control.set_total(control.advance(bytes) + dirty.0.bytes());
    }
    target.disk.flush()?;
    if pivot {
        top.layer = target.clone();
    }
    Ok(())
}
