//! The timers as a function of guest time: nothing ticks. Comparators are checked for the span of the counter since
//! they were checked last, in one step however long it is.

use super::bits::*;
use super::state::{HpetState, TimerState};

/// One timer. Its runtime form is what is saved.
#[derive(Clone, Debug)]
struct Timer(TimerState);

impl Timer {
    fn new() -> Self {
        Timer(TimerState { configuration: 0, comparator: u64::MAX, period: 0 })
    }

    fn has(&self, bit: u64) -> bool {
        self.0.configuration & bit != 0
    }

    /// The bits that count.
    fn mask(&self) -> u64 {
        if self.has(TIMER_32_BIT) { u32::MAX.into() } else { u64::MAX }
    }

    /// Whether it is periodic and would wake the timer thread too often.
    fn is_short(&self) -> bool {
        let period = self.0.period & self.mask();
        self.has(TIMER_PERIODIC) && period != 0 && period < MIN_PERIOD_NS / TICK_NS
    }

    /// Ticks from a counter value until the comparator matches, at least 1, less one.
    fn distance(&self, counter: u64) -> u64 {
        self.0.comparator.wrapping_sub(counter).wrapping_sub(1) & self.mask()
    }

    /// Whether the comparator matched in a span; a periodic one moves beyond it.
    fn check(&mut self, from: u64, to: u64) -> bool {
        if to.wrapping_sub(from) <= self.distance(from) {
            return false;
        }
        let period = self.0.period & self.mask();
        if self.has(TIMER_PERIODIC) && period != 0 {
            let behind = to.wrapping_sub(self.0.comparator) & self.mask();
            let ahead = behind - behind % period;
            let next = self.0.comparator.wrapping_add(ahead).wrapping_add(period);
            self.0.comparator = next & self.mask();
        }
        true
    }

    fn write_configuration(&mut self, value: u64) {
        let route = value >> TIMER_ROUTE_SHIFT & 0x1f;
        let kept = self.0.configuration & TIMER_ROUTE;
        let route = if ROUTES & 1 << route != 0 { route << TIMER_ROUTE_SHIFT } else { kept };
        self.0.configuration = value & TIMER_WRITABLE & !TIMER_ROUTE | route;
        if self.has(TIMER_32_BIT) {
            self.0.comparator &= self.mask();
        }
    }

    /// `whole` tells that the upper half was written.
    fn write_comparator(&mut self, value: u64, whole: bool) {
        let value = value & self.mask();
        if !self.has(TIMER_PERIODIC) || self.has(TIMER_SET_VALUE) {
            self.0.comparator = value;
        }
        if self.has(TIMER_PERIODIC) {
            self.0.period = value;
        }
        if whole || self.has(TIMER_32_BIT) {
            self.0.configuration &= !TIMER_SET_VALUE;
        }
    }
}

/// The registers.
#[derive(Clone, Debug)]
pub struct Registers {
    configuration: u64,
    status: u64,
    base: u64,
    base_ns: u64,
    checked: u64,
    timers: [Timer; COUNT],
}

impl Registers {
    /// After reset: stopped at zero.
    pub fn new() -> Self {
        let timers = [Timer::new(), Timer::new(), Timer::new()];
        Registers { configuration: 0, status: 0, base: 0, base_ns: 0, checked: 0, timers }
    }

    /// Reads the 64-bit register at a multiple of 8.
    pub fn read(&self, register: u64, now: u64) -> u64 {
        match register {
            CAPABILITIES => CAPABILITIES_VALUE,
            CONFIGURATION => self.configuration,
            STATUS => self.status,
            COUNTER => self.counter(now),
            _ => match timer_of(register) {
                Some((index, TIMER_CONFIGURATION)) => self
                    .timers
                    .get(index)
                    .map_or(0, |timer| timer.0.configuration & !TIMER_SET_VALUE | TIMER_CAPABILITIES),
                Some((index, TIMER_COMPARATOR)) => {
                    self.timers.get(index).map_or(0, |timer| timer.0.comparator & timer.mask())
                }
                _ => 0,
            },
        }
    }

    /// Writes the bits of a mask of the 64-bit register at a multiple of 8. Time has been brought up to `now` by
    /// [`Registers::update`].
    pub fn write(&mut self, register: u64, value: u64, mask: u64, now: u64) {
        let merged = |old: u64| old & !mask | value & mask;
        match register {
            CONFIGURATION => {
                self.rebase(self.counter(now), now);
                self.configuration =
                    merged(self.configuration) & (CONFIGURATION_ENABLE | CONFIGURATION_LEGACY);
            }
            STATUS => self.status &= !(value & mask),
            COUNTER => {
                let counter = merged(self.counter(now));
                self.rebase(counter, now);
            }
            _ => {
                let Some((index, offset)) = timer_of(register) else { return };
                let Some(timer) = self.timers.get_mut(index) else { return };
                if offset == TIMER_CONFIGURATION {
                    timer.write_configuration(merged(timer.0.configuration));
                    if !timer.has(TIMER_LEVEL) {
                        self.status &= !(1 << index);
                    }
                } else if offset == TIMER_COMPARATOR {
                    let periodic = timer.has(TIMER_PERIODIC);
                    let old = if periodic { timer.0.period } else { timer.0.comparator };
                    timer.write_comparator(merged(old), mask >> 32 != 0);
                }
            }
        }
    }

