//! A kernel file of any content, with an initrd of the same, for `loader`: an error of one line or an entry in RAM.
#![no_main]

use guest_memory::GuestMemory;
use loader::{BoardLayout, BootSource, EntryProtocol};
use std::path::PathBuf;

const RAM: u64 = 8 << 20;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&choice, image)) = input.split_first() else { return };
    use EntryProtocol::{Auto, Linux32, Linux64, Multiboot, Pvh};
    let protocol = [Auto, Linux64, Linux32, Pvh, Multiboot][usize::from(choice) % 5];
    let path = PathBuf::from(format!("/dev/shm/vireo-fuzz-kernel-{}", std::process::id()));
    std::fs::write(&path, image).expect("the fuzzer's own file");
    let memory = GuestMemory::new(&[(0, RAM)]).expect("RAM for the guest");
    let initrd = (choice & 0x80 != 0).then(|| path.clone());
    let boot = BootSource { kernel: path, initrd, append: "console=ttyS0".to_owned(), protocol };
    match loader::load(&memory, &boot, &BoardLayout::default()) {
        Ok(entry) => assert!(entry.rip < RAM && entry.rbx < RAM && entry.rsi < RAM),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});
