//! The image's faces: back end and image.

use super::Qcow2;
use super::bits::{autoclear, incompatible};
use crate::backend::{BlockBackend, Capabilities, Extent};
use crate::buffers::len;
use crate::error::BlockError;
use crate::image::{Bitmaps, CheckReport, DiskImage, ImageInfo, ImageResult, Repair, Snapshots};
use crate::raw::actual_size;
use crate::transfer::Transfer;
use serde_json::{Map, Value, json};
use std::io::{IoSlice, IoSliceMut, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl BlockBackend for Qcow2 {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn capabilities(&self) -> Capabilities {
        let zero_alignment =
            if self.geometry.version >= 3 { self.geometry.sub_size() } else { self.cluster() };
        Capabilities { read_only: self.read_only, discard: true, zero_alignment, growable: false }
    }

    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check_range(offset, len(buffers))?;
        let _gate = self.gate.read();
        self.read(offset, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.change(offset, len(buffers), || self.write(offset, buffers))
    }

    fn batches(&self) -> bool {
        self.data.batches()
    }

    fn transfer(&self, batch: &mut [&mut Transfer<'_>]) {
        for transfer in self.transfer_in_place(batch) {
            transfer.run(self);
        }
    }

    fn flush(&self) -> Result<()> {
        self.flush_all()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.change(offset, len, || self.discard_range(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.change(offset, len, || self.zero_range(offset, len, unmap))
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.set_size(size).map_err(Into::into)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        let _gate = self.gate.read();
        let mut extent = self.status(offset, len)?;
        // Tables end where runs do not.
        while extent.length > 0 && extent.length < len {
            let at = offset + extent.length;
            let next = self.status(at, len - extent.length)?;
            if !extent.continues_with(&next) {
                break;
            }
            extent.length += next.length;
        }
        Ok(extent)
    }
}

impl Qcow2 {
    /// Makes a change of the disk's content, which bitmaps record.
    fn change(&self, offset: u64, len: u64, write: impl FnOnce() -> Result<()>) -> Result<()> {
        self.check_range(offset, len)?;
        if self.read_only || self.locked {
            return Err(std::io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if len == 0 {
            return Ok(());
        }
        {
            let _gate = self.gate.read();
            if self.broken.load(Ordering::Acquire) {
                drop(self.start_change()?);
            }
            if self.recording.load(Ordering::Acquire) {
                self.record(offset, len)?;
            }
            write()?;
        }
        self.relieve()
    }
}

impl DiskImage for Qcow2 {
    fn info(&self) -> ImageResult<ImageInfo> {
        let header = self.meta.lock().header.clone();
        let backing = header.backing.clone();
        let full =
            backing.as_ref().map(|name| self.path.parent().unwrap_or(std::path::Path::new("")).join(name));
        Ok(ImageInfo {
            filename: self.path.clone(),
            format: "qcow2".to_owned(),
            virtual_size: BlockBackend::size(self),
            actual_size: actual_size(&self.path).unwrap_or(self.data.size()),
            cluster_size: Some(self.cluster()),
            encrypted: header.crypt_method != 0,
            dirty_flag: header.has(incompatible::DIRTY),
            backing_filename: backing,
            full_backing_filename: full,
            backing_filename_format: header.backing_format.clone(),
            snapshots: Snapshots::list(self)?,
            format_specific: self.specific(&header)?,
        })
    }

    fn check(&self, repair: Repair) -> ImageResult<CheckReport> {
        if repair != Repair::Nothing && self.read_only {
            let problem = "the image is open for reading only".to_owned();
            return Err(BlockError::Option { what: "repair".to_owned(), problem });
        }
        let _gate = self.gate.write();
        self.check_and_repair(repair)
    }

    fn write_compressed(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.change(offset, data.len() as u64, || self.store_compressed(offset, data))
    }

    fn cluster_size(&self) -> u64 {
        self.cluster()
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        (self.geometry.version >= 3).then_some(self as &dyn Bitmaps)
    }

    fn backing(&self) -> Option<Arc<dyn DiskImage>> {
        self.backing.clone()
    }

    fn set_backing(&self, backing: Option<(&str, &str)>) -> ImageResult<()> {
        let _gate = self.gate.write();
        let mut meta = self.tell("changing the backing file", self.start_change())?;
        if backing.is_some() && self.geometry.external && self.raw_external {
            return Err(BlockError::unsupported(
                &self.path,
                "no raw external data file beside a backing file",
            ));
        }
        let mut header = meta.header.clone();
        header.backing = backing.map(|(name, _)| name.to_owned());
        header.backing_format = backing.map(|(_, format)| format.to_owned());
        header.encode(&self.path)?;
        self.tell("writing the header", self.write_header(&header))?;
        meta.header = header;
        Ok(())
    }

    fn make_empty(&self) -> ImageResult<()> {
        let _gate = self.gate.write();
        let end = BlockBackend::size(self);
        let span = 1 << self.geometry.l2_span_bits();
        for start in (0..end).step_by(span as usize) {
            self.tell("emptying the image", self.forget_range(start, (start + span).min(end)))?;
            self.tell("emptying the image", self.relieve_alone())?;
        }
        self.tell("emptying the image", self.flush_metadata(false))
    }
}

impl Qcow2 {
    /// What only qcow2 has, as `qemu-img info` says it.
    fn specific(&self, header: &super::Header) -> ImageResult<Map<String, Value>> {
        let mut data = Map::new();
        let mut put = |name: &str, value: Value| {
            data.insert(name.to_owned(), value);
        };
        put("compat", json!(if header.version == 2 { "0.10" } else { "1.1" }));
        put("compression-type", json!(if header.compression == 1 { "zstd" } else { "zlib" }));
        put("refcount-bits", json!(1 << header.refcount_order));
        if header.version >= 3 {
            put("lazy-refcounts", json!(header.lazy_refcounts()));
            put("corrupt", json!(header.has(incompatible::CORRUPT)));
            put("extended-l2", json!(header.extended_l2()));
        }
        if let Some(name) = &header.data_file {
            put("data-file", json!(name));
            put("data-file-raw", json!(header.autoclear & autoclear::RAW_DATA != 0));
        }
        if header.bitmaps.is_some() {
            put("bitmaps", json!(Bitmaps::list(self)?));
        }
        let mut specific = Map::new();
        specific.insert("type".to_owned(), json!("qcow2"));
        specific.insert("data".to_owned(), Value::Object(data));
        Ok(specific)
    }
}
