//! A driver that keeps no rule, and a move of the state at the end, for `virtio`'s console device.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    virtio::exercise::hostile::check(virtio::exercise::rigs::console, program);
});
