//! A progress bar on a terminal.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes done of a total. Nothing is printed where standard error is no terminal.
pub struct Progress {
    total: u64,
    done: AtomicU64,
    /// Milliseconds since `start` at which it was drawn last.
    drawn: AtomicU64,
    start: Instant,
    shown: bool,
}

const WIDTH: usize = 40;
const REDRAW: Duration = Duration::from_millis(100);

impl Progress {
    /// A bar that is shown if `wanted`.
    pub fn new(total: u64, wanted: bool) -> Self {
        let shown = wanted && std::io::stderr().is_terminal();
        Progress {
            total: total.max(1),
            done: AtomicU64::new(0),
            drawn: AtomicU64::new(0),
            start: Instant::now(),
            shown,
        }
    }

    /// More bytes are done.
    pub fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let now = self.start.elapsed();
        let last = self.drawn.load(Ordering::Relaxed);
        let due = now.as_millis() as u64 >= last + REDRAW.as_millis() as u64 || done >= self.total;
        if self.shown && due {
            self.drawn.store(now.as_millis() as u64, Ordering::Relaxed);
            let part = done.min(self.total) as f64 / self.total as f64;
            let full = (part * WIDTH as f64) as usize;
            let speed = done as f64 / now.as_secs_f64().max(0.001) / f64::from(1 << 20);
            let bar = "#".repeat(full) + &"-".repeat(WIDTH - full);
            eprint!("\r[{bar}] {:5.1} % {speed:8.0} MiB/s", part * 100.0);
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            eprintln!();
        }
    }
}
