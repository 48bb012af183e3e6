//! The disk: extents one behind the other.

use super::descriptor::Descriptor;
use super::header::Header;
use super::layout::SparseLayout;
use crate::backend::{BlockBackend, Capabilities, Extent, SECTOR_SIZE};
use crate::buffers::len;
use crate::error::BlockError;
use crate::image::{CheckReport, DiskImage, ImageInfo, ImageResult, Repair};
use crate::mapped::{Mapped, Slices, SlicesMut, put, random};
use parking_lot::{Mutex, RwLock};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How an extent is stored.
pub(super) enum Store {
    /// Bytes of a file from an offset on.
    Flat(Arc<dyn BlockBackend>, u64),
    /// Grains.
    Sparse(Box<Mapped<SparseLayout>>),
    /// Zeros.
    Zero,
}

/// A part of the disk.
pub(super) struct Part {
    /// First byte on the disk.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// How it is stored.
    pub store: Store,
}

/// Where the descriptor is.
pub(super) struct DescriptorPlace {
    /// Its file.
    pub file: Arc<dyn BlockBackend>,
    /// First byte.
    pub at: u64,
    /// Bytes there is room for; `None`: it is a file of its own.
    pub room: Option<u64>,
}

/// An opened disk.
pub(super) struct VmdkImage {
    pub path: PathBuf,
    pub parts: RwLock<Vec<Part>>,
    pub descriptor: Option<(Mutex<Descriptor>, DescriptorPlace)>,
    pub backing: Option<Arc<dyn DiskImage>>,
    pub read_only: bool,
    /// Set when the content has its new identity.
    pub written: AtomicBool,
}

impl VmdkImage {
    fn write_descriptor(&self, descriptor: &Descriptor, place: &DescriptorPlace) -> Result<()> {
        let mut bytes = descriptor.text().as_bytes().to_vec();
        match place.room {
            Some(room) if bytes.len() as u64 > room => {
                return Err(Error::new(ErrorKind::StorageFull, "the descriptor has no room for that"));
            }
            Some(room) => bytes.resize(room as usize, 0),
            None => {}
        }
        place.file.write_bytes(place.at, &bytes)?;
        if place.room.is_none() {
            place.file.resize(bytes.len() as u64)?;
        }
        place.file.flush()
    }

    /// Before the first write: images on top of this one shall notice.
    fn check_write(&self, offset: u64, len: u64) -> Result<u64> {
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        let end = self.check_range(offset, len)?;
        if !self.written.load(Ordering::Acquire)
            && let Some((descriptor, place)) = &self.descriptor
        {
            let mut descriptor = descriptor.lock();
            if !self.written.load(Ordering::Acquire) {
                let cid = u32::from_le_bytes(random()) & !1;
                descriptor.set("CID", Some(&format!("{cid:08x}")), "version");
                self.write_descriptor(&descriptor, place)?;
                self.written.store(true, Ordering::Release);
            }
        }
        Ok(end)
    }

    /// Calls `each` with every part of a range: the extent, where in the extent, how many bytes.
    fn each(&self, offset: u64, end: u64, mut each: impl FnMut(&Part, u64, u64) -> Result<()>) -> Result<()> {
        let parts = self.parts.read();
        let first = parts.partition_point(|part| part.start + part.len <= offset);
        let mut at = offset;
        for part in parts.iter().skip(first) {
            if at >= end {
                break;
            }
            let len = (end - at).min(part.start + part.len - at);
            each(part, at - part.start, len)?;
            at += len;
        }
        Ok(())
    }

    fn sparse<T>(&self, mut each: impl FnMut(&Mapped<SparseLayout>) -> T) -> Vec<T> {
        let parts = self.parts.read();
        let sparse = parts.iter().filter_map(|part| match &part.store {
            Store::Sparse(mapped) => Some(&**mapped),
            _ => None,
        });
        sparse.map(&mut each).collect()
    }
}

impl BlockBackend for VmdkImage {
    fn size(&self) -> u64 {
        self.parts.read().last().map_or(0, |part| part.start + part.len)
    }

