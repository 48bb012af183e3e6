//! Pools whose members have forged metadata.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/block/tests/hostile/pool.rs"]
mod pool;

fuzz_target!(|program: &[u8]| pool::run(program));
