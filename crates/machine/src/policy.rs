//! When a KVM is left, and for how long.
//!
//! A failure costs an excursion: the processor's state goes to the software CPU and back. One now and then does
//! not matter; a KVM that emulates the guest's kernel may fail every few hundred instructions, and then the
//! excursions take longer than what KVM does between them. Both are measured, with the recent past weighing
//! most; when the excursions take the greater part, the whole machine moves to the software engine.
//!
//! An emulated kernel may also run for minutes without any failure, at a hundredth of the software CPU's speed. So
//! on a KVM that emulates kernels the processors are looked at every few milliseconds, and when they are
//! mostly found in ring 0, the machine moves, too.
//!
//! It stays there for a while that doubles each time KVM turned out no better, and is halved when KVM did well for
//! longer than that. A KVM that shows programs another processor than was asked for is not returned to at all:
//! what a program found out about the processor would not hold after the move.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;

/// Excursions to look at before anything is concluded.
const SAMPLE: u32 = 16;
/// Share of a former sum that counts when an excursion is added: the past fades over about this many.
const FADE: f64 = 1.0 - 1.0 / SAMPLE as f64;
/// Bounds of a stay on the software engine.
const STAY_MIN: Duration = Duration::from_secs(1);
const STAY_MAX: Duration = Duration::from_secs(256);
/// How often processors are looked at on a KVM that emulates kernels.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(5);
/// By how many times more a processor must have been found in the kernel than in programs.
const KERNEL_LEAD: u32 = 6;

/// What is known about one processor's excursions.
#[derive(Debug, Default)]
pub(crate) struct Record {
    count: u32,
    engine: f64,
    excursions: f64,
    kernel_lead: u32,
}

impl Record {
    /// Notes an excursion of length `excursion` after the engine ran for `engine`. Whether the engine is not worth
    /// its excursions.
    pub(crate) fn note(&mut self, engine: Duration, excursion: Duration) -> bool {
        self.count = self.count.saturating_add(1);
        self.engine = self.engine * FADE + engine.as_secs_f64();
        self.excursions = self.excursions * FADE + excursion.as_secs_f64();
        self.count >= SAMPLE && self.excursions > self.engine
    }

    /// Notes that a look found the processor in the kernel or in a program. Whether the kernel prevails.
    pub(crate) fn look(&mut self, in_kernel: bool) -> bool {
        let lead = if in_kernel { self.kernel_lead + 1 } else { self.kernel_lead.saturating_sub(1) };
        self.kernel_lead = lead.min(KERNEL_LEAD);
        lead >= KERNEL_LEAD
    }
}

/// What all processors of a machine share: counts by cause.
#[derive(Debug, Default)]
pub(crate) struct Causes(Mutex<BTreeMap<String, u64>>);

impl Causes {
    /// Counts a failure. Guests choose what fails, so the list is bounded.
    pub(crate) fn note(&self, cause: &str) {
        let mut causes = self.0.lock();
        let room = causes.len() < 32;
        let name = if room || causes.contains_key(cause) { cause } else { "others" };
        *causes.entry(name.to_owned()).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.0.lock().clone()
    }
}

/// How long the machine stays on the software engine.
#[derive(Debug)]
pub(crate) struct Stays {
    next: Duration,
    returns: bool,
}

impl Stays {
    /// `returns` says whether there is a way back to KVM.
    pub(crate) fn new(returns: bool) -> Self {
        Stays { next: STAY_MIN, returns }
    }

    /// The machine leaves KVM after `on_kvm`: how long for; `None` for good.
    pub(crate) fn leave(&mut self, on_kvm: Duration) -> Option<Duration> {
        if !self.returns {
            return None;
        }
        let stay = self.next;
        self.next = if on_kvm > stay { stay / 2 } else { stay * 2 };
        self.next = self.next.clamp(STAY_MIN, STAY_MAX);
        Some(stay)
    }

    /// KVM refused the machine on its return.
    pub(crate) fn give_up(&mut self) {
        self.returns = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn rare_failures_are_carried_for_ever() {
        let mut record = Record::default();
        assert!((0..10_000).all(|_| !record.note(50 * MS, 2 * MS)));
    }

    #[test]
    fn clustered_failures_are_not_but_a_handful_is() {
        let mut record = Record::default();
        let tolerated = (0..).take_while(|_| !record.note(MS / 10, MS)).count() as u32;
        assert_eq!(tolerated + 1, SAMPLE);
    }

    #[test]
    fn a_long_good_time_does_not_hide_a_cluster_for_long() {
        let mut record = Record::default();
        record.note(3600 * 1000 * MS, MS);
        let until = (0..1000).take_while(|_| !record.note(MS / 10, MS)).count();
        assert!((SAMPLE as usize..400).contains(&until), "{until}");
    }

    #[test]
    fn a_kernel_at_work_is_told_from_programs_that_call_it() {
        let mut record = Record::default();
        assert!((0..1000).all(|look| !record.look(look % 2 == 0)));
        let looks = (1..).find(|_| record.look(true));
        assert!(looks.is_some_and(|looks| looks <= KERNEL_LEAD));
    }

    #[test]
    fn stays_double_while_kvm_is_no_better_and_shrink_when_it_is() {
        let mut stays = Stays::new(true);
        let short: Vec<u64> = (0..10).map(|_| stays.leave(MS).unwrap().as_secs()).collect();
        assert_eq!(short, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]);
        assert_eq!(stays.leave(STAY_MAX * 2), Some(STAY_MAX));
        assert_eq!(stays.leave(MS), Some(STAY_MAX / 2));
        assert_eq!(Stays::new(false).leave(MS), None);
    }
}
