//! Partition tables that somebody has changed.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/block/tests/hostile/memory.rs"]
mod memory;
#[path = "../../crates/block/tests/hostile/partitions.rs"]
mod partitions;

fuzz_target!(|program: &[u8]| partitions::run(program));
