//! Random registers of the PCI transport, by any width and through configuration space; the device behind it is chosen
//! by the first byte.
#![no_main]

use virtio::exercise::{hostile, rigs};

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    let Some((&choice, program)) = program.split_first() else { return };
    let (_, build) = rigs::DEVICES[usize::from(choice) % rigs::DEVICES.len()];
    hostile::check(build, program);
});
