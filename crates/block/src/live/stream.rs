//! Stream: the top image takes over what it shows of its backing chain, then needs it no more.

use super::job::{Control, End, STEP, guarded};
use super::{LiveDisk, Watcher};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::image::ImageResult;
use std::ops::Range;
use std::sync::Arc;

/// Changes need not be known, only be kept out of what is being copied.
struct Locked;

impl Watcher for Locked {
    fn before_change(&self, _disk: &dyn BlockBackend, _grains: Range<u64>) {}
    fn after_change(&self, _range: Range<u64>) {}
}

type Work = Box<dyn FnOnce(&Control) -> Result<(), End> + Send>;

pub(super) fn start(live: &Arc<LiveDisk>) -> ImageResult<Work> {
    let mut top = live.idle_top()?;
    let image = top.layer.image.clone();
    if image.backing().is_none() {
        return Err(BlockError::option("stream", "the disk has no backing image"));
    }
    if image.is_read_only() {
        return Err(BlockError::option("stream", "the disk is open for reading only"));
    }
    top.watcher = Some(Arc::new(Locked));
    let live = live.clone();
    Ok(Box::new(move |control| {
        let result = guarded(|| run(&live, control));
        let mut top = live.top.write();
        top.watcher = None;
        result?;
        top.layer.disk.flush()?;
        Ok(image.set_backing(None)?)
    }))
}

fn run(live: &LiveDisk, control: &Control) -> Result<(), End> {
    let size = live.size();
    let mut buffer = Vec::new();
    for start in (0..size).step_by(STEP as usize) {
        control.checkpoint()?;
        let range = start..size.min(start + STEP);
        let moved =
            live.with_grains(range.clone(), |layer| take_over(&*layer.disk, range.clone(), &mut buffer))?;
        control.advance(range.end - range.start);
        control.pace(moved);
    }
    Ok(())
}

/// Writes what a range shows of lower layers into the top; the range's grains are locked.
fn take_over(disk: &dyn BlockBackend, range: Range<u64>, buffer: &mut Vec<u8>) -> std::io::Result<u64> {
    let mut moved = 0;
    let mut at = range.start;
    while at < range.end {
        let extent = disk.block_status(at, range.end - at)?;
        let length = extent.length.clamp(1, range.end - at);
        // Zeros below are zeros without the chain, too.
        if extent.depth > 0 && extent.present && !extent.zero {
            buffer.resize(length as usize, 0);
            disk.read_bytes(at, buffer)?;
            disk.write_bytes(at, buffer)?;
            moved += length;
        }
        at += length;
    }
    Ok(moved)
}
