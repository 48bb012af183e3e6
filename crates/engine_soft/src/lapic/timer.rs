//! The timer (SDM 3A 10.5.4).

/// Modes of the timer's LVT entry, bits 17–18.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimerMode {
    /// Counts down once.
    #[default]
    OneShot,
    /// Counts down again and again.
    Periodic,
    /// Fires when the time-stamp counter reaches IA32_TSC_DEADLINE.
    TscDeadline,
}

impl TimerMode {
    /// By LVT entry; the reserved value counts as one-shot.
    pub fn of_entry(entry: u32) -> Self {
        match entry >> 17 & 3 {
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::OneShot,
        }
    }
}

/// The timer's count and time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timer {
    pub mode: TimerMode,
    pub initial: u32,
    /// Divide configuration register.
    pub divide: u32,
    /// When the count started, in nanoseconds of guest time.
    started_ns: u64,
    /// When it fires.
    due_ns: Option<u64>,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
}

impl Timer {
    /// log2 of the divider.
    fn shift(&self) -> u32 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        (code + 1) & 7
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial) << self.shift()
    }

    /// When it fires next.
    pub fn deadline(&self) -> Option<u64> {
        self.due_ns
    }

    /// Nanoseconds since the count started, if it counts.
    pub fn elapsed_ns(&self, now_ns: u64) -> Option<u64> {
        self.due_ns.filter(|_| self.mode != TimerMode::TscDeadline)?;
        Some(now_ns.saturating_sub(self.started_ns))
    }

    /// Starts to count from `initial`, `elapsed_ns` ago.
    pub fn start(&mut self, initial: u32, now_ns: u64, elapsed_ns: u64) {
        if self.mode == TimerMode::TscDeadline {
            return;
        }
        self.initial = initial;
        self.started_ns = now_ns.saturating_sub(elapsed_ns);
        self.due_ns = (initial != 0).then(|| self.started_ns.saturating_add(self.period_ns()));
    }

    /// Changes the divider; the count so far stays.
    pub fn set_divide(&mut self, divide: u32, now_ns: u64) {
        let current = self.current(now_ns);
        self.divide = divide & 0xb;
        if self.mode != TimerMode::TscDeadline && self.due_ns.is_some() {
            let counted = u64::from(self.initial.saturating_sub(current)) << self.shift();
            self.start(self.initial, now_ns, counted);
        }
    }

    /// Changes the mode; a change to or from TSC-deadline mode disarms.
    pub fn set_mode(&mut self, mode: TimerMode) {
        if (mode == TimerMode::TscDeadline) != (self.mode == TimerMode::TscDeadline) {
            self.due_ns = None;
            self.tsc_deadline = 0;
            self.initial = 0;
        }
        self.mode = mode;
    }

    /// Arms (`None` disarms) the TSC deadline, given as value and as guest time.
    pub fn set_tsc_deadline(&mut self, value: u64, due_ns: Option<u64>) {
        if self.mode == TimerMode::TscDeadline {
            self.tsc_deadline = value;
            self.due_ns = due_ns.filter(|_| value != 0);
        }
    }

    /// The current count register.
    pub fn current(&self, now_ns: u64) -> u32 {
        let (Some(due), false) = (self.due_ns, self.mode == TimerMode::TscDeadline) else { return 0 };
        let period = self.period_ns();
        let left = match due.checked_sub(now_ns) {
            Some(left) => left,
            None if self.mode == TimerMode::Periodic && period != 0 => period - (now_ns - due) % period,
            None => 0,
        };
        (left >> self.shift()).min(u64::from(u32::MAX)) as u32
    }

    /// Whether it fired; starts the next period.
    pub fn expire(&mut self, now_ns: u64) -> bool {
        let Some(due) = self.due_ns.filter(|&due| due <= now_ns) else { return false };
        self.due_ns = None;
        self.tsc_deadline = 0;
        let period = self.period_ns();
        if self.mode == TimerMode::Periodic && period != 0 {
            let missed = (now_ns - due) / period;
            self.started_ns = due.saturating_add(missed * period);
            self.due_ns = Some(self.started_ns.saturating_add(period));
        }
        true
    }
}
