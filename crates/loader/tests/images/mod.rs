//! Small whole images of every format, made by hand from the specifications.

/// Header fields with their offsets, for cuts: a file that ends before one cannot be read.
pub const BZIMAGE: &[(usize, &str)] = &[(0x206, "version"), (0x211, "loadflags")];
/// Of the 64-bit ELF header.
pub const ELF64: &[(usize, &str)] = &[
    (4, "EI_CLASS"),
    (5, "EI_DATA"),
    (18, "e_machine"),
    (24, "e_entry"),
    (32, "e_phoff"),
    (54, "e_phentsize"),
];
/// Of the 32-bit ELF header.
pub const ELF32: &[(usize, &str)] =
    &[(18, "e_machine"), (24, "e_entry"), (28, "e_phoff"), (42, "e_phentsize")];
/// Of the multiboot header with addresses, which starts the file.
pub const FLAT: &[(usize, &str)] = &[(12, "header_addr"), (16, "load_addr"), (28, "entry_addr")];

fn put(image: &mut [u8], offset: usize, value: u64, width: usize) {
    image[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

/// A multiboot header with these flags.
pub fn multiboot_header(image: &mut [u8], offset: usize, flags: u32) {
    let magic = 0x1bad_b002_u32;
    put(image, offset, magic.into(), 4);
    put(image, offset + 4, flags.into(), 4);
    put(image, offset + 8, magic.wrapping_add(flags).wrapping_neg().into(), 4);
}

/// A flat multiboot image of 256 bytes to be loaded at 1 MiB.
pub fn flat() -> Vec<u8> {
    let mut image = vec![0x90; 256];
    multiboot_header(&mut image, 0, 1 << 16);
    for (index, value) in [0x10_0000, 0x10_0000, 0x10_0100, 0x10_1000, 0x10_0020].into_iter().enumerate() {
        put(&mut image, 12 + index * 4, value, 4);
    }
    image
}

/// A 32-bit ELF file with one segment, which holds a multiboot header.
pub fn elf32() -> Vec<u8> {
    let mut image = vec![0x90; 512];
    image[..16].copy_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    for (offset, value, width) in [
        (16, 2, 2),
        (18, 3, 2),
        (20, 1, 4),
        (24, 0x10_0020, 4),
        (28, 52, 4),
        (40, 52, 2),
        (42, 32, 2),
        (44, 1, 2),
    ] {
        put(&mut image, offset, value, width);
    }
    // PT_LOAD: offset 256, 256 bytes to 1 MiB, 4096 in memory.
    for (index, value) in [1, 256, 0x10_0000, 0x10_0000, 256, 4096, 7, 4096].into_iter().enumerate() {
        put(&mut image, 52 + index * 4, value, 4);
    }
    multiboot_header(&mut image, 256, 3);
    image
}

/// A 64-bit ELF file with one segment and a PVH note.
pub fn elf64() -> Vec<u8> {
    let mut image = vec![0x90; 1024];
    image[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for (offset, value, width) in [
        (16, 2, 2),
        (18, 62, 2),
        (20, 1, 4),
        (24, 0x10_0000, 8),
        (32, 64, 8),
        (52, 64, 2),
        (54, 56, 2),
        (56, 2, 2),
    ] {
        put(&mut image, offset, value, width);
    }
    // p_type and p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align.
    let load = [1 | 7 << 32, 512, 0x10_0000, 0x10_0000, 512, 8192, 4096];
    let note = [4 | 4 << 32, 256, 0, 0, 20, 20, 4];
    for (index, value) in load.into_iter().chain(note).enumerate() {
        put(&mut image, 64 + index * 8, value, 8);
    }
    // Name of four bytes, content of four, type 18.
    for (index, value) in [4, 4, 18].into_iter().enumerate() {
        put(&mut image, 256 + index * 4, value, 4);
    }
    image[268..272].copy_from_slice(b"Xen\0");
    put(&mut image, 272, 0x10_0010, 4);
    image
}

/// A bzImage of protocol 2.15 whose payload is [`elf64`], packed by lz4, said to unpack to so many bytes.
pub fn bzimage_unpacking_to(announced: u32) -> Vec<u8> {
    let packed = lz4_flex::block::compress(&elf64());
    let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
    payload.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    payload.extend_from_slice(&packed);
    payload.extend_from_slice(&announced.to_le_bytes());
    let kernel_len = (0x300 + payload.len()).next_multiple_of(16);
    let setup_len = 2 * 512;
    let mut image = vec![0x90; setup_len + kernel_len];
    image[setup_len + 0x300..][..payload.len()].copy_from_slice(&payload);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    // A release that carries no checksum any more.
    image[0x300..0x307].copy_from_slice(b"6.15.0\0");
    for (offset, value, width) in [
        (0x1f1, 1, 1),
        (0x1f4, kernel_len as u64 / 16, 4),
        (0x1fe, 0xaa55, 2),
        (0x200, 0x66eb, 2),
        (0x206, 0x020f, 2),
        (0x20e, 0x100, 2),
        (0x211, 1, 1),
        (0x22c, 0x7fff_ffff, 4),
        (0x230, 0x20_0000, 4),
        (0x236, 1, 2),
        (0x238, 2047, 4),
        (0x248, 0x300, 4),
        (0x24c, payload.len() as u64, 4),
        (0x258, 0x10_0000, 8),
        (0x260, 0x10_0000, 4),
    ] {
        put(&mut image, offset, value, width);
    }
    image
}

/// A whole bzImage.
pub fn bzimage() -> Vec<u8> {
    bzimage_unpacking_to(elf64().len() as u32)
}
