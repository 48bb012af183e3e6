//! The I/O permission bitmap (SDM 1 19.5.2).

use super::rig::*;

const GP: End = End::Code(13, 0);

/// Bitmap at the TSS's end with ports 8 to 15 open; (limit, instruction, port, allowed).
#[test]
fn the_bitmap_by_width_and_end() {
    const BYTE: &[u8] = &[0xec];
    const WORD: &[u8] = &[0x66, 0xed];
    const LONG: &[u8] = &[0xed];
    const OUT: &[u8] = &[0xee];
    // Bytes 0x68 to 0x6b: ff 00 ff fe, so ports 8–15 and 24 are open.
    for (limit, code, port, allowed) in [
        (0x6b, BYTE, 8_u16, true),
        (0x6b, OUT, 8, true),
        (0x6b, BYTE, 7, false),
        (0x6b, BYTE, 16, false),
        (0x6b, WORD, 14, true),
        // Across a byte of the bitmap.
        (0x6b, WORD, 7, false),
        (0x6b, WORD, 15, false),
        (0x6b, LONG, 12, true),
        (0x6b, LONG, 13, false),
        (0x6b, LONG, 5, false),
        // Two bytes are read, wherever the bits are: the one behind must be inside.
        (0x6a, BYTE, 8, true),
        (0x69, BYTE, 8, false),
        (0x69, BYTE, 15, false),
        (0x6b, BYTE, 24, false),
        (0x6c, BYTE, 24, true),
        (0x68, BYTE, 8, false),
        (0x67, BYTE, 8, false),
        // Without the field that says where the bitmap is.
        (0x66, BYTE, 8, false),
        (0x6b, BYTE, 0xffff, false),
    ] {
        let mut rig = Rig::user(0);
        rig.state.segments.tr.limit = limit;
        rig.put16(TSS + 0x66, 0x68);
        rig.put(TSS + 0x68, &[0xff, 0, 0xff, 0xfe, 0]);
        rig.state.gprs[2] = port.into();
        let ran = rig.run_with(code, if allowed { 1 } else { 5 }, 0);
        assert_eq!(
            ran.end(),
            if allowed { End::Ran } else { GP },
            "limit {limit:#x}, port {port}, {code:x?}"
        );
    }
}

/// IOPL comes first; without it a 16-bit TSS, or a bitmap outside of the TSS, opens nothing.
#[test]
fn levels_and_missing_bitmaps() {
    let run = |rig: &Rig| rig.run_with(&[0xe4, 8], 5, 0).end();
    assert_eq!(run(&Rig::user(3)), GP_AFTER_THE_PORT);
    for iopl in 0..3 {
        assert_eq!(run(&Rig::user(iopl)), GP, "IOPL {iopl}");
    }
    let mut rig = Rig::user(0);
    rig.state.segments.tr.limit = 0x2fff;
    rig.put16(TSS + 0x66, 0x68);
    assert_eq!(run(&rig), GP_AFTER_THE_PORT, "all open");
    rig.put16(TSS + 0x66, 0x3000);
    assert_eq!(run(&rig), GP, "bitmap behind the TSS");
    rig.put16(TSS + 0x66, 0xffff);
    assert_eq!(run(&rig), GP, "bitmap behind the TSS");
    rig.put16(TSS + 0x66, 0x68);
    rig.state.segments.tr.attributes.0 = 0x83;
    // Its stack of ring 0 is elsewhere.
    rig.put16(TSS + 2, STACK0 as u16);
    rig.put16(TSS + 4, DATA0);
    assert_eq!(run(&rig), GP, "a 16-bit TSS has none");
}

/// The zeros behind the IN are ADD [EAX], AL at addresses of RAM: the program goes on.
const GP_AFTER_THE_PORT: End = End::Ran;
