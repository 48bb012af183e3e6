//! Many transfers with one system call: io_uring.
//!
//! A ring belongs to one batch at a time, and a batch ends when the kernel has answered for all of it: no buffer is
//! given back that the kernel still knows.

use crate::transfer::{Buffers, Transfer};
use io_uring::{IoUring, opcode, types};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Most transfers of one submission.
pub(super) const DEPTH: usize = 128;

/// The rings of a file: as many as there are batches at the same time.
pub(super) struct Rings {
    idle: Mutex<Vec<IoUring>>,
}

impl std::fmt::Debug for Rings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rings").finish_non_exhaustive()
    }
}

impl Rings {
    /// With one ring, to see whether the host gives any.
    pub fn new() -> Result<Self> {
        Ok(Rings { idle: Mutex::new(vec![new_ring()?]) })
    }

    /// Does what it can of a batch, at most [`DEPTH`]; the offsets and buffers fit the file. Returns which are left to be
    /// done one by one.
    pub fn run(&self, file: &File, batch: &mut [&mut Transfer<'_>]) -> Vec<usize> {
        let idle = self.idle.lock().pop();
        let Some(mut ring) = idle.or_else(|| new_ring().ok()) else {
            return (0..batch.len()).collect();
        };
        let mut left = Vec::new();
        for (number, transfer) in batch.iter_mut().enumerate() {
            let (fd, offset) = (types::Fd(file.as_raw_fd()), transfer.offset);
            let entry = match &mut transfer.buffers {
                // One place in memory needs no list of them, which the kernel would have to copy.
                Buffers::Read(buffers) => match &mut buffers[..] {
                    [one] if let Ok(len) = u32::try_from(one.len()) => {
                        opcode::Read::new(fd, one.as_mut_ptr(), len).offset(offset).build()
                    }
                    all => opcode::Readv::new(fd, all.as_mut_ptr().cast(), all.len() as u32)
                        .offset(offset)
                        .build(),
                },
                Buffers::Write(buffers) => match &buffers[..] {
                    [one] if let Ok(len) = u32::try_from(one.len()) => {
                        opcode::Write::new(fd, one.as_ptr(), len).offset(offset).build()
                    }
                    all => {
                        opcode::Writev::new(fd, all.as_ptr().cast(), all.len() as u32).offset(offset).build()
                    }
                },
            };
            // SAFETY: IoSlice and IoSliceMut have the layout of iovec; they and their bytes are borrowed by `batch`, and
            // this function does not return before the kernel has answered for every entry it took.
            let pushed = unsafe { ring.submission().push(&entry.user_data(number as u64)) };
            if pushed.is_err() {
                left.push(number);
            }
        }
        let unanswered = batch.len() - left.len();
        let fine = wait(&mut ring, unanswered, |number, code| {
            let Some(transfer) = batch.get_mut(number) else { return };
            match u64::try_from(code) {
                Ok(done) if done == transfer.bytes() => transfer.result = Ok(()),
                // Cut short: the system call for one of them knows how to go on.
                Ok(_) => left.push(number),
                Err(_) if is_worth_a_try(-code) => left.push(number),
                Err(_) => transfer.result = Err(Error::from_raw_os_error(-code)),
            }
        });
        match fine {
            Ok(()) => self.idle.lock().push(ring),
            // What the kernel did not take is still in this ring, which is not used again.
            Err(mut untaken) => left.append(&mut untaken),
        }
        left
    }
}

/// A ring. Whoever uses it waits in the kernel for all answers, so the kernel need not interrupt it for each of them; hosts
/// before Linux 5.19 do so.
fn new_ring() -> Result<IoUring> {
    IoUring::builder().setup_coop_taskrun().build(DEPTH as u32).or_else(|_| IoUring::new(DEPTH as u32))
}

/// Hands a ring's entries to the kernel and waits for all answers. An error says which entries it did not take.
fn wait(
    ring: &mut IoUring,
    count: usize,
    mut answer: impl FnMut(usize, i32),
) -> std::result::Result<(), Vec<usize>> {
    let mut answered = vec![false; count.max(DEPTH)];
    let mut left = count;
    let mut refused = false;
    while left > 0 {
        let untaken = ring.submission().len();
        if refused {
            if left <= untaken {
                let numbers = answered.iter().enumerate().take(count);
                return Err(numbers.filter(|(_, done)| !**done).map(|(number, _)| number).collect());
            }
            // The kernel answers for what it took, also when it does not let us wait.
            std::thread::sleep(Duration::from_micros(100));
        } else if let Err(error) = ring.submit_and_wait(left) {
            // Interrupted, or short of memory for a moment: what it took stays taken.
            let again = matches!(
                error.kind(),
                ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::ResourceBusy
            );
            refused = !again;
        }
        for entry in ring.completion() {
            let number = entry.user_data() as usize;
            if let Some(done) = answered.get_mut(number) {
                *done = true;
            }
            left = left.saturating_sub(1);
            answer(number, entry.result());
        }
    }
    Ok(())
}

/// Errors after which the transfer is done once more by itself.
fn is_worth_a_try(code: i32) -> bool {
    matches!(code, libc::EAGAIN | libc::EINTR | libc::EINVAL | libc::EOPNOTSUPP | libc::ECANCELED)
}
