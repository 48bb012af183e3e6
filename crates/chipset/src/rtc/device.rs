//! The clock's registers as a function of wall time (the time) and guest time (the interrupts).

use super::MemorySize;
use super::bits::*;
use super::calendar::{self, DAY_SECONDS, Moment};
use super::state::RtcState;

const NS: u128 = 1_000_000_000;
const SECOND_NS: u32 = 1_000_000_000;

/// The times at which something happens.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Guest time in nanoseconds.
    pub guest_ns: u64,
    /// Wall time in seconds since 1970 UTC.
    pub wall: u64,
    /// Nanoseconds of that.
    pub wall_ns: u32,
}

/// The registers.
#[derive(Clone, Debug)]
pub struct Registers {
    index: u8,
    memory: [u8; SIZE],
    offset: i64,
    phase_ns: u32,
    last_second: i64,
    periodic_start: u64,
    periods_seen: u64,
    connected: bool,
}

impl Now {
    /// Wall time moved on by less than a second.
    fn moved(self, ns: u32) -> Now {
        let sum = self.wall_ns.saturating_add(ns);
        let carry = sum / SECOND_NS;
        Now { wall: self.wall.saturating_add(carry.into()), wall_ns: sum % SECOND_NS, ..self }
    }
}

impl Registers {
    /// A running clock that shows UTC, and the memory sizes that old firmware leaves in CMOS.
    pub fn new(size: MemorySize, now: Now) -> Self {
        let mut memory = [0; SIZE];
        memory[REGISTER_A] = A_DIVIDER_32K | 6;
        memory[REGISTER_B] = B_24_HOURS;
        let extended_kib = (size.below_4g >> 10).saturating_sub(1024).min(0xfc00) as u16;
        let above_16m = (size.below_4g.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
        let above_4g = (size.above_4g >> 16).min(0xff_ffff) as u32;
        memory[0x15..0x17].copy_from_slice(&640_u16.to_le_bytes());
        memory[0x17..0x19].copy_from_slice(&extended_kib.to_le_bytes());
        memory[0x30..0x32].copy_from_slice(&extended_kib.to_le_bytes());
        memory[0x34..0x36].copy_from_slice(&above_16m.to_le_bytes());
        memory[0x5b..0x5e].copy_from_slice(&above_4g.to_le_bytes()[..3]);
        let mut registers = Registers {
            index: 0,
            memory,
            offset: 0,
            phase_ns: 0,
            last_second: 0,
            periodic_start: now.guest_ns,
            periods_seen: 0,
            connected: true,
        };
        registers.last_second = registers.second(now);
        registers
    }

    /// Reset leaves time and memory alone; it turns interrupts off (data sheet, RESET).
    pub fn reset(&mut self) {
        self.memory[REGISTER_B] &= !(B_PERIODIC | B_ALARM | B_UPDATE | B_SQUARE_WAVE);
        self.memory[REGISTER_C] = 0;
        self.index = 0;
        self.connected = true;
    }

    /// Port 0x70.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Port 0x70: a register, and the NMI mask, which is only kept.
    pub fn set_index(&mut self, value: u8) {
        self.index = value;
    }

    /// Connects interrupt 8, or takes it off.
    pub fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
    }

    /// Port 0x71.
    pub fn read(&mut self, now: Now) -> u8 {
        self.update(now);
        let index = self.selected();
        match index {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY => self.time_bytes(now, index),
            REGISTER_A => {
                let soon = now.moved(self.phase_ns).wall_ns >= SECOND_NS - UIP_NS && self.runs();
                self.memory[REGISTER_A] | if soon { A_UIP } else { 0 }
            }
            REGISTER_C => {
                let flags = std::mem::take(&mut self.memory[REGISTER_C]);
                flags | if flags & self.memory[REGISTER_B] & C_SOURCES != 0 { C_IRQ } else { 0 }
            }
            REGISTER_D => D_VALID,
            _ => self.memory.get(index).copied().unwrap_or(0xff),
        }
    }

    /// Port 0x71.
    pub fn write(&mut self, value: u8, now: Now) {
        self.update(now);
        let index = self.selected();
        match index {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY => {
                let running = self.runs();
                if running {
                    self.freeze(now);
                }
                self.set(index, value);
                if running {
                    self.thaw(now);
                }
            }
            REGISTER_A => {
                if (self.memory[REGISTER_A] ^ value) & (A_RATE | A_DIVIDER) != 0 {
                    (self.periodic_start, self.periods_seen) = (now.guest_ns, 0);
                }
                self.write_a(value & !A_UIP, now);
            }
            REGISTER_B => self.write_b(value, now),
            REGISTER_C | REGISTER_D => {}
            _ => self.set(index, value),
        }
    }

