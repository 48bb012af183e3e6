//! Random rings, for `virtio::queue`.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    virtio::exercise::rings::check(true, program);
});
