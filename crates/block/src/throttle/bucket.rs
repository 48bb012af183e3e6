//! Rates, and the bucket that keeps one.
//!
//! A bucket is kept as the time at which it would be empty again (the generic cell rate algorithm of ITU-T I.371):
//! filling it is an addition, draining it is the clock. Times are picoseconds, so that a byte of a fast limit counts.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A point in time or a span, in picoseconds.
pub(super) type Picoseconds = u128;

const SECOND: Picoseconds = 1_000_000_000_000;
/// What an idle limit lets through at once, as time of its rate.
const SLACK: Picoseconds = SECOND / 10;

pub(super) fn picoseconds(span: Duration) -> Picoseconds {
    span.as_nanos() * 1000
}

/// Units a second. Both at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// In the long run.
    pub average: u64,
    /// While a burst lasts; more than `average`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// Limits of a disk or of a group of disks. What is `None` is not limited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Limits {
    /// Requests a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<Rate>,
    /// Reads a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops_rd: Option<Rate>,
    /// Writes, discards and requests for zeros a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops_wr: Option<Rate>,
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps: Option<Rate>,
    /// Bytes read a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps_rd: Option<Rate>,
    /// Bytes written a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps_wr: Option<Rate>,
    /// How long a burst lasts that begins after idleness, in seconds; at least 1.
    #[serde(default = "one_second")]
    pub burst: u64,
}

fn one_second() -> u64 {
    1
}

impl Default for Limits {
    fn default() -> Self {
        let iops = None;
        Limits {
            iops,
            iops_rd: None,
            iops_wr: None,
            bps: None,
            bps_rd: None,
            bps_wr: None,
            burst: one_second(),
        }
    }
}

impl Limits {
    /// Nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        let Limits { iops, iops_rd, iops_wr, bps, bps_rd, bps_wr, burst: _ } = self;
        [iops, iops_rd, iops_wr, bps, bps_rd, bps_wr].iter().all(|rate| rate.is_none())
    }

    /// What is wrong with them, if anything is.
    ///
    /// # Errors
    /// When a rate is 0, a burst is no faster than its average, or the length is 0 or more than a day.
    pub fn validate(&self) -> Result<(), String> {
        let Limits { iops, iops_rd, iops_wr, bps, bps_rd, bps_wr, burst } = self;
        for rate in [iops, iops_rd, iops_wr, bps, bps_rd, bps_wr].into_iter().flatten() {
            if rate.average == 0 {
                return Err("a limit is at least 1 a second; leave it out for none".to_owned());
            }
            if let Some(fast) = rate.burst.filter(|fast| *fast <= rate.average) {
                let average = rate.average;
                return Err(format!("the burst rate {fast} is not above the average {average}"));
            }
        }
        match burst {
            1..=86_400 => Ok(()),
            other => Err(format!("a burst lasts 1 to 86400 seconds, not {other}")),
        }
    }
}

/// A bucket: an amount a second that flows out, and a capacity.
#[derive(Clone, Debug)]
struct Bucket {
    rate: u64,
    /// Time to drain it when it is full.
    capacity: Picoseconds,
    /// When it is empty.
    empty_at: Picoseconds,
}

impl Bucket {
    fn cost(&self, units: u64) -> Picoseconds {
        Picoseconds::from(units) * SECOND / Picoseconds::from(self.rate)
    }

    /// How long until so much fits. What is larger than the bucket fits into an empty one.
    fn wait(&self, now: Picoseconds, units: u64) -> Picoseconds {
        let cost = self.cost(units);
        (self.empty_at.max(now) + cost).saturating_sub(now + self.capacity.max(cost))
    }

    fn fill(&mut self, now: Picoseconds, units: u64) {
        self.empty_at = self.empty_at.max(now) + self.cost(units);
    }
}

/// One limit: a bucket for the average and, with a burst, one for its rate.
#[derive(Clone, Debug)]
pub(super) struct Limiter(Vec<Bucket>);

impl Limiter {
    /// A sound rate (see [`Limits::validate`]), or none.
    pub fn new(rate: Option<Rate>, burst_seconds: u64) -> Self {
        let Some(Rate { average, burst }) = rate else { return Limiter(Vec::new()) };
        let bucket = |rate: u64, capacity| Bucket { rate: rate.max(1), capacity, empty_at: 0 };
        let Some(fast) = burst else { return Limiter(vec![bucket(average, SLACK)]) };
        // What comes in during the burst beyond what flows out.
        let surplus = Picoseconds::from(fast.saturating_sub(average)) * Picoseconds::from(burst_seconds);
        let capacity = surplus * SECOND / Picoseconds::from(average.max(1));
        Limiter(vec![bucket(average, capacity), bucket(fast, SLACK)])
    }

    /// How long until so many units may pass.
    pub fn wait(&self, now: Picoseconds, units: u64) -> Picoseconds {
        self.0.iter().map(|bucket| bucket.wait(now, units)).max().unwrap_or(0)
    }

    /// So many units pass.
    pub fn pass(&mut self, now: Picoseconds, units: u64) {
        self.0.iter_mut().for_each(|bucket| bucket.fill(now, units));
    }

    /// The share of the average that so many units take.
    pub fn share(&self, units: u64) -> Picoseconds {
        self.0.first().map_or(0, |average| average.cost(units))
    }

    /// Takes over how full another limit is, so that changing a rate forgives nothing.
    pub fn inherit(&mut self, other: &Limiter) {
        let empty_at = other.0.first().map_or(0, |average| average.empty_at);
        if let Some(average) = self.0.first_mut() {
            average.empty_at = empty_at;
        }
    }
}
