//! Files that somebody damaged or made to harm: each is refused in one line that names it, or it is loaded; nothing
//! panics, and nothing is allocated because a header says so.
#![expect(unsafe_code, reason = "an allocator that notes the largest request can only be an unsafe trait's")]

mod images;

use guest_memory::GuestMemory;
use images::{BZIMAGE, ELF32, ELF64, FLAT};
use loader::{BoardLayout, BootSource, Entry, EntryProtocol, LoadError};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Passes on to the system's allocator and notes the largest request of each thread.
struct Noting;

thread_local!(static LARGEST: Cell<usize> = const { Cell::new(0) });

// SAFETY: every call is passed on unchanged.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: as our caller promised.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as our caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// RAM of the guests here.
const RAM: u64 = 8 << 20;
/// What the loader may need beside copies of the files: tables, chunks, decoders' windows.
const OVERHEAD: usize = 1 << 20;

/// Loads an image, and an initrd if there is one, and checks what every outcome has to keep.
fn load(kernel: &[u8], initrd: Option<&[u8]>, protocol: EntryProtocol) -> Result<Entry, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    let (kernel_path, initrd_path) = (folder.path().join("kernel-file"), folder.path().join("initrd-file"));
    std::fs::write(&kernel_path, kernel).unwrap();
    if let Some(content) = initrd {
        std::fs::write(&initrd_path, content).unwrap();
    }
    let memory = GuestMemory::new(&[(0, RAM)]).unwrap();
    let boot = BootSource {
        kernel: kernel_path,
        initrd: initrd.map(|_| initrd_path),
        append: "console=ttyS0".to_owned(),
        protocol,
    };
    LARGEST.set(0);
    let result = loader::load(&memory, &boot, &BoardLayout::default());
    let largest = LARGEST.get();
    assert!(largest <= kernel.len() + OVERHEAD, "{largest} bytes at once for a file of {}", kernel.len());
    match &result {
        Ok(entry) => assert!(entry.rip < RAM && entry.rbx < RAM && entry.rsi < RAM, "{entry:x?}"),
        Err(error) => {
            let text = error.to_string();
            let named =
                text.contains("kernel-file") || text.contains("initrd-file") || text.contains("command line");
            assert!(named && !text.contains('\n'), "{text}");
        }
    }
    result
}

fn protocols() -> impl Strategy<Value = EntryProtocol> {
    use EntryProtocol::{Auto, Linux32, Linux64, Multiboot, Pvh};
    prop::sample::select(vec![Auto, Auto, Linux32, Linux64, Pvh, Multiboot])
}

/// One of the formats, whole.
fn whole() -> impl Strategy<Value = Vec<u8>> {
    let makers: Vec<fn() -> Vec<u8>> = vec![images::bzimage, images::elf64, images::elf32, images::flat];
    prop::sample::select(makers).prop_map(|make| make())
}

#[test]
fn the_whole_images_load() {
    for (image, protocol, name) in [
        (images::bzimage(), EntryProtocol::Auto, "64-bit Linux"),
        (images::bzimage(), EntryProtocol::Linux32, "32-bit Linux"),
        (images::bzimage(), EntryProtocol::Pvh, "PVH"),
        (images::elf64(), EntryProtocol::Auto, "PVH"),
        (images::elf32(), EntryProtocol::Auto, "multiboot"),
        (images::flat(), EntryProtocol::Auto, "multiboot"),
    ] {
        assert_eq!(load(&image, Some(b"initrd"), protocol).unwrap().protocol, name);
    }
}

#[test]
fn cut_anywhere_an_image_is_refused_and_the_cut_field_named() {
    for (image, fields) in [
        (images::bzimage(), BZIMAGE),
        (images::elf64(), ELF64),
        (images::elf32(), ELF32),
        (images::flat(), FLAT),
    ] {
        // A bzImage counts paragraphs of 16 bytes, and the last may be shorter.
        for len in (1..image.len() - 16).step_by(7).chain(fields.iter().map(|field| field.0)) {
            assert!(load(&image[..len], None, EntryProtocol::Auto).is_err(), "{len} of {}", image.len());
        }
        for &(offset, name) in fields {
            let text = load(&image[..offset], None, EntryProtocol::Auto).unwrap_err().to_string();
            let place = format!("{name} at offset {offset:#x}");
            assert!(text.contains(&place), "{place}: {text}");
        }
    }
}

#[test]
fn the_lengths_at_the_limits_are_refused() {
    // Where each format keeps its lengths and addresses, and of how many bytes.
    type Places = (fn() -> Vec<u8>, &'static [(usize, usize)]);
    let places: [Places; 4] = [
        (
            images::bzimage,
            &[(0x1f1, 1), (0x1f4, 4), (0x201, 1), (0x248, 4), (0x24c, 4), (0x258, 8), (0x260, 4)],
        ),
        (images::elf64, &[(32, 8), (54, 2), (56, 2), (72, 8), (88, 8), (96, 8), (104, 8)]),
        (images::elf32, &[(28, 4), (42, 2), (44, 2), (56, 4), (64, 4), (68, 4), (72, 4)]),
        (images::flat, &[(12, 4), (16, 4), (20, 4), (24, 4), (28, 4)]),
    ];
    for (make, fields) in places {
        for &(offset, width) in fields {
            for value in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, 0xffff_ffff, 1 << 63, u64::MAX] {
                let mut image = make();
                image[offset..offset + width].copy_from_slice(&u64::to_le_bytes(value)[..width]);
                for protocol in [EntryProtocol::Auto, EntryProtocol::Pvh, EntryProtocol::Multiboot] {
                    let _ = load(&image, None, protocol);
                }
            }
        }
    }
}

#[test]
fn a_payload_that_unpacks_to_other_than_it_says_is_refused() {
    for announced in [0, 100, 1 << 20, 0xffff_ffff_u32] {
        let text =
            load(&images::bzimage_unpacking_to(announced), None, EntryProtocol::Pvh).unwrap_err().to_string();
        assert!(text.contains("packed kernel") || text.contains("memory"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bytes_harm_nobody(
        mut image in whole(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        initrd in prop::option::of(prop::collection::vec(any::<u8>(), 0..9000)),
        protocol in protocols(),
    ) {
        // Headers are where damage tells.
        let headers = image.len().min(0x300);
        for (place, value) in damage {
            let at = place.index(headers);
            image[at] = value;
        }
        let _ = load(&image, initrd.as_deref(), protocol);
    }

    #[test]
    fn noise_behind_a_magic_harms_nobody(
        noise in prop::collection::vec(any::<u8>(), 0..2048),
        kind in 0..4_usize,
        protocol in protocols(),
    ) {
        let mut image = noise;
        image.resize(image.len().max(0x300), 0);
        match kind {
            0 => {
                image[0x202..0x206].copy_from_slice(b"HdrS");
                image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
                image[0x207] = 2;
            }
            1 => image[..6].copy_from_slice(b"\x7fELF\x02\x01"),
            2 => image[..6].copy_from_slice(b"\x7fELF\x01\x01"),
            _ => images::multiboot_header(&mut image, 64, 1 << 16),
        }
        let _ = load(&image, None, protocol);
    }
}
