//! Everything a client can say to an NBD server.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    nbd::exercise::hear(input);
});
