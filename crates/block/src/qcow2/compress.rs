//! Compressed clusters (qcow2 specification, "Compressed Clusters Descriptor").

use super::Qcow2;
use super::bits::Entry;
use super::refcount::Refcounts;
use crate::backend::BlockBackend;
use crate::buffers::len;
use std::cell::RefCell;
use std::io::{Error, ErrorKind, IoSliceMut, Result};
use std::sync::Arc;

/// Window of deflate that every reader of qcow2 has.
const WINDOW_BITS: u8 = 12;
/// Decompressed clusters that are kept, altogether at most this many bytes.
const KEPT_BYTES: usize = 4 << 20;

/// The clusters that were decompressed last, by descriptor.
#[derive(Default)]
pub(super) struct Decompressed {
    clusters: Vec<(u64, Arc<Vec<u8>>)>,
}

impl Decompressed {
    fn get(&mut self, entry: u64) -> Option<Arc<Vec<u8>>> {
        let at = self.clusters.iter().position(|(kept, _)| *kept == entry)?;
        let found = self.clusters.remove(at);
        self.clusters.push(found.clone());
        Some(found.1)
    }

    fn put(&mut self, entry: u64, data: Arc<Vec<u8>>) {
        while self.clusters.len() >= (KEPT_BYTES / data.len()).max(1) {
            self.clusters.remove(0);
        }
        self.clusters.push((entry, data));
    }

    /// After clusters were freed: descriptors may mean something else.
    pub fn clear(&mut self) {
        self.clusters.clear();
    }
}

thread_local! {
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static DEFLATE: RefCell<Option<flate2::Compress>> = const { RefCell::new(None) };
}

impl Qcow2 {
    pub(super) fn read_compressed(&self, at: u64, entry: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let kept = self.decompressed.lock().get(entry);
        let data = match kept {
            Some(data) => data,
            None => {
                let data = Arc::new(self.decompress(at, entry)?);
                self.decompressed.lock().put(entry, data.clone());
                data
            }
        };
        let within = self.geometry.in_cluster(at) as usize;
        let mut from = &data[within..within + len(buffers) as usize];
        for buffer in buffers {
            let (now, rest) = from.split_at(buffer.len());
            buffer.copy_from_slice(now);
            from = rest;
        }
        Ok(())
    }

    fn decompress(&self, at: u64, entry: u64) -> Result<Vec<u8>> {
        let (offset, stored) = self.geometry.compressed(entry);
        if offset >= self.file.size() {
            let problem =
                format!("of guest offset {at:#x} points to {offset:#x}, beyond the end of the file");
            return Err(self.wrong(offset, "compressed cluster descriptor", problem));
        }
        // A hostile descriptor can name more than any compressed cluster has.
        let mut packed = vec![0; stored.min(2 * self.cluster() + 512) as usize];
        self.file.read_bytes(offset, &mut packed)?;
        let mut out = vec![0; self.cluster() as usize];
        let whole =
            if self.compression == 1 { unzstd(&packed, &mut out) } else { inflate(&packed, &mut out) };
        if !whole {
            let problem = format!("for guest offset {at:#x} cannot be decompressed");
            return Err(self.wrong(offset, "compressed cluster", problem));
        }
        Ok(out)
    }