    /// A divider that does not count the crystal holds the time. When it counts again, the first second is half a one
    /// (data sheet, "Divider Control").
    fn write_a(&mut self, value: u8, now: Now) {
        let ran = self.runs();
        let counted = self.divides();
        if ran && value & A_DIVIDER != A_DIVIDER_32K {
            self.freeze(now);
        }
        self.memory[REGISTER_A] = value;
        if self.divides() && !counted {
            let half = SECOND_NS / 2;
            self.phase_ns = (half + SECOND_NS - now.wall_ns % SECOND_NS) % SECOND_NS;
            // A time that is being set is taken over when that ends.
            if self.runs() {
                self.thaw(now);
            }
        }
    }

    fn write_b(&mut self, value: u8, now: Now) {
        let ran = self.runs();
        if ran && value & B_SET != 0 {
            self.freeze(now);
        }
        // Setting the time turns the update interrupt off.
        self.memory[REGISTER_B] = if value & B_SET != 0 { value & !B_UPDATE } else { value };
        if self.runs() && !ran {
            self.thaw(now);
        }
    }

    /// Notes what happened since the last call.
    pub fn update(&mut self, now: Now) {
        if let Some(periods) = self.periods(now.guest_ns) {
            if periods > self.periods_seen {
                self.memory[REGISTER_C] |= B_PERIODIC;
            }
            self.periods_seen = periods;
        }
        let second = self.second(now);
        if self.runs() && second != self.last_second {
            self.memory[REGISTER_C] |= B_UPDATE;
            if self.next_alarm(self.last_second).is_some_and(|alarm| alarm <= second) {
                self.memory[REGISTER_C] |= B_ALARM;
            }
        }
        self.last_second = second;
    }

    /// The level of interrupt 8.
    pub fn interrupt(&self) -> bool {
        self.connected && self.memory[REGISTER_B] & self.memory[REGISTER_C] & C_SOURCES != 0
    }

    /// The guest time at which an enabled interrupt comes next. While the line is up, nothing changes it.
    pub fn next_event(&self, now: Now) -> Option<u64> {
        if self.interrupt() || !self.connected {
            return None;
        }
        let after = |ns: u128| u64::try_from(u128::from(now.guest_ns) + ns).unwrap_or(u64::MAX);
        let period = self.period_ticks().filter(|_| self.has_b(B_PERIODIC)).map(|ticks| {
            let next = u128::from(self.periods_seen) + 1;
            let ns = (next * u128::from(ticks) * NS).div_ceil(u128::from(CRYSTAL_HZ));
            u64::try_from(u128::from(self.periodic_start) + ns).unwrap_or(u64::MAX)
        });
        let running = self.runs();
        // The fraction of the running second is already over.
        let fraction = now.moved(self.phase_ns).wall_ns;
        let seconds = |count: i64| {
            let whole = u128::try_from(count.max(1)).unwrap_or(1) * NS;
            after(whole.saturating_sub(u128::from(fraction)))
        };
        let update = (running && self.has_b(B_UPDATE)).then(|| seconds(1));
        let alarm = self.next_alarm(self.last_second).filter(|_| running && self.has_b(B_ALARM));
        // Seconds may have passed that were not noted yet: the alarm is after those, its time counts from this one.
        let alarm = alarm.map(|alarm| seconds(alarm - self.second(now)));
        [period, update, alarm].into_iter().flatten().min()
    }

    /// What is saved.
    pub fn save(&self) -> RtcState {
        let Registers {
            index,
            memory,
            offset,
            phase_ns,
            last_second,
            periodic_start,
            periods_seen,
            connected,
        } = self;
        RtcState {
            index: *index,
            memory: memory.to_vec(),
            offset: *offset,
            phase_ns: *phase_ns,
            last_second: *last_second,
            periodic_start: *periodic_start,
            periods_seen: *periods_seen,
            connected: *connected,
        }
    }

    /// Saved registers; `None` if the size of the memory is another.
    pub fn restored(state: &RtcState) -> Option<Self> {
        let RtcState {
            index,
            memory,
            offset,
            phase_ns,
            last_second,
            periodic_start,
            periods_seen,
            connected,
        } = state;
        // No guest can set a time outside of 40,000 years.
        let sane = |seconds: i64| seconds.clamp(-(1 << 40), 1 << 40);
        Some(Registers {
            index: *index,
            memory: memory.as_slice().try_into().ok()?,
            offset: sane(*offset),
            phase_ns: phase_ns % SECOND_NS,
            last_second: sane(*last_second),
            periodic_start: *periodic_start,
            periods_seen: *periods_seen,
            connected: *connected,
        })
    }

    fn selected(&self) -> usize {
        usize::from(self.index & !INDEX_NMI)
    }

    fn set(&mut self, index: usize, value: u8) {
        if let Some(byte) = self.memory.get_mut(index) {
            *byte = value;
        }
    }

    fn has_b(&self, bit: u8) -> bool {
        self.memory[REGISTER_B] & bit != 0
    }

