//! New images.

use super::OPTIONS;
use super::descriptor::{Ddb, Descriptor};
use super::header::Header;
use super::image::{parent_cid, put_descriptor};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::image::ImageResult;
use crate::mapped::random;
use crate::options::{CreateOptions, Preallocation};
use crate::raw::RawFile;
use std::path::{Path, PathBuf};

/// Largest extent of a split image.
const SPLIT: u64 = 2 << 30;
/// Largest sparse extent: its sectors have numbers of 32 bits, and there are tables as well.
const SPARSE_MAX: u64 = (2 << 40) - (64 << 30);

struct Plan {
    create_type: &'static str,
    flat: bool,
    split: bool,
    compressed: bool,
    zeroed_grains: bool,
    mode: Preallocation,
    size: u64,
}

fn plan(options: &mut CreateOptions) -> ImageResult<Plan> {
    let subformat = options.take("subformat");
    let zeroed_grains = options.take_switch("zeroed_grain")?.unwrap_or(false);
    let mode =
        options.take("preallocation").map_or(Ok(Preallocation::Off), |name| Preallocation::named(&name))?;
    let (create_type, flat, split, compressed) = match subformat.as_deref() {
        None | Some("monolithicSparse") => ("monolithicSparse", false, false, false),
        Some("monolithicFlat") => ("monolithicFlat", true, false, false),
        Some("twoGbMaxExtentSparse") => ("twoGbMaxExtentSparse", false, true, false),
        Some("twoGbMaxExtentFlat") => ("twoGbMaxExtentFlat", true, true, false),
        Some("streamOptimized") => ("streamOptimized", false, false, true),
        Some(other) => {
            let problem = format!(
                "{other:?} is unknown; known: monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, \
                 twoGbMaxExtentFlat, streamOptimized"
            );
            return Err(BlockError::option("subformat", problem));
        }
    };
    if flat && zeroed_grains {
        return Err(BlockError::option("zeroed_grain", "flat images have no grains"));
    }
    if !flat && mode != Preallocation::Off {
        return Err(BlockError::option("preallocation", "only flat vmdk images have it"));
    }
    if flat && options.backing.is_some() {
        return Err(BlockError::option("subformat", "a flat image has no backing file"));
    }
    let size = options.size;
    if size == 0 || !size.is_multiple_of(512) || !flat && !split && size > SPARSE_MAX {
        let problem =
            format!("{size} is no multiple of 512 from 1 sector on, or too large for one sparse extent");
        return Err(BlockError::option("size", problem));
    }
    Ok(Plan { create_type, flat, split, compressed, zeroed_grains, mode, size })
}

fn choice(
    options: &mut CreateOptions,
    name: &str,
    known: &[&'static str],
) -> ImageResult<Option<&'static str>> {
    let Some(value) = options.take(name) else { return Ok(None) };
    let found = known.iter().copied().find(|&known| known == value);
    let wrong = || BlockError::option(name, format!("{value:?} is unknown; known: {}", known.join(", ")));
    found.map(Some).ok_or_else(wrong)
}

/// Makes an empty image.
pub(super) fn create(path: &Path, mut options: CreateOptions) -> ImageResult<()> {
    let plan = plan(&mut options)?;
    let adapter = choice(&mut options, "adapter_type", &["ide", "buslogic", "lsilogic", "legacyESX"])?;
    let hardware = options.take("hwversion").unwrap_or_else(|| "4".to_owned());
    options.finish("vmdk", OPTIONS)?;
    if hardware.is_empty() || hardware.len() > 4 || !hardware.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BlockError::option("hwversion", format!("{hardware:?} is no number")));
    }
    let ddb = Ddb { adapter: adapter.unwrap_or("ide"), hardware: &hardware, sectors: plan.size / 512 };
    let parent = match &options.backing {
        Some((name, format)) => Some((name.as_str(), parent_cid(path, name, format)?)),
        None => None,
    };
    let extents =
        if plan.split || plan.flat { extents(path, &plan)? } else { vec![(path.to_owned(), plan.size)] };
    let lines: ImageResult<Vec<String>> =
        extents.iter().map(|(file, size)| line(file, *size, plan.flat)).collect();
    let cid = u32::from_le_bytes(random()) & !1;
    let descriptor = Descriptor::new(plan.create_type, cid, parent, &lines?, &ddb);
    let failed = |source| BlockError::io(path, "writing the new image", source);
    for (file, size) in &extents {
        let storage = RawFile::create_storage(file, options.cache)?;
        let made = if plan.flat {
            storage.allocate(0, *size, plan.mode)
        } else {
            let inside = (!plan.split).then_some(&descriptor);
            make_sparse(&storage, &plan, *size, inside)
        };
        made.and_then(|()| storage.flush()).map_err(failed)?;
    }
    if plan.split || plan.flat {
        let storage = RawFile::create_storage(path, options.cache)?;
        storage
            .write_bytes(0, descriptor.text().as_bytes())
            .and_then(|()| storage.flush())
            .map_err(failed)?;
    }
    Ok(())
}

/// Files of the extents and their sizes.
fn extents(path: &Path, plan: &Plan) -> ImageResult<Vec<(PathBuf, u64)>> {
    let stem = path.file_stem().unwrap_or_default().to_str();
    let stem =
        stem.ok_or_else(|| BlockError::option("file name", "is no UTF-8, which the descriptor needs"))?;
    if stem.contains('"') {
        return Err(BlockError::option(
            "file name",
            "has a quotation mark, which the descriptor cannot have",
        ));
    }
    if !plan.split {
        return Ok(vec![(path.with_file_name(format!("{stem}-flat.vmdk")), plan.size)]);
    }
    let letter = if plan.flat { 'f' } else { 's' };
    let count = plan.size.div_ceil(SPLIT);
    let extent = |n| {
        let name = format!("{stem}-{letter}{:03}.vmdk", n + 1);
        (path.with_file_name(name), SPLIT.min(plan.size - n * SPLIT))
    };
    Ok((0..count).map(extent).collect())
}

fn line(file: &Path, size: u64, flat: bool) -> ImageResult<String> {
    let name = file.file_name().unwrap_or_default().to_str();
    let name =
        name.ok_or_else(|| BlockError::option("file name", "is no UTF-8, which the descriptor needs"))?;
    let sectors = size / 512;
    Ok(if flat {
        format!("RW {sectors} FLAT \"{name}\" 0")
    } else {
        format!("RW {sectors} SPARSE \"{name}\"")
    })
}

/// Writes an empty sparse extent, all its tables in front of the grains.
fn make_sparse(
    file: &dyn BlockBackend,
    plan: &Plan,
    size: u64,
    inside: Option<&Descriptor>,
) -> std::io::Result<()> {
    let header = Header::new(size / 512, inside.is_some(), plan.compressed, plan.zeroed_grains);
    file.resize(header.overhead * 512)?;
    for directory in [header.redundant, Some(header.directory)].into_iter().flatten() {
        let first = directory + header.directory_sectors();
        let entries = (0..header.tables()).map(|n| (first + n * header.table_sectors()) as u32);
        let bytes: Vec<u8> = entries.flat_map(u32::to_le_bytes).collect();
        file.write_bytes(directory * 512, &bytes)?;
    }
    if let Some(descriptor) = inside {
        put_descriptor(file, descriptor, &header)?;
    }
    file.write_bytes(0, &header.encode())
}
