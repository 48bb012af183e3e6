//! Register traffic, and a move of the state in the middle, for `chipset::pvpanic`.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    chipset::exercise::check(chipset::exercise::pvpanic, program);
});
