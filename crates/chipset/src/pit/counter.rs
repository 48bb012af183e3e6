//! One counter of the 8254 as a function of time: nothing ticks, everything is worked out from when it began.
//!
//! A new count in modes 2 and 3 takes effect at the end of the running period.

use super::bits::*;
use super::state::CounterState;

/// A counter. What it remembers is what is saved; times are ticks.
#[derive(Clone, Debug)]
pub struct Counter(pub(super) CounterState);

impl Counter {
    pub fn new() -> Self {
        Counter(CounterState {
            mode: 0,
            bcd: false,
            access: 3,
            reload: 0x1_0000,
            next: None,
            loaded: false,
            started: false,
            start: 0,
            frozen: None,
            gate: true,
            low_written: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            edges_seen: 0,
            missed_edge: false,
        })
    }

    /// A saved counter whose fields are within their ranges.
    pub fn restored(mut state: CounterState) -> Self {
        state.mode = state.mode.min(5);
        state.access = if state.access & 3 == 0 { 3 } else { state.access & 3 };
        state.reload = state.reload.clamp(1, 0x1_0000);
        state.next = state.next.map(|next| next.clamp(1, 0x1_0000));
        let mut counter = Counter(state);
        counter.clamp_reload();
        counter
    }

    /// A control word: mode, format and access.
    pub fn program(&mut self, control: u8) {
        let mode = control >> 1 & 7;
        let gate = self.0.gate;
        *self = Counter::new();
        self.0.gate = gate;
        self.0.access = control >> 4 & 3;
        // Modes 6 and 7 are 2 and 3 with a bit that does not matter.
        self.0.mode = if mode > 5 { mode & 3 } else { mode };
        self.0.bcd = control & 1 != 0;
    }

    /// Latches the count, unless a latched one waits.
    pub fn latch_count(&mut self, now: u64) {
        self.settle(now);
        let count = self.count(now);
        self.0.latched_count.get_or_insert(count);
    }

    /// Latches the status, unless a latched one waits.
    pub fn latch_status(&mut self, now: u64) {
        self.settle(now);
        let CounterState { mode, bcd, access, next, loaded, .. } = self.0;
        let out = if self.output(now) { STATUS_OUT } else { 0 };
        let null = if next.is_some() || !loaded || self.is_loading(now) { STATUS_NULL_COUNT } else { 0 };
        self.0.latched_status.get_or_insert(out | null | access << 4 | mode << 1 | u8::from(bcd));
    }

