//! What can be asked about a running machine: its status and its counters.

use crate::control::protocol::EngineName;
use engine::ExitCounts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It runs.
    Running,
    /// It stands.
    #[default]
    Paused,
}

/// The answer to `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the machine.
    pub name: String,
    /// Whether the guest runs.
    pub state: State,
    /// What runs the processors.
    pub engine: Option<EngineName>,
    /// Why it was chosen at the start.
    pub engine_reason: String,
    /// Processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// The process.
    pub pid: u32,
    /// What paused it, if it was no person: a failed disk, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<String>,
}

/// The counters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// What runs the processors.
    pub engine: Option<EngineName>,
    /// How long the guest ran, in seconds, without the time it stood.
    pub ran_seconds: f64,
    /// How often all processors were moved to another engine.
    pub engine_switches: u64,
    /// Guest instructions that the software CPU executed, if it did.
    pub instructions: Option<u64>,
    /// Millions of them a second, over all processors.
    pub mips: Option<f64>,
    /// Bytes of the serial port that nobody read in time.
    pub serial_bytes_lost: u64,
    /// Exits by kind, and whatever else the engine counts.
    pub counters: BTreeMap<String, u64>,
}

impl Stats {
    /// The counters of a machine that ran for so long.
    pub fn new(engine: EngineName, switches: u64, counts: ExitCounts, ran: Duration, lost: u64) -> Self {
        let ran_seconds = ran.as_secs_f64();
        Stats {
            engine: Some(engine),
            ran_seconds,
            engine_switches: switches,
            instructions: counts.instructions,
            mips: counts.instructions.map(|count| count as f64 / ran_seconds.max(1e-9) / 1e6),
            serial_bytes_lost: lost,
            counters: counts.counts,
        }
    }
}

impl Stats {
    fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// How the software CPU executed, as shares of the whole.
    fn write_execution(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = self.counter("blocks_run");
        if blocks > 0 {
            let share = |name| percent(self.counter(name), blocks);
            writeln!(
                f,
                "blocks reached by direct links {}, jump cache {}, call-outs {}, dispatcher {}",
                share("blocks_by_link"),
                share("blocks_by_jump_cache"),
                share("blocks_by_call_out"),
                share("translated_entries")
            )?;
            let (accesses, missed) =
                (self.counter("translated_accesses"), self.counter("call_outs_of_memory"));
            writeln!(
                f,
                "memory accesses of translated code {accesses}, TLB hit rate {}",
                percent(accesses.saturating_sub(missed), accesses)
            )?;
        }
        let times: Vec<(&str, u64)> = self
            .counters
            .iter()
            .filter_map(|(name, time)| Some((name.strip_prefix("time_")?.strip_suffix("_us")?, *time)))
            .collect();
        let all: u64 = times.iter().map(|(_, time)| time).sum();
        if all > 0 {
            let shares = times
                .iter()
                .map(|(name, time)| format!("{} {}", name.replace('_', " "), percent(*time, all)));
            writeln!(f, "time: {}", shares.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// One counter a line.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = self.engine.map_or_else(String::new, |engine| format!("engine {engine}, "));
        writeln!(f, "{engine}ran {:.3} s, engine switches {}", self.ran_seconds, self.engine_switches)?;
        if let (Some(instructions), Some(mips)) = (self.instructions, self.mips) {
            let translated = self.counter("translated_entries") > 0 && self.counter("blocks_run") == 0;
            let which = if translated { " (interpreted; translated code does not count)" } else { "" };
            writeln!(f, "instructions {instructions}, {mips:.1} MIPS{which}")?;
        }
        self.write_execution(f)?;
        if self.serial_bytes_lost > 0 {
            writeln!(f, "serial bytes lost {}", self.serial_bytes_lost)?;
        }
        self.counters.iter().try_for_each(|(name, count)| writeln!(f, "{name} {count}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mips_are_millions_of_instructions_a_second() {
        let counts = ExitCounts {
            instructions: Some(30_000_000),
            counts: [("pio".to_owned(), 5)].into_iter().collect(),
        };
        let stats = Stats::new(EngineName::Software, 2, counts, Duration::from_millis(500), 0);
        assert_eq!(stats.mips, Some(60.0));
        let text = stats.to_string();
        for words in ["engine software", "ran 0.500 s", "switches 2", "30000000", "60.0 MIPS", "\npio 5\n"] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn shares_are_of_all_blocks_accesses_and_time() {
        let counts = [
            ("translated_entries", 1),
            ("blocks_run", 8),
            ("blocks_by_link", 5),
            ("blocks_by_jump_cache", 2),
            ("translated_accesses", 1000),
            ("call_outs_of_memory", 4),
            ("time_halted_us", 300),
            ("time_call_outs_us", 100),
        ];
        let counts = ExitCounts {
            instructions: Some(7),
            counts: counts.map(|(name, count)| (name.to_owned(), count)).into_iter().collect(),
        };
        let text = Stats::new(EngineName::Software, 0, counts, Duration::from_secs(1), 0).to_string();
        for line in [
            "blocks reached by direct links 62.5 %, jump cache 25.0 %, call-outs 0.0 %, dispatcher 12.5 %\n",
            "memory accesses of translated code 1000, TLB hit rate 99.6 %\n",
            "time: call outs 25.0 %, halted 75.0 %\n",
            "MIPS\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn uncounted_instructions_are_told() {
        let counts = ExitCounts {
            instructions: Some(7),
            counts: [("translated_entries".to_owned(), 1)].into_iter().collect(),
        };
        let text = Stats::new(EngineName::Software, 0, counts, Duration::from_secs(1), 0).to_string();
        assert!(text.contains("MIPS (interpreted; translated code does not count)\n"), "{text}");
    }
}
