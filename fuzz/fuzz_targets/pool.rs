//! Pools whose members have forged metadata.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/block/tests/pools/hostile/body.rs"]
mod body;

fuzz_target!(|program: &[u8]| body::run(program));
