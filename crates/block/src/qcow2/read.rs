//! Reading.

use super::Qcow2;
use super::map::Run;
use crate::backend::{BlockBackend, Extent};
use crate::buffers::{len, part_mut};
use crate::transfer::Transfer;
use std::io::{Error, ErrorKind, IoSliceMut, Result};
use std::sync::atomic::Ordering;

impl Qcow2 {
    /// Reads a range of the disk.
    pub(super) fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = len(buffers);
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (run, bytes) = self.run(at, len - done)?;
            if done == 0 && bytes == len {
                self.read_run(at, run, buffers)?;
            } else {
                self.read_run(at, run, &mut part_mut(buffers, done, bytes))?;
            }
            done += bytes;
        }
        Ok(())
    }

    /// Reads what is stored in one way.
    fn read_run(&self, at: u64, run: Run, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        match run {
            Run::Zero => {
                buffers.iter_mut().for_each(|buffer| buffer.fill(0));
                Ok(())
            }
            Run::Unallocated => self.read_backing(at, buffers),
            Run::Data { host, .. } => {
                self.check_host(at, host)?;
                if self.locked {
                    return Err(Error::new(
                        ErrorKind::PermissionDenied,
                        "the image was opened without its passphrase",
                    ));
                }
                self.data.read_at(host, buffers)
            }
            Run::Compressed { entry } => self.read_compressed(at, entry, buffers),
        }
    }

    /// Does the transfers whose data lie in one piece of the file, all together; returns the others.
    pub(super) fn transfer_in_place<'b, 'a>(
        &self,
        batch: &'b mut [&mut Transfer<'a>],
    ) -> Vec<&'b mut Transfer<'a>> {
        let _gate = self.gate.read();
        let (mut here, mut others) = (Vec::new(), Vec::new());
        for transfer in batch {
            match self.place(transfer) {
                Some(host) => here.push((host, &mut **transfer)),
                None => others.push(&mut **transfer),
            }
        }
        let mut below: Vec<Transfer<'_>> =
            here.iter_mut().map(|(host, transfer)| transfer.moved(*host)).collect();
        self.data.transfer(&mut below.iter_mut().collect::<Vec<_>>());
        let results: Vec<Result<()>> = below.into_iter().map(|transfer| transfer.result).collect();
        for ((_, transfer), result) in here.into_iter().zip(results) {
            transfer.result = result;
        }
        others
    }

    /// Where in the file all of a transfer takes place, if it changes nothing but data.
    fn place(&self, transfer: &Transfer<'_>) -> Option<u64> {
        let (offset, len) = (transfer.offset, transfer.bytes());
        let refused = self.locked
            || self.broken.load(Ordering::Acquire)
            || transfer.is_write() && (self.read_only || self.recording.load(Ordering::Acquire));
        if refused || len == 0 || self.check_range(offset, len).is_err() {
            return None;
        }
        match self.run(offset, len) {
            Ok((Run::Data { host, owned }, bytes)) if bytes == len && (owned || !transfer.is_write()) => {
                self.check_host(offset, host).ok().map(|()| host)
            }
            _ => None,
        }
    }

    /// Data may be beyond the end of the file by less than a cluster only.
    fn check_host(&self, at: u64, host: u64) -> Result<()> {
        let end = self.data.size();
        if host >= end
            && host - host % self.cluster() >= end
            && !self.geometry.external
            && !self.is_fresh(host)
        {
            let problem = format!("of guest offset {at:#x} points to {host:#x}, beyond the end of the file");
            return Err(self.wrong(host, "L2 entry", problem));
        }
        Ok(())
    }

    /// Whether a host offset was allocated in this session, so that the file may not reach it yet.
    fn is_fresh(&self, host: u64) -> bool {
        self.meta.lock().refcounts.fresh << self.geometry.cluster_bits > host
    }

    /// Reads the backing file; zeros where there is none.
    pub(super) fn read_backing(&self, at: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = len(buffers);
        let there = self.backing.as_ref().map_or(0, |backing| backing.size().saturating_sub(at).min(len));
        if let Some(backing) = &self.backing
            && there > 0
        {
            backing.read_at(at, &mut part_mut(buffers, 0, there))?;
        }
        part_mut(buffers, there, len - there).iter_mut().for_each(|buffer| buffer.fill(0));
        Ok(())
    }

    /// How the first bytes of a range are stored, through the whole chain.
    pub(super) fn status(&self, offset: u64, len: u64) -> Result<Extent> {
        let (run, bytes) = self.run(offset, len)?;
        Ok(match run {
            Run::Zero => Extent::zero(offset, bytes),
            Run::Data { host, .. } => Extent::data(offset, bytes, (!self.encrypted).then_some(host)),
            Run::Compressed { .. } => Extent { compressed: true, ..Extent::data(offset, bytes, None) },
            Run::Unallocated => match &self.backing {
                None => Extent::hole(offset, bytes),
                Some(backing) if offset >= backing.size() => Extent::hole(offset, bytes),
                Some(backing) => {
                    let bytes = bytes.min(backing.size() - offset);
                    let below = backing.block_status(offset, bytes)?;
                    Extent { depth: below.depth + 1, ..below }
                }
            },
        })
    }

    /// Whether a range reads as zeros, as far as that is known without reading data.
    pub(super) fn is_zero(&self, offset: u64, len: u64) -> Result<bool> {
        let mut at = offset;
        while at < offset + len {
            let extent = self.status(at, offset + len - at)?;
            if !extent.zero {
                return Ok(false);
            }
            at += extent.length;
        }
        Ok(true)
    }
}
