//! A volume as a disk.

use super::record::{LayerId, Record, VolumeId};
use super::request::Content;
use super::state::Found;
use super::{Pool, refused};
use crate::backend::{BlockBackend, Capabilities, Extent};
use crate::buffers::{len, part, part_mut};
use parking_lot::RwLock;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// A volume of a pool, or one of its snapshots, which is read-only.
pub struct PoolVolume {
    pub(super) pool: Arc<Pool>,
    pub(super) volume: VolumeId,
    pub(super) snapshot: Option<LayerId>,
    pub(super) read_only: bool,
    pub(super) keep_discarded: bool,
    pub(super) gate: Arc<RwLock<()>>,
    /// It is in [`Pool::writers`].
    pub(super) is_writer: bool,
    /// For messages.
    pub(super) path: PathBuf,
}

/// A part of a request that lies in one chunk.
struct Piece {
    chunk: u32,
    /// Where it begins in the chunk, and in the request.
    at: u64,
    skip: u64,
    len: u64,
}

impl PoolVolume {
    /// The pool it is in.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn pieces(&self, offset: u64, len: u64) -> Result<impl Iterator<Item = Piece> + use<>> {
        let end = self.check_range(offset, len)?;
        let size = self.pool.chunk_size();
        let mut next = offset;
        Ok(std::iter::from_fn(move || {
            let at = next % size;
            let len = (end - next).min(size - at);
            let piece = Piece { chunk: (next / size) as u32, at, skip: next - offset, len };
            next += len;
            (len > 0).then_some(piece)
        }))
    }

    /// The layer that is read, and written to.
    fn layer(&self) -> Result<LayerId> {
        let inner = self.pool.inner.read();
        let gone = || Error::new(ErrorKind::NotFound, "The volume or snapshot was deleted");
        match self.snapshot {
            Some(layer) => {
                let named = inner.state.layers.get(&layer).is_some_and(|layer| layer.snapshot.is_some());
                named.then_some(layer).ok_or_else(gone)
            }
            None => inner.state.volumes.get(&self.volume).map(|volume| volume.top).ok_or_else(gone),
        }
    }

    fn writable(&self) -> Result<()> {
        if self.capabilities().read_only { Err(ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    /// Grows or shrinks, while nobody else uses the volume.
    fn resize_alone(&self, size: u64) -> Result<()> {
        let pool = &self.pool;
        let layer = self.layer()?;
        let old = self.size();
        let first = old.div_ceil(pool.chunk);
        pool.inner.read().state.check_size(size).map_err(refused)?;
        // What is behind the end in its chunk may be anything, and is now to be zeros.
        if size > old && !old.is_multiple_of(pool.chunk) {
            let at = old % pool.chunk;
            let content = Content::Zeros(pool.chunk - at);
            pool.write_piece(self.volume, layer, (old / pool.chunk) as u32, at, &content)?;
        }
        let settings = pool.settings(self.volume)?;
        let resized = Record::VolumeResized { volume: self.volume, size };
        pool.change_and_reserve(resized, &settings, layer, first..size.div_ceil(pool.chunk))?;
        pool.commit()
    }
}

impl BlockBackend for PoolVolume {
    fn size(&self) -> u64 {
        let inner = self.pool.inner.read();
        match self.snapshot {
            Some(layer) => {
                let snapshot = inner.state.layers.get(&layer).and_then(|layer| layer.snapshot.as_ref());
                snapshot.map_or(0, |snapshot| snapshot.size)
            }
            None => inner.state.volumes.get(&self.volume).map_or(0, |volume| volume.settings.size),
        }
    }

    fn capabilities(&self) -> Capabilities {
        let template =
            self.pool.inner.read().state.volumes.get(&self.volume).is_some_and(|volume| volume.template);
        let read_only = self.read_only || self.pool.read_only || self.snapshot.is_some() || template;
        Capabilities {
            read_only,
            discard: !self.keep_discarded,
            zero_alignment: self.pool.chunk,
            growable: false,
        }
    }

    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let _gate = self.gate.read();
        let pieces = self.pieces(offset, len(buffers))?;
        let layer = self.layer()?;
        for piece in pieces {
            let mut buffers = part_mut(buffers, piece.skip, piece.len);
            self.pool.read_piece(self.volume, layer, piece.chunk, piece.at, &mut buffers)?;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let _gate = self.gate.read();
        self.writable()?;
        let pieces = self.pieces(offset, len(buffers))?;
        let layer = self.layer()?;
        for piece in pieces {
            let buffers = part(buffers, piece.skip, piece.len);
            let content = Content::Bytes(&buffers);
            self.pool.write_piece(self.volume, layer, piece.chunk, piece.at, &content)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.pool.commit()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let _gate = self.gate.read();
        self.writable()?;
        let pieces = self.pieces(offset, len)?;
        if self.keep_discarded {
            return Ok(());
        }
        let layer = self.layer()?;
        let size = self.size();
        for piece in pieces {
            let start = u64::from(piece.chunk) * self.pool.chunk;
            let whole = piece.at == 0 && (piece.len == self.pool.chunk || start + piece.len == size);
            self.pool.discard_piece(self.volume, layer, piece.chunk, whole, piece.at, piece.len)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        let _gate = self.gate.read();
        self.writable()?;
        let pieces = self.pieces(offset, len)?;
        let layer = self.layer()?;
        let size = self.size();
        for piece in pieces {
            let start = u64::from(piece.chunk) * self.pool.chunk;
            if piece.at == 0 && (piece.len == self.pool.chunk || start + piece.len == size) {
                self.pool.clear_chunk(self.volume, layer, piece.chunk, !unmap)?;
            } else {
                let content = Content::Zeros(piece.len);
                self.pool.write_piece(self.volume, layer, piece.chunk, piece.at, &content)?;
            }
        }
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<()> {
        let _gate = self.gate.write();
        self.writable()?;
        self.resize_alone(size)
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        let _gate = self.gate.read();
        let end = self.check_range(offset, len)?;
        let layer = self.layer()?;
        let inner = self.pool.inner.read();
        let mut found: Option<Extent> = None;
        let mut at = offset;
        // A question about much is answered in part.
        for _ in 0..65_536 {
            let next = (at / self.pool.chunk + 1).saturating_mul(self.pool.chunk).min(end);
            let extent = match inner.state.find(layer, (at / self.pool.chunk) as u32) {
                Found::Own(_) | Found::Inherited(_) => Extent::data(at, next - at, None),
                Found::Reserved(_) => Extent::zero(at, next - at),
                Found::Zeros => Extent::hole(at, next - at),
            };
            match &mut found {
                None => found = Some(extent),
                Some(found) if found.continues_with(&extent) => found.length += extent.length,
                Some(_) => break,
            }
            at = next;
            if at >= end {
                break;
            }
        }
        Ok(found.unwrap_or_else(|| Extent::hole(offset, len)))
    }
}
