//! Guests of a few bytes, for what needs no operating system: they start in milliseconds on every engine.
//!
//! Each is a 32-bit multiboot ELF image (Multiboot 0.6.96, 3.1.1) loaded whole at 1 MiB, entered in flat protected
//! mode with interrupts off.

use std::path::{Path, PathBuf};

use anyhow::Result;

/// What a guest of a few bytes does.
#[derive(Clone, Copy, Debug)]
pub enum TinyGuest {
    /// Writes a value to port 0xf4.
    DebugExit(u32),
    /// Takes an exception without an interrupt table.
    TripleFault,
    /// Writes a value to the pvpanic port.
    Panic(u8),
    /// Pulls the reset line through the keyboard controller.
    Reset,
    /// Halts for ever.
    Halt,
    /// Runs for ever.
    Spin,
    /// Says `R`, then repeats what it hears on COM1; a `q` ends it with debug-exit status 43.
    Echo,
    /// Writes so many bytes to COM1, see [`TinyGuest::flood_byte`], then as after `q`.
    Flood(u32),
}

const BASE: u32 = 0x10_0000;
/// ELF header, program header, multiboot header.
const CODE_AT: u32 = 52 + 32 + 12;
const MAGIC: u32 = 0x1bad_b002;
/// mov al, 15h; out f4h, al; hlt; jmp hlt
const EXIT: [u8; 7] = [0xb0, 0x15, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd];

impl TinyGuest {
    /// The exit status of [`TinyGuest::Echo`], [`TinyGuest::Flood`] and a [`TinyGuest::Panic`] that is none.
    pub const EXIT_STATUS: i32 = (0x15 << 1) | 1;

    /// Writes the image into a folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn image(self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join("tiny-guest.elf");
        std::fs::write(&path, self.bytes())?;
        Ok(path)
    }

    /// The byte that a flood of `count` bytes has at `at`.
    #[must_use]
    pub fn flood_byte(count: u32, at: u32) -> u8 {
        ((count - at) as u8 & 0x3f) + b'0'
    }

    fn code(self) -> Vec<u8> {
        match self {
            // mov eax, value; out f4h, eax; hlt; jmp hlt
            TinyGuest::DebugExit(value) => {
                [&[0xb8][..], &value.to_le_bytes(), &[0xe7, 0xf4, 0xf4, 0xeb, 0xfd]].concat()
            }
            // lidt [six zero bytes after the code]; int3
            TinyGuest::TripleFault => {
                let table = BASE + CODE_AT + 8;
                [&[0x0f, 0x01, 0x1d][..], &table.to_le_bytes(), &[0xcc, 0, 0, 0, 0, 0, 0]].concat()
            }
            // mov dx, 505h; mov al, value; out dx, al; and debug-exit if that changes nothing
            TinyGuest::Panic(value) => [&[0x66, 0xba, 0x05, 0x05, 0xb0, value, 0xee][..], &EXIT].concat(),
            // mov al, feh; out 64h, al; hlt; jmp hlt
            TinyGuest::Reset => vec![0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd],
            TinyGuest::Halt => vec![0xf4, 0xeb, 0xfd],
            TinyGuest::Spin => vec![0xeb, 0xfe],
            TinyGuest::Echo => {
                let say_r = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'R', 0xee];
                // mov dx, 3fdh; in al, dx; test al, 1; jz back
                let wait = [0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7];
                // mov dx, 3f8h; in al, dx; out dx, al; cmp al, 'q'; jne wait
                let answer = [0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c, b'q', 0x75, 0xed];
                [&say_r[..], &wait, &answer, &EXIT].concat()
            }
            TinyGuest::Flood(count) => {
                // mov ecx, count; mov dx, 3f8h; mov al, cl; and al, 3fh; add al, '0'; out dx, al; dec ecx; jnz
                let write =
                    [0x66, 0xba, 0xf8, 0x03, 0x88, 0xc8, 0x24, 0x3f, 0x04, 0x30, 0xee, 0x49, 0x75, 0xf6];
                [&[0xb9][..], &count.to_le_bytes(), &write, &EXIT].concat()
            }
        }
    }

    fn bytes(self) -> Vec<u8> {
        let code = self.code();
        let size = CODE_AT + code.len() as u32;
        let mut image = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let halves = |image: &mut Vec<u8>, values: &[u16]| {
            values.iter().for_each(|value| image.extend_from_slice(&value.to_le_bytes()));
        };
        let words = |image: &mut Vec<u8>, values: &[u32]| {
            values.iter().for_each(|value| image.extend_from_slice(&value.to_le_bytes()));
        };
        halves(&mut image, &[2, 3]); // executable, for the 386
        words(&mut image, &[1, BASE + CODE_AT, 52, 0, 0]);
        halves(&mut image, &[52, 32, 1, 0, 0, 0]);
        words(&mut image, &[1, 0, BASE, BASE, size, size, 7, 0x1000]);
        words(&mut image, &[MAGIC, 0, MAGIC.wrapping_neg()]);
        image.extend_from_slice(&code);
        image
    }
}
