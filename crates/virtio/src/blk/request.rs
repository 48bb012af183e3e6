//! One request of a block device (virtio 5.2.6): header, data, status byte.
#![expect(unsafe_code, reason = "disk data goes directly between guest RAM and the file")]

use super::bits::{ID_LEN, RANGE_SECTORS_MAX, request, status};
use crate::queue::{Buffer, Chain, QueueError};
use block::{BlockBackend, SECTOR_SIZE};
use guest_memory::GuestMemory;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Result as IoResult};

const HEADER_LEN: usize = 16;
const RANGE_LEN: usize = 16;
const FLAG_UNMAP: u32 = 1;

/// Executes a request and writes its status. Returns how many bytes were written to guest RAM.
pub(super) fn execute(
    disk: &dyn BlockBackend,
    id: &[u8; ID_LEN],
    memory: &GuestMemory,
    mut chain: Chain,
) -> Result<u32, QueueError> {
    // A request without room for its status cannot be answered; it is given back as it is.
    let Some(status_address) = chain.take_last_writable() else { return Ok(0) };
    let mut header = [0; HEADER_LEN];
    let sound = chain.read(memory, &mut header)? == HEADER_LEN;
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
    let result = match word(0) {
        _ if !sound => Err(ErrorKind::InvalidInput.into()),
        request::READ => read(disk, memory, sector, &chain.writable),
        request::WRITE => write(disk, memory, sector, &chain.readable),
        request::FLUSH => disk.flush().map(|()| 0),
        request::GET_ID => Ok(chain.write(memory, id)? as u64),
        kind @ (request::DISCARD | request::WRITE_ZEROES) => range(disk, memory, kind, &mut chain)?,
        _ => Err(ErrorKind::Unsupported.into()),
    };
    let (code, written) = match result {
        Ok(written) => (status::OK, written),
        Err(error) if error.kind() == ErrorKind::Unsupported => (status::UNSUPPORTED, 0),
        Err(_) => (status::IO_ERROR, 0),
    };
    memory.write(status_address, &[code])?;
    Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}

fn byte_offset(sector: u64, len: u64) -> IoResult<u64> {
    let whole = len.is_multiple_of(SECTOR_SIZE);
    sector.checked_mul(SECTOR_SIZE).filter(|_| whole).ok_or_else(|| ErrorKind::InvalidInput.into())
}

fn host(memory: &GuestMemory, buffer: &Buffer) -> IoResult<(*mut u8, usize)> {
    let pointer = memory.host_range(buffer.address, buffer.len.into());
    Ok((pointer.map_err(|_| ErrorKind::InvalidInput)?, buffer.len as usize))
}

fn read(disk: &dyn BlockBackend, memory: &GuestMemory, sector: u64, buffers: &[Buffer]) -> IoResult<u64> {
    let len = total(buffers);
    let offset = byte_offset(sector, len)?;
    let slice = |buffer| {
        let (pointer, len) = host(memory, buffer)?;
        // SAFETY: the range is guest RAM and stays mapped; only the kernel writes through the slice. The guest
        // may access it too, as it may during any DMA.
        Ok(IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(pointer, len) }))
    };
    let mut slices = buffers.iter().map(slice).collect::<IoResult<Vec<_>>>()?;
    disk.read_at(offset, &mut slices)?;
    for buffer in buffers {
        memory.note_write(buffer.address, buffer.len.into());
    }
    Ok(len)
}

fn write(disk: &dyn BlockBackend, memory: &GuestMemory, sector: u64, buffers: &[Buffer]) -> IoResult<u64> {
    let offset = byte_offset(sector, total(buffers))?;
    let slice = |buffer| {
        let (pointer, len) = host(memory, buffer)?;
        // SAFETY: as in `read`; only the kernel reads through the slice.
        Ok(IoSlice::new(unsafe { std::slice::from_raw_parts(pointer, len) }))
    };
    let slices = buffers.iter().map(slice).collect::<IoResult<Vec<_>>>()?;
    disk.write_at(offset, &slices)?;
    Ok(0)
}

/// Discard and write zeroes: one range each, as the configuration says (virtio 5.2.6.2).
fn range(
    disk: &dyn BlockBackend,
    memory: &GuestMemory,
    kind: u32,
    chain: &mut Chain,
) -> Result<IoResult<u64>, QueueError> {
    let mut bytes = [0; RANGE_LEN];
    if total(&chain.readable) != RANGE_LEN as u64 || chain.read(memory, &mut bytes)? != RANGE_LEN {
        return Ok(Err(ErrorKind::InvalidInput.into()));
    }
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let (sectors, flags) = (word(8), word(12));
    if sectors > RANGE_SECTORS_MAX {
        return Ok(Err(ErrorKind::InvalidInput.into()));
    }
    let discard = kind == request::DISCARD;
    if flags & !FLAG_UNMAP != 0 || discard && flags != 0 {
        return Ok(Err(ErrorKind::Unsupported.into()));
    }
    let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
    let len = u64::from(sectors) * SECTOR_SIZE;
    let done = byte_offset(sector, len).and_then(|offset| match discard {
        true => disk.discard(offset, len),
        false => disk.write_zeroes(offset, len, flags & FLAG_UNMAP != 0),
    });
    Ok(done.map(|()| 0))
}
