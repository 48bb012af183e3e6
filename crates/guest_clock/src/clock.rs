//! Clocks.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
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

/// The clock of a machine: runs with the host's monotonic clock, and can be stopped.
#[derive(Debug)]
pub struct MachineClock {
    /// What host time is counted from.
    epoch: Instant,
    /// The lowest bit tells whether the clock runs; the others are by how many nanoseconds it is ahead of the host then,
    /// and its time otherwise. One word, because processors read it all the time.
    state: AtomicI64,
}

impl MachineClock {
    /// A stopped clock at `now_ns`.
    pub fn new(now_ns: u64) -> Self {
        MachineClock { epoch: Instant::now(), state: AtomicI64::new((now_ns as i64) << 1) }
    }
    /// Starts it. Does nothing if it runs.
    pub fn start(&self) {
        self.change(|now, runs| if runs { None } else { Some((now, true)) });
    }
    /// Stops it. Does nothing if it stands.
    pub fn stop(&self) {
        self.change(|now, runs| if runs { Some((now, false)) } else { None });
    }
    /// Sets it, on restore.
    pub fn set(&self, now_ns: u64) {
        self.change(|_, runs| Some((now_ns as i64, runs)));
    }
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.state.load(Ordering::Acquire) & 1 != 0
    }

    fn host_ns(&self) -> i64 {
        self.epoch.elapsed().as_nanos() as i64
    }

    /// Time, and whether the clock runs.
    fn read(&self, state: i64) -> (i64, bool) {
        let runs = state & 1 != 0;
        let host = if runs { self.host_ns() } else { 0 };
        ((state >> 1).wrapping_add(host), runs)
    }

    /// Gives the clock another time, or starts or stops it, as `change` finds from the present ones.
    fn change(&self, change: impl Fn(i64, bool) -> Option<(i64, bool)>) {
        // Another thread's change is seen by the next try; that nothing is to be changed is no failure.
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            let (now, runs) = self.read(state);
            let (now, runs) = change(now, runs)?;
            let ahead = if runs { now.wrapping_sub(self.host_ns()) } else { now };
            Some(ahead << 1 | i64::from(runs))
        });
    }
}

impl Clock for MachineClock {
    fn now_ns(&self) -> u64 {
        self.read(self.state.load(Ordering::Acquire)).0 as u64
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_clock_stands_until_it_is_started() {
        let clock = MachineClock::new(5_000_000_000);
        assert!(!clock.is_running());
        assert_eq!([clock.now_ns(), clock.now_ns()], [5_000_000_000; 2]);
        clock.set(7);
        assert_eq!(clock.now_ns(), 7);
    }

    #[test]
    fn machine_clock_runs_with_the_host_and_loses_nothing() {
        let clock = MachineClock::new(1_000_000_000);
        let before = Instant::now();
        clock.start();
        clock.start();
        assert!(clock.is_running());
        let mut last = 1_000_000_000;
        for _ in 0..1000 {
            let now = clock.now_ns();
            assert!(now >= last, "{now} after {last}");
            last = now;
        }
        clock.stop();
        let most = 1_000_000_000 + before.elapsed().as_nanos() as u64;
        let stopped = clock.now_ns();
        assert!((last..=most).contains(&stopped), "{stopped} is not between {last} and {most}");
        clock.stop();
        assert_eq!(clock.now_ns(), stopped);
        clock.start();
        clock.set(3_000_000_000);
        assert!(clock.is_running() && clock.now_ns() >= 3_000_000_000);
    }
}