    /// Writes one cluster compressed; as it is, when that would not be shorter.
    pub(super) fn store_compressed(&self, offset: u64, data: &[u8]) -> Result<()> {
        let cluster = self.cluster() as usize;
        let size = BlockBackend::size(self);
        let whole = data.len() == cluster || offset + data.len() as u64 == size && data.len() < cluster;
        if self.encrypted {
            return Err(Error::new(ErrorKind::Unsupported, "encrypted images hold no compressed clusters"));
        }
        if !offset.is_multiple_of(self.cluster()) || !whole || self.geometry.external {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "only whole clusters of the image's file can be compressed",
            ));
        }
        let mut padded = Vec::new();
        let data_of_cluster = if data.len() == cluster {
            data
        } else {
            padded.extend_from_slice(data);
            padded.resize(cluster, 0);
            &padded
        };
        let packed = if self.compression == 1 { zstd_of(data_of_cluster)? } else { deflate(data_of_cluster) };
        // Descriptors count sectors: what does not save one is not worth it.
        let Some(packed) = packed.filter(|packed| packed.len() + 512 <= cluster) else {
            return self.write(offset, &[std::io::IoSlice::new(data)]);
        };
        let guest = offset >> self.geometry.cluster_bits;
        let _flight = self.flights.start(guest..guest + 1);
        let host = {
            let mut meta = self.start_change()?;
            let mut end = meta.compressed_end;
            let place = place_compressed(
                &mut meta.refcounts,
                &mut end,
                packed.len() as u64,
                self.geometry.cluster_bits,
            );
            meta.compressed_end = end;
            self.finish_table_move(&mut meta)?;
            place?
        };
        let len = packed.len() as u64;
        self.file.write_bytes(host, &packed)?;
        let mut meta = self.start_change()?;
        let table = self.own_table(&mut meta, self.geometry.l1_index(offset))?;
        let index = self.geometry.l2_index(offset);
        let old = self.entry(&table, index)?;
        table.set(
            &self.geometry,
            index,
            Entry { word: self.geometry.compressed_entry(host, len), bitmap: 0 },
        );
        self.free_entry(&mut meta, old);
        Ok(())
    }
}

/// Finds a place for `len` bytes: behind what is in the last cluster of compressed data, if they fit there or the next
/// cluster is free as well; else in a new one. The refcounts of all clusters it touches are raised.
fn place_compressed(refcounts: &mut Refcounts, end: &mut u64, len: u64, bits: u32) -> Result<u64> {
    let cluster = 1 << bits;
    let used = *end % cluster;
    if used != 0 {
        let current = *end >> bits;
        if refcounts.get(current)? < refcounts.max() {
            let start = *end;
            if used + len <= cluster {
                refcounts.add(current..current + 1)?;
                *end = start + len;
                return Ok(start);
            }
            if refcounts.allocate_at(current + 1)? {
                refcounts.add(current..current + 1)?;
                *end = start + len;
                return Ok(start);
            }
        }
    }
    let start = refcounts.allocate(1)? << bits;
    *end = start + len;
    Ok(start)
}

fn inflate(packed: &[u8], out: &mut [u8]) -> bool {
    let mut stream = flate2::Decompress::new_with_window_bits(false, WINDOW_BITS);
    // Without the end of the stream it is whole as well, if it gave a whole cluster.
    let _ = stream.decompress(packed, out, flate2::FlushDecompress::Finish);
    stream.total_out() == out.len() as u64
}

fn deflate(data: &[u8]) -> Option<Vec<u8>> {
    DEFLATE.with_borrow_mut(|stream| {
        let stream = stream.get_or_insert_with(|| {
            flate2::Compress::new_with_window_bits(flate2::Compression::default(), false, WINDOW_BITS)
        });
        stream.reset();
        let mut out = vec![0; data.len()];
        let status = stream.compress(data, &mut out, flate2::FlushCompress::Finish).ok()?;
        let len = stream.total_out() as usize;
        out.truncate(len);
        (status == flate2::Status::StreamEnd).then_some(out)
    })
}

fn unzstd(packed: &[u8], out: &mut [u8]) -> bool {
    use std::io::Read;
    // The sectors may go on behind the frame, so that it is read as a stream.
    zstd::stream::read::Decoder::new(packed).and_then(|mut stream| stream.read_exact(out)).is_ok()
}

fn zstd_of(data: &[u8]) -> Result<Option<Vec<u8>>> {
    ZSTD.with_borrow_mut(|stream| {
        if stream.is_none() {
            *stream = Some(zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)?);
        }
        stream.as_mut().map(|stream| stream.compress(data)).transpose()
    })
}
