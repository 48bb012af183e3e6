//! Where a processor's time goes.

use std::time::{Duration, Instant};

/// Time by what it was spent on. What translated code does and what it calls is only measured if somebody wants to
/// know, because looking at the clock that often makes it slower.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// Between the beginnings and ends of runs.
    pub run: Duration,
    /// Of it, waiting for an event.
    pub halted: Duration,
    /// Translating.
    pub translating: Duration,
    /// In translated code and what it calls.
    entered: Duration,
    /// Of it, in the interpreter and in devices.
    called_out: Duration,
    /// Whether the last two are measured.
    pub detailed: bool,
}

impl Times {
    /// The time now, if it matters.
    pub fn if_detailed(&self) -> Option<Instant> {
        self.detailed.then(Instant::now)
    }

    /// Translated code was entered then, and was left now.
    pub fn entered_since(&mut self, since: Option<Instant>) {
        self.entered += since.map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// Translated code called somebody then, who is done now.
    pub fn called_out_since(&mut self, since: Option<Instant>) {
        self.called_out += since.map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// Microseconds by name. Blocks are translated in translated code, too, so only the sum is exact to the last bit.
    pub fn all(&self) -> Vec<(&'static str, u64)> {
        let Times { run, halted, translating, entered, called_out, detailed } = *self;
        let executing = run.saturating_sub(halted).saturating_sub(translating);
        let mut times = vec![("time_halted_us", halted), ("time_translating_us", translating)];
        if detailed {
            times.push(("time_translated_us", entered.saturating_sub(called_out)));
            times.push(("time_call_outs_us", called_out));
            times.push(("time_interpreter_us", executing.saturating_sub(entered)));
        } else {
            times.push(("time_executing_us", executing));
        }
        times.into_iter().map(|(name, time)| (name, time.as_micros() as u64)).collect()
    }
}
