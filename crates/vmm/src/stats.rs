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

/// One counter a line.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = self.engine.map_or_else(String::new, |engine| format!("engine {engine}, "));
        writeln!(f, "{engine}ran {:.3} s, engine switches {}", self.ran_seconds, self.engine_switches)?;
        if let (Some(instructions), Some(mips)) = (self.instructions, self.mips) {
            let translated = self.counters.get("translated_entries").is_some_and(|&entries| entries > 0);
            let which = if translated { " (interpreted; translated code does not count)" } else { "" };
            writeln!(f, "instructions {instructions}, {mips:.1} MIPS{which}")?;
        }
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
    fn uncounted_instructions_are_told() {
        let counts = ExitCounts {
            instructions: Some(7),
            counts: [("translated_entries".to_owned(), 1)].into_iter().collect(),
        };
        let text = Stats::new(EngineName::Software, 0, counts, Duration::from_secs(1), 0).to_string();
        assert!(text.contains("MIPS (interpreted; translated code does not count)\n"), "{text}");
    }
}
