//! Code that changes, and code that runs once.

use crate::{Row, Work, sys};

/// The rows of this group.
pub fn rows() -> Vec<Row> {
    let row = |name, prepare| Row { name, group: "code", prepare };
    vec![row("self-modifying", || Some(self_modifying())), row("cold", || Some(cold()))]
}

type Function = extern "C" fn() -> u64;

/// `mov eax, imm32; ret`, its constant rewritten before every call.
fn self_modifying() -> Work {
    let code = sys::map(sys::PAGE, sys::READ | sys::WRITE | sys::EXECUTE);
    Box::new(move || {
        let mut sum = 0;
        for value in 0..60_000_u32 {
            let [a, b, c, d] = value.to_le_bytes();
            // SAFETY: the page is ours and executable; the six bytes are one whole function.
            unsafe {
                std::ptr::copy_nonoverlapping([0xb8, a, b, c, d, 0xc3].as_ptr(), code, 6);
                sum += std::mem::transmute::<*mut u8, Function>(code)();
            }
        }
        sum
    })
}

/// Functions of 64 different additions each, every one called once.
fn cold() -> Work {
    const FUNCTIONS: usize = 4096;
    const ADDITIONS: usize = 64;
    const SIZE: usize = 2 + ADDITIONS * 6 + 1;
    let length = (FUNCTIONS * SIZE).next_multiple_of(sys::PAGE);
    Box::new(move || {
        let code = sys::map(length, sys::READ | sys::WRITE | sys::EXECUTE);
        let mut text = Vec::with_capacity(length);
        for function in 0..FUNCTIONS {
            text.extend_from_slice(&[0x31, 0xc0]); // xor eax, eax
            for addition in 0..ADDITIONS {
                // lea eax, [rax + disp32]
                text.extend_from_slice(&[0x8d, 0x80]);
                text.extend_from_slice(&((function * ADDITIONS + addition) as u32).to_le_bytes());
            }
            text.push(0xc3);
        }
        let mut sum = 0;
        // SAFETY: the text fits the mapping, and every function in it is whole.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), code, text.len());
            for function in 0..FUNCTIONS {
                sum += std::mem::transmute::<*mut u8, Function>(code.add(function * SIZE))();
            }
            sys::munmap(code.cast(), length);
        }
        sum
    })
}
