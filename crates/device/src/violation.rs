//! What guests do that no driver should.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts a device's guest violations and logs the 1st, 2nd, 4th, 8th… of them.
#[derive(Debug, Default)]
pub struct GuestViolations {
    count: AtomicU64,
}

impl GuestViolations {
    /// Counts one.
    pub fn report(&self, device: &str, what: std::fmt::Arguments<'_>) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!(device, count, "guest violation: {what}");
        }
    }
    /// How many so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