    pub fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.0.latched_status.take() {
            return status;
        }
        self.settle(now);
        let [low, high] = self.0.latched_count.unwrap_or_else(|| self.count(now)).to_le_bytes();
        let (byte, last) = match self.0.access {
            ACCESS_LOW => (low, true),
            ACCESS_HIGH => (high, true),
            _ => (if self.0.read_high { high } else { low }, self.0.read_high),
        };
        self.0.read_high = !last;
        if last {
            self.0.latched_count = None;
        }
        byte
    }

    pub fn write(&mut self, value: u8, now: u64) {
        self.settle(now);
        match (self.0.access, self.0.low_written) {
            (ACCESS_LOW, _) => self.load(u16::from(value), now),
            (ACCESS_HIGH, _) => self.load(u16::from(value) << 8, now),
            (_, None) => {
                self.0.low_written = Some(value);
                // The first byte stops the count in mode 0.
                self.0.started &= self.0.mode != 0;
            }
            (_, Some(low)) => {
                self.0.low_written = None;
                self.load(u16::from_le_bytes([low, value]), now);
            }
        }
    }

    fn load(&mut self, value: u16, now: u64) {
        let count = if self.0.bcd { from_bcd(value) } else { u32::from(value) };
        let count = if count == 0 { self.modulus() } else { count };
        let first = !self.0.loaded;
        self.0.loaded = true;
        match self.0.mode {
            // Runs on with the old count until the period ends, or the next trigger.
            1 | 5 if self.0.started => self.0.next = Some(count),
            2 | 3 if self.0.started && !first => self.0.next = Some(count),
            1 | 5 => self.0.reload = count,
            _ => {
                self.0.reload = count;
                self.begin(now);
                self.0.frozen = (!self.0.gate).then_some(0);
            }
        }
        self.clamp_reload();
    }

    /// A period of 1 is not allowed in modes 2 and 3.
    fn clamp_reload(&mut self) {
        if matches!(self.0.mode, 2 | 3) {
            self.0.reload = self.0.reload.max(2);
        }
    }

    /// Takes the count over with the next tick (data sheet, "Operation Common to All Modes").
    fn begin(&mut self, now: u64) {
        self.0.started = true;
        self.0.start = now.saturating_add(1);
        self.0.frozen = None;
        self.0.edges_seen = 0;
    }

    pub fn set_gate(&mut self, gate: bool, now: u64) {
        self.settle(now);
        let (rises, falls) = (gate && !self.0.gate, !gate && self.0.gate);
        let elapsed = self.elapsed(now);
        self.0.gate = gate;
        match self.0.mode {
            1 | 5 if rises && self.0.loaded => {
                self.0.reload = self.0.next.take().unwrap_or(self.0.reload);
                self.begin(now);
            }
            2 | 3 if rises && self.0.started => {
                self.0.reload = self.0.next.take().unwrap_or(self.0.reload);
                self.clamp_reload();
                self.begin(now);
            }
            0 | 4 if rises && self.0.frozen.is_some() => {
                self.0.frozen = None;
                self.0.start = now.wrapping_sub(elapsed);
            }
            0 | 2 | 3 | 4 if falls && self.0.started => self.0.frozen = Some(elapsed),
            _ => {}
        }
    }

    /// The output pin.
    pub fn output(&self, now: u64) -> bool {
        let CounterState { mode, started, gate, .. } = self.0;
        let (elapsed, reload) = (self.elapsed(now), u64::from(self.0.reload));
        match mode {
            0 => started && elapsed >= reload,
            // Falls with the tick that takes the count over.
            1 => !started || elapsed >= reload || self.is_loading(now),
            2 => !started || !gate || elapsed % reload != reload - 1,
            3 => !started || !gate || elapsed % reload < reload.div_ceil(2),
            _ => !started || elapsed != reload,
        }
    }

    /// Whether the output rose since this was last asked.
    pub fn take_edge(&mut self, now: u64) -> bool {
        self.settle(now);
        let (elapsed, reload) = (self.elapsed(now), u64::from(self.0.reload));
        let edges = match self.0.mode {
            _ if !self.0.started => 0,
            0 | 1 => u64::from(elapsed >= reload),
            2 | 3 => elapsed / reload,
            _ => u64::from(elapsed > reload),
        };
        let rose = std::mem::take(&mut self.0.missed_edge) || edges > self.0.edges_seen;
        self.0.edges_seen = edges;
        rose
    }

    /// When the output rises next.
    pub fn next_edge(&self, now: u64) -> Option<u64> {
        let (elapsed, reload) = (self.elapsed(now), u64::from(self.0.reload));
        let target = match self.0.mode {
            _ if !self.0.started || self.0.frozen.is_some() => return None,
            0 | 1 => reload,
            2 | 3 => elapsed.saturating_sub(elapsed % reload).saturating_add(reload),
            _ => reload + 1,
        };
        (target > elapsed).then(|| self.0.start.saturating_add(target))
    }

    pub fn is_periodic(&self) -> bool {
        matches!(self.0.mode, 2 | 3)
    }

    /// Puts a count in force that was written before the end of the last period.
    fn settle(&mut self, now: u64) {
        let reload = u64::from(self.0.reload);
        if self.is_periodic()
            && self.elapsed(now) >= reload
            && self.0.frozen.is_none()
            && let Some(next) = self.0.next.take()
        {
            // The new count begins where the first period after its writing ended. That end is an edge; it counts
            // as the new start's zeroth, so remember whether somebody saw it.
            let periods = self.elapsed(now) / reload;
            self.0.start = self.0.start.saturating_add(periods * reload);
            self.0.missed_edge |= self.0.edges_seen < periods;
            self.0.edges_seen = 0;
            self.0.reload = next;
            self.clamp_reload();
        }
    }

    fn elapsed(&self, now: u64) -> u64 {
        self.0.frozen.unwrap_or(now.saturating_sub(self.0.start))
    }

    /// Whether the count is written and the tick that takes it over is still to come.
    fn is_loading(&self, now: u64) -> bool {
        self.0.started && self.0.frozen.is_none() && now < self.0.start
    }

    fn modulus(&self) -> u32 {
        if self.0.bcd { 10_000 } else { 0x1_0000 }
    }

    /// The counting element.
    fn count(&self, now: u64) -> u16 {
        let (elapsed, reload) = (self.elapsed(now), u64::from(self.0.reload));
        let modulus = u64::from(self.modulus());
        let count = match self.0.mode {
            _ if !self.0.started => reload,
            2 => reload - elapsed % reload,
            3 => {
                // Steps of two from the even part of the count, in each half.
                let (position, high) = (elapsed % reload, reload.div_ceil(2));
                let step = if position < high { position } else { position - high };
                (reload & !1) - 2 * step
            }
            _ => modulus + reload - elapsed % modulus,
        };
        let count = count % modulus;
        if self.0.bcd { to_bcd(count) } else { count as u16 }
    }
}

fn from_bcd(value: u16) -> u32 {
    (0..4).rev().fold(0, |count, digit| count * 10 + u32::from(value >> (digit * 4) & 0xf))
}

fn to_bcd(count: u64) -> u16 {
    let digit = |place: u64| (count / place % 10) as u16;
    digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
}