    /// Checks the comparators up to `now`; answers the timers (one bit each) whose edge interrupts are due.
    pub fn update(&mut self, now: u64) -> u64 {
        let (from, to) = (self.checked, self.counter(now));
        self.checked = to;
        let mut edges = 0;
        if self.configuration & CONFIGURATION_ENABLE == 0 {
            return edges;
        }
        for (index, timer) in self.timers.iter_mut().enumerate() {
            if !timer.check(from, to) {
                continue;
            }
            if timer.has(TIMER_LEVEL) {
                self.status |= 1 << index;
            } else if timer.has(TIMER_INTERRUPT) {
                edges |= 1 << index;
            }
        }
        edges
    }

    /// Whether timers 0 and 1 replace the PIT and the RTC.
    pub fn legacy(&self) -> bool {
        let both = CONFIGURATION_ENABLE | CONFIGURATION_LEGACY;
        self.configuration & both == both
    }

    /// The global system interrupt of a timer.
    pub fn gsi(&self, index: usize) -> Option<u32> {
        let legacy = LEGACY_GSIS.get(index).filter(|_| self.configuration & CONFIGURATION_LEGACY != 0);
        let timer = self.timers.get(index)?;
        let route = (timer.0.configuration & TIMER_ROUTE) >> TIMER_ROUTE_SHIFT;
        legacy.copied().or((ROUTES & 1 << route != 0).then_some(route as u32))
    }

    /// Whether a timer holds its interrupt up.
    pub fn level(&self, index: usize) -> bool {
        let timer = self.timers.get(index);
        let enabled = timer.is_some_and(|timer| timer.has(TIMER_INTERRUPT) && timer.has(TIMER_LEVEL));
        enabled && self.configuration & CONFIGURATION_ENABLE != 0 && self.status & 1 << index != 0
    }

    /// When the next comparator with an interrupt matches. Time has been brought up to `now`.
    pub fn next_event(&self, now: u64) -> Option<u64> {
        if self.configuration & CONFIGURATION_ENABLE == 0 {
            return None;
        }
        let counter = self.counter(now);
        let enabled = |index: &usize| {
            let timer = self.timers.get(*index);
            timer.is_some_and(|timer| timer.has(TIMER_INTERRUPT)) && !self.level(*index)
        };
        let deadline = |index: usize| {
            let timer = self.timers.get(index)?;
            let ticks = u128::from(timer.distance(counter)) + 1 + u128::from(counter.wrapping_sub(self.base));
            let at = u128::from(self.base_ns) + ticks * u128::from(TICK_NS);
            let at = u64::try_from(at).unwrap_or(u64::MAX);
            let apart = if timer.is_short() { MIN_PERIOD_NS } else { 0 };
            Some(at.max(now.saturating_add(apart)))
        };
        (0..COUNT).filter(enabled).filter_map(deadline).min()
    }

    /// What is saved.
    pub fn save(&self) -> HpetState {
        let Registers { configuration, status, base, base_ns, checked, timers } = self;
        HpetState {
            configuration: *configuration,
            status: *status,
            base: *base,
            base_ns: *base_ns,
            checked: *checked,
            timers: timers.clone().map(|Timer(timer)| timer),
        }
    }

    /// Saved registers.
    pub fn restored(state: HpetState) -> Self {
        let HpetState { configuration, status, base, base_ns, checked, timers } = state;
        Registers {
            configuration: configuration & (CONFIGURATION_ENABLE | CONFIGURATION_LEGACY),
            status: status & ((1 << COUNT) - 1),
            base,
            base_ns,
            checked,
            timers: timers.map(|mut timer| {
                timer.configuration &= TIMER_WRITABLE;
                Timer(timer)
            }),
        }
    }

    fn counter(&self, now: u64) -> u64 {
        if self.configuration & CONFIGURATION_ENABLE == 0 {
            return self.base;
        }
        self.base.wrapping_add(now.saturating_sub(self.base_ns) / TICK_NS)
    }

    /// The counter goes on from a value.
    fn rebase(&mut self, counter: u64, now: u64) {
        (self.base, self.base_ns, self.checked) = (counter, now, counter);
    }
}

/// Timer and offset in it.
fn timer_of(register: u64) -> Option<(usize, u64)> {
    let offset = register.checked_sub(TIMERS)?;
    let index = usize::try_from(offset / TIMER_STRIDE).ok().filter(|&index| index < COUNT)?;
    Some((index, offset % TIMER_STRIDE))
}
