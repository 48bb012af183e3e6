//! Guest time and randomness.
//!
//! Devices and engines never read the host's clock or its randomness: they ask the [`Clock`] and the
//! [`Entropy`] they were given. Pausing a machine stops its clock; a restored machine goes on at the time it
//! was saved; a replayed one sees the time it saw.

mod clock;
mod timer;

pub use clock::{Clock, Entropy, HostEntropy, MachineClock, ManualClock};
pub use timer::{TimerHandler, TimerId, TimerQueue};
