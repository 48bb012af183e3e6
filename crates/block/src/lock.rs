//! Image locks, the same byte ranges that QEMU uses, so that each refuses an image the other has open.
//!
//! A user of an image holds a shared lock on byte `100 + n` for each permission `n` it has, and on byte `200 + n`
//! for each permission it does not share. Before that it looks whether anybody holds the byte that forbids
//! its own permissions. Permissions: 0 consistent read, 1 write, 2 write unchanged, 3 resize.
#![expect(unsafe_code, reason = "open-file-description locks are a fcntl")]

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

const HELD: i64 = 100;
const NOT_SHARED: i64 = 200;
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Takes the locks of a reader, or of the only writer. `Ok(false)` means that somebody else holds one.
pub(crate) fn acquire(file: &File, writer: bool) -> Result<bool> {
    let (held, not_shared): (&[i64], &[i64]) =
        if writer { (&[READ, WRITE, RESIZE], &[WRITE, RESIZE]) } else { (&[READ], &[WRITE, RESIZE]) };
    let held = held.iter().map(|permission| HELD + permission);
    let bytes = held.chain(not_shared.iter().map(|permission| NOT_SHARED + permission));
    for byte in bytes {
        if !lock(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte)? {
            return Ok(false);
        }
    }
    // Nobody else may have what we do not share, nor refuse to share what we have.
    let mut conflicts = vec![HELD + WRITE, HELD + RESIZE, NOT_SHARED + READ];
    if writer {
        conflicts.extend([NOT_SHARED + WRITE, NOT_SHARED + RESIZE]);
    }
    for byte in conflicts {
        if is_locked(file, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn description(kind: i32, byte: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: byte, l_len: 1, l_pid: 0 }
}

fn lock(file: &File, command: i32, kind: i32, byte: i64) -> Result<bool> {
    let wanted = description(kind, byte);
    // SAFETY: a valid descriptor and a valid structure.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const wanted) } == 0 {
        return Ok(true);
    }
    let error = Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Whether another open file holds any lock on a byte (our own do not count).
fn is_locked(file: &File, byte: i64) -> Result<bool> {
    let mut asked = description(libc::F_WRLCK, byte);
    // SAFETY: as in `lock`; the kernel writes its answer into the structure.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut asked) } != 0 {
        return Err(Error::last_os_error());
    }
    Ok(i32::from(asked.l_type) != libc::F_UNLCK)
}
