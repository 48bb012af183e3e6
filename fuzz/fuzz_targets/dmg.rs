//! Images of dmg that were changed, and files of any content.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/block/tests/hostile/body.rs"]
mod body;

fuzz_target!(|program: &[u8]| body::run("dmg", program));
