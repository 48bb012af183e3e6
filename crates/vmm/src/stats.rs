//! The counters in words.

use engine::{EngineKind, ExitCounts};
use std::time::Duration;

/// Prints to standard error, one counter a line.
pub fn print(engine: EngineKind, switches: u64, counts: &ExitCounts, ran: Duration) {
    let mut text =
        format!("vireo: engine {engine}, ran {:.3} s, engine switches {switches}\n", ran.as_secs_f64());
    if let Some(instructions) = counts.instructions {
        let mips = instructions as f64 / ran.as_secs_f64().max(1e-9) / 1e6;
        text += &format!("vireo: instructions {instructions}, {mips:.1} MIPS\n");
    }
    for (name, count) in &counts.counts {
        text += &format!("vireo: {name} {count}\n");
    }
    eprint!("{text}");
}
