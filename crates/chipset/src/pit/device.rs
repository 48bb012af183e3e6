//! The three counters and port 0x61.

use super::bits::*;
use super::counter::Counter;
use super::state::PitState;

const NS: u128 = 1_000_000_000;

/// The timer. Times in its interface are nanoseconds.
#[derive(Clone, Debug)]
pub struct Registers {
    counters: [Counter; 3],
    port: u8,
    connected: bool,
}

/// Ticks until a guest time.
fn ticks(now_ns: u64) -> u64 {
    (u128::from(now_ns) * u128::from(HZ) / NS) as u64
}

/// The guest time at which a tick has happened.
fn time_of(tick: u64) -> u64 {
    u64::try_from((u128::from(tick) * NS).div_ceil(u128::from(HZ))).unwrap_or(u64::MAX)
}

impl Registers {
    /// Counters without mode; counter 2 is gated off.
    pub fn new() -> Self {
        let mut counters = [Counter::new(), Counter::new(), Counter::new()];
        counters[2].set_gate(false, 0);
        Registers { counters, port: 0, connected: true }
    }

    /// Reads counter 0–2; the control word cannot be read.
    pub fn read(&mut self, offset: u64, now_ns: u64) -> u8 {
        let counter = usize::try_from(offset).ok().and_then(|index| self.counters.get_mut(index));
        counter.map_or(0xff, |counter| counter.read(ticks(now_ns)))
    }

    /// Writes counter 0–2 or the control word.
    pub fn write(&mut self, offset: u64, value: u8, now_ns: u64) {
        let now = ticks(now_ns);
        if offset == CONTROL {
            self.control(value, now);
        } else if let Some(counter) =
            usize::try_from(offset).ok().and_then(|index| self.counters.get_mut(index))
        {
            counter.write(value, now);
        }
    }

    fn control(&mut self, value: u8, now: u64) {
        let select = value >> 6;
        if select == SELECT_READ_BACK {
            for (index, counter) in self.counters.iter_mut().enumerate() {
                if value & 2 << index != 0 {
                    if value & READ_BACK_NO_COUNT == 0 {
                        counter.latch_count(now);
                    }
                    if value & READ_BACK_NO_STATUS == 0 {
                        counter.latch_status(now);
                    }
                }
            }
        } else if let Some(counter) = self.counters.get_mut(usize::from(select)) {
            if value >> 4 & 3 == ACCESS_LATCH {
                counter.latch_count(now);
            } else {
                counter.program(value);
            }
        }
    }

    /// Port 0x61.
    pub fn read_port(&self, now_ns: u64) -> u8 {
        let [_, _, speaker] = &self.counters;
        let refresh = if (now_ns / REFRESH_NS) & 1 != 0 { PORT_REFRESH } else { 0 };
        let output = if speaker.output(ticks(now_ns)) { PORT_OUT2 } else { 0 };
        self.port | refresh | output
    }

    /// Port 0x61: the gate of counter 2 and bits that are only kept.
    pub fn write_port(&mut self, value: u8, now_ns: u64) {
        self.port = value & PORT_WRITABLE;
        let [_, _, speaker] = &mut self.counters;
        speaker.set_gate(value & PORT_GATE2 != 0, ticks(now_ns));
    }

    /// Connects counter 0 to interrupt 0, or takes it off.
    pub fn set_connected(&mut self, connected: bool, now_ns: u64) {
        self.take_edge(now_ns);
        self.connected = connected;
    }

    /// Whether counter 0's output rose since this was last asked.
    pub fn take_edge(&mut self, now_ns: u64) -> bool {
        let [timer, ..] = &mut self.counters;
        timer.take_edge(ticks(now_ns)) && self.connected
    }

    /// The level of interrupt 0.
    pub fn interrupt(&self, now_ns: u64) -> bool {
        let [timer, ..] = &self.counters;
        self.connected && timer.output(ticks(now_ns))
    }

    /// When counter 0's output rises next; periods too short for the host fall together.
    pub fn next_edge(&self, now_ns: u64) -> Option<u64> {
        let [timer, ..] = &self.counters;
        let at = timer.next_edge(ticks(now_ns)).filter(|_| self.connected).map(time_of)?;
        Some(if timer.is_periodic() { at.max(now_ns.saturating_add(MIN_PERIOD_NS)) } else { at })
    }

    /// What is saved; `irq` is the level of the wire.
    pub fn save(&self, irq: bool) -> PitState {
        let Registers { counters, port, connected } = self;
        let counters = counters.clone().map(|counter| counter.0);
        PitState { counters, port: *port, connected: *connected, irq }
    }

    /// A saved timer.
    pub fn restored(state: PitState) -> Self {
        let PitState { counters, port, connected, irq: _ } = state;
        Registers { counters: counters.map(Counter::restored), port: port & PORT_WRITABLE, connected }
    }
}