    fn capabilities(&self) -> Capabilities {
        let discard = self.parts.read().iter().any(|part| match &part.store {
            Store::Flat(file, _) => file.capabilities().discard,
            Store::Sparse(mapped) => mapped.capabilities().discard,
            Store::Zero => false,
        });
        Capabilities {
            read_only: self.read_only,
            discard,
            zero_alignment: self.cluster_size(),
            growable: false,
        }
    }

    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = len(buffers);
        let end = self.check_range(offset, len)?;
        let mut slices = SlicesMut::new(buffers);
        self.each(offset, end, |part, at, len| {
            let mut buffers = slices.take(len);
            match &part.store {
                Store::Flat(file, start) => file.read_at(start + at, &mut buffers),
                Store::Sparse(mapped) => mapped.read_at(at, &mut buffers),
                Store::Zero => {
                    buffers.iter_mut().for_each(|buffer| buffer.fill(0));
                    Ok(())
                }
            }
        })
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let end = self.check_write(offset, len(buffers))?;
        let mut slices = Slices::new(buffers);
        self.each(offset, end, |part, at, len| {
            let slices = slices.take(len);
            let slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
            match &part.store {
                Store::Flat(file, start) => file.write_at(start + at, &slices),
                Store::Sparse(mapped) => mapped.write_at(at, &slices),
                Store::Zero => Err(ErrorKind::ReadOnlyFilesystem.into()),
            }
        })
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        for part in &*self.parts.read() {
            match &part.store {
                Store::Flat(file, _) if !file.is_read_only() => file.flush()?,
                Store::Sparse(mapped) => mapped.flush()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.check_write(offset, len)?;
        self.each(offset, end, |part, at, len| match &part.store {
            Store::Flat(file, start) => file.discard(start + at, len),
            Store::Sparse(mapped) => mapped.discard(at, len),
            Store::Zero => Ok(()),
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        let end = self.check_write(offset, len)?;
        self.each(offset, end, |part, at, len| match &part.store {
            Store::Flat(file, start) => file.write_zeroes(start + at, len, unmap),
            Store::Sparse(mapped) => mapped.write_zeroes(at, len, unmap),
            Store::Zero => Ok(()),
        })
    }

    fn resize(&self, size: u64) -> Result<()> {
        let old = self.size();
        if size == old {
            return Ok(());
        }
        if size < old || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::new(ErrorKind::InvalidInput, "a vmdk image can only grow, by whole sectors"));
        }
        self.check_write(0, 0)?;
        let mut parts = self.parts.write();
        let [part] = &mut parts[..] else {
            return Err(Error::new(ErrorKind::Unsupported, "a vmdk image of several extents cannot grow"));
        };
        match &part.store {
            Store::Flat(file, start) => {
                file.resize(start + size)?;
                file.flush()?;
            }
            Store::Sparse(mapped) => mapped.resize(size)?,
            Store::Zero => return Err(ErrorKind::Unsupported.into()),
        }
        if let Some((descriptor, place)) = &self.descriptor {
            let mut descriptor = descriptor.lock();
            descriptor.set_sectors(size / 512);
            self.write_descriptor(&descriptor, place)?;
        }
        part.len = size;
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        let end = self.check_range(offset, len)?;
        let mut first = None;
        self.each(offset, end, |part, at, len| {
            if first.is_none() {
                let extent = match &part.store {
                    Store::Flat(file, start) => {
                        let below = file.block_status(start + at, len)?;
                        Extent { offset: None, ..below }
                    }
                    Store::Sparse(mapped) => mapped.block_status(at, len)?,
                    Store::Zero => Extent::zero(at, len),
                };
                first = Some(Extent { start: offset, ..extent });
            }
            Ok(())
        })?;
        Ok(first.unwrap_or(Extent::hole(offset, 0)))
    }
}

impl DiskImage for VmdkImage {
    fn info(&self) -> ImageResult<ImageInfo> {
        let mut info = ImageInfo {
            filename: self.path.clone(),
            format: "vmdk".to_owned(),
            virtual_size: self.size(),
            actual_size: crate::raw::actual_size(&self.path).unwrap_or(0),
            cluster_size: self.sparse(|mapped| mapped.cluster_size()).first().copied(),
            ..ImageInfo::default()
        };
        self.sparse(|mapped| mapped.describe(&mut info));
        if let Some((descriptor, _)) = &self.descriptor {
            let descriptor = descriptor.lock();
            let specific = &mut info.format_specific;
            specific.insert("create-type".into(), descriptor.value("createType").unwrap_or_default().into());
            specific.insert("cid".into(), descriptor.cid().unwrap_or_default().into());
            if let Some(name) =
                descriptor.value("parentFileNameHint").filter(|_| descriptor.parent_cid().is_some())
            {
                specific.insert("parent-cid".into(), descriptor.parent_cid().into());
                info.backing_filename = Some(name.to_owned());
                info.backing_filename_format = Some("vmdk".to_owned());
            }
        }
        Ok(info)
    }

    fn check(&self, repair: Repair) -> ImageResult<CheckReport> {
        let mut all = CheckReport::default();
        for report in self.sparse(|mapped| mapped.check(repair)) {
            let report = report?;
            all.corruptions += report.corruptions;
            all.leaks += report.leaks;
            all.check_errors += report.check_errors;
            all.corruptions_fixed += report.corruptions_fixed;
            all.leaks_fixed += report.leaks_fixed;
            all.image_end_offset = report.image_end_offset;
            all.total_clusters += report.total_clusters;
            all.allocated_clusters += report.allocated_clusters;
            all.fragmented_clusters += report.fragmented_clusters;
            all.compressed_clusters += report.compressed_clusters;
            report.findings.into_iter().for_each(|text| all.find(|| text));
        }
        Ok(all)
    }

