//! Clocks.

use parking_lot::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Guest time.
pub trait Clock: Send + Sync {
    /// Nanoseconds of guest time; stands still while the machine is paused.
    fn now_ns(&self) -> u64;
    /// Seconds and nanoseconds of wall time since 1970 UTC, for real-time clocks.
    fn wall_time(&self) -> (u64, u32);
}

/// Randomness.
pub trait Entropy: Send + Sync {
    /// Fills the buffer with random bytes.
    fn fill(&self, buffer: &mut [u8]);
}

/// The host's randomness.
#[derive(Debug, Default)]
pub struct HostEntropy;

impl Entropy for HostEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        // The system call cannot fail once the kernel's pool is seeded; zeros would still be legal bytes.
        if getrandom::fill(buffer).is_err() {
            buffer.fill(0);
        }
    }
}

#[derive(Debug)]
struct Run {
    /// Guest time when the clock was last started or stopped.
    base_ns: u64,
    /// When it was started; `None` while it stands still.
    since: Option<Instant>,
}

/// The clock of a machine: runs with the host's monotonic clock, and can be stopped.
#[derive(Debug)]
pub struct MachineClock {
    run: RwLock<Run>,
}

impl MachineClock {
    /// A stopped clock at `now_ns`.
    pub fn new(now_ns: u64) -> Self {
        MachineClock { run: RwLock::new(Run { base_ns: now_ns, since: None }) }
    }
    /// Starts it. Does nothing if it runs.
    pub fn start(&self) {
        self.run.write().since.get_or_insert_with(Instant::now);
    }
    /// Stops it. Does nothing if it stands.
    pub fn stop(&self) {
        let mut run = self.run.write();
        if let Some(since) = run.since.take() {
            run.base_ns += since.elapsed().as_nanos() as u64;
        }
    }
    /// Sets a stopped clock, on restore.
    pub fn set(&self, now_ns: u64) {
        self.run.write().base_ns = now_ns;
    }
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.run.read().since.is_some()
    }
}

impl Clock for MachineClock {
    fn now_ns(&self) -> u64 {
        let run = self.run.read();
        run.base_ns + run.since.map_or(0, |since| since.elapsed().as_nanos() as u64)
    }
    fn wall_time(&self) -> (u64, u32) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (now.as_secs(), now.subsec_nanos())
    }
}

/// A clock that tests move by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    now_ns: AtomicU64,
}

impl ManualClock {
    /// Moves it on.
    pub fn advance(&self, ns: u64) {
        self.now_ns.fetch_add(ns, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::SeqCst)
    }
    fn wall_time(&self) -> (u64, u32) {
        let now = self.now_ns();
        (now / 1_000_000_000, (now % 1_000_000_000) as u32)
    }
}
