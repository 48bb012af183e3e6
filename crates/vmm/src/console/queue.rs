//! The guest's bytes on their way out.
//!
//! A vCPU never waits for whoever reads the console: it puts its bytes into this queue, and a writer thread takes
//! them out. When [`QUEUE_LEN`] bytes wait, the oldest of them go: what a person wants to see first after a stall is
//! the end. They are counted.

use machine::SerialBackend;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that wait at most.
pub const QUEUE_LEN: usize = 1 << 20;
/// Bytes written at a time.
const CHUNK: usize = 16 << 10;

#[derive(Default)]
struct Pending {
    bytes: VecDeque<u8>,
    lost: u64,
    /// A writer holds bytes.
    writing: bool,
    /// Nobody is there to write to.
    held: bool,
    /// Chunks that left.
    written: u64,
}

/// Bytes on their way out.
#[derive(Default)]
pub struct OutputQueue {
    pending: Mutex<Pending>,
    changed: Condvar,
}

impl SerialBackend for OutputQueue {
    fn write(&self, bytes: &[u8]) {
        let mut pending = self.pending.lock();
        let pending = &mut *pending;
        // Of one write, too, the end counts.
        let kept = bytes.get(bytes.len().saturating_sub(QUEUE_LEN)..).unwrap_or(bytes);
        let oldest = (pending.bytes.len() + kept.len()).saturating_sub(QUEUE_LEN).min(pending.bytes.len());
        pending.bytes.drain(..oldest);
        pending.lost += (oldest + bytes.len() - kept.len()) as u64;
        pending.bytes.extend(kept);
        self.changed.notify_all();
    }
}

impl OutputQueue {
    /// Holds the bytes back (`true`) while nobody is there to take them.
    pub fn hold(&self, held: bool) {
        self.pending.lock().held = held;
        self.changed.notify_all();
    }

    /// How many bytes were dropped.
    pub fn lost(&self) -> u64 {
        self.pending.lock().lost
    }

    /// Passes the bytes to `write` for ever, on a thread of its own.
    pub fn spawn_writer(
        self: &Arc<Self>,
        mut write: impl FnMut(&[u8]) + Send + 'static,
    ) -> std::io::Result<()> {
        let queue = Arc::clone(self);
        let serve = move || {
            let mut chunk = Vec::with_capacity(CHUNK);
            loop {
                queue.take(&mut chunk);
                write(&chunk);
            }
        };
        crate::thread::spawn("console-out", serve)
    }

    /// Waits for bytes.
    fn take(&self, chunk: &mut Vec<u8>) {
        let mut pending = self.pending.lock();
        pending.writing = false;
        pending.written += 1;
        self.changed.notify_all();
        while pending.bytes.is_empty() || pending.held {
            self.changed.wait(&mut pending);
        }
        pending.writing = true;
        let len = pending.bytes.len().min(CHUNK);
        chunk.clear();
        chunk.extend(pending.bytes.drain(..len));
    }

    /// Waits until everything has left, as long as `patience` suffices for each chunk.
    pub fn flush(&self, patience: Duration) {
        let mut pending = self.pending.lock();
        let mut written = pending.written;
        let mut end = Instant::now() + patience;
        while pending.writing || !pending.bytes.is_empty() {
            if pending.held && !pending.writing {
                return;
            }
            let late = self.changed.wait_until(&mut pending, end).timed_out();
            if pending.written != written {
                written = pending.written;
                end = Instant::now() + patience;
            } else if late {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn the_newest_bytes_stay() {
        let queue = Arc::new(OutputQueue::default());
        queue.hold(true);
        let all: Vec<u8> = (0..QUEUE_LEN + 5000).map(|at| (at % 251) as u8).collect();
        all.chunks(777).for_each(|chunk| queue.write(chunk));
        assert_eq!(queue.lost(), 5000);
        let (sender, receiver) = channel();
        queue.spawn_writer(move |bytes| drop(sender.send(bytes.to_vec()))).unwrap();
        queue.hold(false);
        queue.flush(Duration::from_secs(60));
        let got: Vec<u8> = receiver.try_iter().flatten().collect();
        assert!(got == all[5000..]);
    }

    #[test]
    fn one_write_beyond_the_bound_keeps_its_end() {
        let queue = OutputQueue::default();
        queue.write(b"before");
        queue.write(&vec![7; QUEUE_LEN + 10]);
        assert_eq!(queue.lost(), 16);
        assert_eq!(queue.pending.lock().bytes.len(), QUEUE_LEN);
    }

    #[test]
    fn nobody_waits_for_a_reader_that_never_comes() {
        let queue = Arc::new(OutputQueue::default());
        queue.hold(true);
        queue.write(b"unheard");
        queue.spawn_writer(|_| ()).unwrap();
        queue.flush(Duration::from_secs(3600));
    }
}