    /// Whether the divider counts the crystal: every other setting holds it in reset or expects another crystal.
    fn divides(&self) -> bool {
        self.memory[REGISTER_A] & A_DIVIDER == A_DIVIDER_32K
    }

    /// Whether the time goes on.
    fn runs(&self) -> bool {
        self.divides() && !self.has_b(B_SET)
    }

    /// The guest's time in seconds.
    fn second(&self, now: Now) -> i64 {
        i64::try_from(now.moved(self.phase_ns).wall).unwrap_or(i64::MAX).min(1 << 40) + self.offset
    }

    /// Crystal ticks of a period (data sheet, table 5).
    fn period_ticks(&self) -> Option<u64> {
        let rate = self.memory[REGISTER_A] & A_RATE;
        match rate {
            0 => None,
            1 | 2 => Some(1 << (rate + 6)),
            _ => Some(1 << (rate - 1)),
        }
        .filter(|_| self.divides())
    }

    fn periods(&self, guest_ns: u64) -> Option<u64> {
        let elapsed = u128::from(guest_ns.saturating_sub(self.periodic_start));
        let ticks = self.period_ticks()?;
        Some((elapsed * u128::from(CRYSTAL_HZ) / (u128::from(ticks) * NS)) as u64)
    }

    /// A byte of the time: from memory while it stands.
    fn time_bytes(&self, now: Now, index: usize) -> u8 {
        if !self.runs() {
            return self.memory.get(index).copied().unwrap_or(0);
        }
        self.encode_field(&calendar::from_seconds(self.second(now)), index)
    }

    fn freeze(&mut self, now: Now) {
        let moment = calendar::from_seconds(self.second(now));
        for index in [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY] {
            let value = self.encode_field(&moment, index);
            self.set(index, value);
        }
    }

    /// Takes the time from memory; impossible fields become the nearest possible ones.
    fn thaw(&mut self, now: Now) {
        let field = |index: usize| self.decode(self.memory.get(index).copied().unwrap_or(0));
        let moment = Moment {
            year: i64::from(field(CENTURY)) * 100 + i64::from(field(YEAR)),
            month: field(MONTH).clamp(1, 12),
            day: field(DAY).clamp(1, 31),
            day_of_week: 1,
            hour: self.decode_hour(self.memory[HOURS]).min(23),
            minute: field(MINUTES).min(59),
            second: field(SECONDS).min(59),
        };
        self.offset = 0;
        self.offset = calendar::to_seconds(&moment) - self.second(now);
        self.last_second = self.second(now);
    }

    fn encode_field(&self, moment: &Moment, index: usize) -> u8 {
        match index {
            SECONDS => self.encode(moment.second),
            MINUTES => self.encode(moment.minute),
            HOURS if self.has_b(B_24_HOURS) => self.encode(moment.hour),
            HOURS => {
                let pm = if moment.hour >= 12 { HOURS_PM } else { 0 };
                self.encode((moment.hour + 11) % 12 + 1) | pm
            }
            DAY_OF_WEEK => moment.day_of_week,
            DAY => self.encode(moment.day),
            MONTH => self.encode(moment.month),
            YEAR => self.encode(moment.year.rem_euclid(100) as u8),
            _ => self.encode(moment.year.div_euclid(100).rem_euclid(100) as u8),
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.has_b(B_BINARY) { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.has_b(B_BINARY) { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.has_b(B_24_HOURS) {
            return self.decode(value);
        }
        let noon = if value & HOURS_PM != 0 { 12 } else { 0 };
        self.decode(value & !HOURS_PM) % 12 + noon
    }

    /// The first second after one at which the alarm's fields match.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let field = |index: usize, limit: u8, decode: &dyn Fn(u8) -> u8| {
            let value = self.memory.get(index).copied().unwrap_or(0);
            let any = value & ALARM_ANY == ALARM_ANY;
            let wanted = (!any).then(|| i64::from(decode(value)));
            // A field that no time has never matches.
            wanted.is_none_or(|wanted| wanted < i64::from(limit)).then_some(wanted)
        };
        let second = field(SECONDS_ALARM, 60, &|value| self.decode(value))?;
        let minute = field(MINUTES_ALARM, 60, &|value| self.decode(value))?;
        let hour = field(HOURS_ALARM, 24, &|value| self.decode_hour(value))?;
        let differs = |wanted: Option<i64>, is: i64| wanted.is_some_and(|wanted| wanted != is);
        let mut at = after + 1;
        // Each step goes to the next hour, minute or second: at most 24 + 60 + 60 of them.
        while at - after <= 2 * DAY_SECONDS {
            let in_day = at.rem_euclid(DAY_SECONDS);
            let step = if differs(hour, in_day / 3600) {
                3600 - in_day % 3600
            } else if differs(minute, in_day / 60 % 60) {
                60 - in_day % 60
            } else if differs(second, in_day % 60) {
                1
            } else {
                return Some(at);
            };
            at += step;
        }
        None
    }
}
