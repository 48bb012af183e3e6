//! A driver that keeps no rule, and a move of the state at the end, for `virtio`'s entropy device.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    virtio::exercise::hostile::check(virtio::exercise::rigs::entropy, program);
});
