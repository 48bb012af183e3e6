//! Everything an iSCSI target can say to the disk that it holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    iscsi::exercise::talk(input);
});