    fn write_compressed(&self, offset: u64, data: &[u8]) -> Result<()> {
        let end = self.check_write(offset, data.len() as u64)?;
        let mut rest = data;
        self.each(offset, end, |part, at, len| {
            let (bytes, more) = rest.split_at(rest.len().min(len as usize));
            rest = more;
            match &part.store {
                Store::Flat(file, start) => file.write_bytes(start + at, bytes),
                Store::Sparse(mapped) => mapped.write_bytes(at, bytes),
                Store::Zero => Err(ErrorKind::ReadOnlyFilesystem.into()),
            }
        })
    }

    fn cluster_size(&self) -> u64 {
        self.sparse(|mapped| mapped.cluster_size()).first().copied().unwrap_or(SECTOR_SIZE)
    }

    fn backing(&self) -> Option<Arc<dyn DiskImage>> {
        self.backing.clone()
    }

    fn set_backing(&self, backing: Option<(&str, &str)>) -> ImageResult<()> {
        let Some((descriptor, place)) = &self.descriptor else {
            return Err(BlockError::unsupported(&self.path, "a descriptor, to name a backing file"));
        };
        let parent = match backing {
            Some((name, format)) => Some((name, parent_cid(&self.path, name, format)?)),
            None => None,
        };
        let mut descriptor = descriptor.lock();
        let cid = parent.map_or(super::descriptor::NO_PARENT, |(_, cid)| cid);
        descriptor.set("parentCID", Some(&format!("{cid:08x}")), "CID");
        descriptor.set(
            "parentFileNameHint",
            parent.map(|(name, _)| format!("\"{name}\"")).as_deref(),
            "createType",
        );
        self.write_descriptor(&descriptor, place)
            .map_err(|source| BlockError::io(&self.path, "writing the descriptor", source))
    }

    fn make_empty(&self) -> ImageResult<()> {
        if self.parts.read().iter().any(|part| !matches!(part.store, Store::Sparse(_))) {
            return Err(BlockError::unsupported(
                &self.path,
                "to become empty, which only sparse extents can",
            ));
        }
        self.sparse(|mapped| mapped.make_empty()).into_iter().collect()
    }
}

/// The content identity of the image that shall be the parent.
pub(super) fn parent_cid(path: &Path, name: &str, format: &str) -> ImageResult<u32> {
    if format != "vmdk" {
        return Err(BlockError::unsupported(
            path,
            format!("a vmdk image as its backing file, not one of {format}"),
        ));
    }
    let options =
        crate::OpenOptions { backing: crate::BackingPolicy::Anywhere, ..crate::OpenOptions::reading() };
    let real = crate::format::referred_file(path, name, &options)?;
    let parent = crate::format::open(&real, "vmdk", &options)?;
    let cid = parent.info()?.format_specific.get("cid").and_then(serde_json::Value::as_u64);
    cid.and_then(|cid| u32::try_from(cid).ok())
        .ok_or_else(|| BlockError::unsupported(&real, "a descriptor with a CID, to be a backing file"))
}

/// The descriptor inside a sparse extent.
pub(super) fn embedded(
    file: &Arc<dyn BlockBackend>,
    path: &Path,
    header: &Header,
) -> ImageResult<Option<(Mutex<Descriptor>, DescriptorPlace)>> {
    if header.descriptor == 0 || header.descriptor_len == 0 {
        return Ok(None);
    }
    let (at, room) = (header.descriptor * 512, header.descriptor_len * 512);
    let mut bytes = vec![0; room as usize];
    file.read_bytes(at, &mut bytes)
        .map_err(|source| BlockError::io(path, "reading the descriptor", source))?;
    let descriptor = Descriptor::parse(path, at, &bytes)?;
    Ok(Some((Mutex::new(descriptor), DescriptorPlace { file: file.clone(), at, room: Some(room) })))
}

/// Puts a text into a descriptor's place of a new extent.
pub(super) fn put_descriptor(
    file: &dyn BlockBackend,
    descriptor: &Descriptor,
    header: &Header,
) -> Result<()> {
    let mut bytes = vec![0; (header.descriptor_len * 512) as usize];
    if descriptor.text().len() > bytes.len() {
        return Err(Error::new(ErrorKind::StorageFull, "the descriptor has no room for the parent's name"));
    }
    put(&mut bytes, 0, descriptor.text().as_bytes());
    file.write_bytes(header.descriptor * 512, &bytes)
}
