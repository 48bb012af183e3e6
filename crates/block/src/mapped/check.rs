//! The check: every entry leads to space of its own inside the file.

use super::{Layout, Mapped, Place};
use crate::image::{CheckReport, ImageResult, Repair};
use std::io::Result;
use std::ops::Range;

/// Blocks whose space is compared at a time; 32 bytes for each of them.
const WINDOW: u64 = 1 << 19;

struct Check<'a, L: Layout> {
    image: &'a Mapped<L>,
    repair: bool,
    report: CheckReport,
    end: u64,
    last: Option<u64>,
    metadata: Vec<(Range<u64>, &'static str)>,
}

/// Checks all entries. No requests are under way.
pub(super) fn check<L: Layout>(image: &Mapped<L>, repair: Repair) -> ImageResult<CheckReport> {
    let failed = image.io("checking the table");
    if repair != Repair::Nothing {
        image.begin_writing().map_err(image.io("writing"))?;
    }
    image.commit().map_err(&failed)?;
    let report = CheckReport { total_clusters: image.blocks(), ..CheckReport::default() };
    let metadata = image.layout.metadata_ranges();
    let mut check = Check { image, repair: repair == Repair::All, report, end: 0, last: None, metadata };
    let mut next = 0;
    while let Some(block) = image.next_entry(next).map_err(&failed)? {
        check.entry(block).map_err(&failed)?;
        next = block + 1;
    }
    check.overlaps().map_err(&failed)?;
    let Check { mut report, end, .. } = check;
    image.commit().map_err(&failed)?;
    let allocated = report.allocated_clusters;
    image.layout.check_rest(&*image.file, &image.path, allocated, repair, &mut report)?;
    report.image_end_offset =
        end.max(image.layout.metadata_ranges().iter().map(|(r, _)| r.end).max().unwrap_or(0));
    let space = image.layout.end_of_data(&*image.file).saturating_sub(report.image_end_offset);
    let unit = image.layout.block_size() + image.layout.block_head();
    if space >= unit {
        let cut = repair != Repair::Nothing
            && image.layout.cut(&*image.file, report.image_end_offset).map_err(&failed)?;
        let counter = if cut { &mut report.leaks_fixed } else { &mut report.leaks };
        *counter += space / unit;
        let at = report.image_end_offset;
        report.find(|| format!("Offset {at:#x}: nothing leads to the {space} bytes from here on"));
    }
    Ok(report)
}

impl<L: Layout> Check<'_, L> {
    fn entry(&mut self, block: u64) -> Result<()> {
        let image = self.image;
        let place = match image.place(block) {
            Ok(place) => place,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return self.corrupt(block, crate::with_causes(&error));
            }
            Err(error) => return Err(error),
        };
        let Some(range) = self.space(place) else { return Ok(()) };
        if let Some((metadata, name)) =
            self.metadata.iter().find(|(m, _)| m.start < range.end && range.start < m.end)
        {
            let (start, at) = (range.start, metadata.start);
            return self
                .corrupt(block, format!("block {block} at {start:#x} overlaps the {name} at {at:#x}"));
        }
        self.report.allocated_clusters += 1;
        self.report.compressed_clusters += u64::from(matches!(place, Place::Compressed(_)));
        self.report.fragmented_clusters += u64::from(self.last.is_some_and(|end| end != range.start));
        self.last = Some(range.end);
        self.end = self.end.max(range.end);
        Ok(())
    }

    /// The file's bytes that belong to a block. Compressed blocks are as long as they are: only the begin counts.
    fn space(&self, place: Place) -> Option<Range<u64>> {
        let layout = &self.image.layout;
        match place {
            Place::Absent | Place::Zero => None,
            Place::Compressed(offset) => Some(offset..offset + 1),
            Place::Data(data) | Place::Partial { data, .. } => {
                Some(data.saturating_sub(layout.block_head())..data.saturating_add(layout.block_size()))
            }
        }
    }

    fn corrupt(&mut self, block: u64, text: String) -> Result<()> {
        let image = self.image;
        let at = image.layout.entry_offset(&*image.file, &image.pages, block)?;
        self.report.find(|| format!("Offset {at:#x}: {text}"));
        if self.repair {
            image.set(block, Place::Absent)?;
            self.report.corruptions_fixed += 1;
        } else {
            self.report.corruptions += 1;
        }
        Ok(())
    }

    /// Looks for blocks that share space, a window of the file at a time.
    fn overlaps(&mut self) -> Result<()> {
        let image = self.image;
        let window = WINDOW.saturating_mul(image.layout.block_size());
        let mut from = 0;
        while from < self.end {
            let to = from.saturating_add(window);
            let mut starts: Vec<(u64, u64)> = Vec::new();
            let mut next = 0;
            while let Some(block) = image.next_entry(next)? {
                next = block + 1;
                let Ok(place) = image.place(block) else { continue };
                if let Some(range) = self.space(place).filter(|range| range.start >= from && range.start < to)
                {
                    starts.push((range.start, block));
                }
                if starts.len() as u64 > 2 * WINDOW {
                    break;
                }
            }
            starts.sort_unstable();
            for pair in starts.windows(2) {
                let &[(start, block), (next, other)] = pair else { continue };
                let Ok(place) = image.place(block) else { continue };
                if self.space(place).is_some_and(|range| range.end > next) {
                    self.shared(other, next, block, start)?;
                }
            }
            from = to;
        }
        Ok(())
    }

    fn shared(&mut self, block: u64, at: u64, other: u64, other_at: u64) -> Result<()> {
        let image = self.image;
        let entry = image.layout.entry_offset(&*image.file, &image.pages, block)?;
        self.report.find(|| {
            format!("Offset {entry:#x}: block {block} at {at:#x} overlaps block {other} at {other_at:#x}")
        });
        if !self.repair {
            self.report.corruptions += 1;
            return Ok(());
        }
        let size = image.layout.block_size();
        // Which of the two owns the content is not known: both keep it.
        let (old, bytes, whole) = match image.place(block)? {
            place @ Place::Data(_) => (place, size, true),
            place @ Place::Partial { .. } => (place, size, false),
            _ => {
                self.report.corruptions += 1;
                return Ok(());
            }
        };
        let new = image.layout.allocate(&*image.file, &image.pages, block, whole)?;
        let (Some(from), Some(to)) = (self.space(old), self.space(new)) else { return Ok(()) };
        super::copy(&*image.file, from.start, to.start, bytes + image.layout.block_head())?;
        image.set(block, new)?;
        image.commit()?;
        image.pages.forget_clean();
        self.end = self.end.max(image.layout.end_of_data(&*image.file));
        self.report.corruptions_fixed += 1;
        Ok(())
    }
}
