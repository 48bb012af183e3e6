//! Silicon as the oracle of the software CPU.
//!
//! A [`case::Case`] is a short piece of user-mode code with registers, vector state and two pages of data.
//! [`native::Native`] executes it on the host's processor in a child process; [`guest::Guest`] executes it on an
//! engine, in a small 64-bit guest whose page tables put code and data at the same addresses. Both end at
//! the first fault, and each piece of code is followed by `hlt`, which faults at CPL 3: so registers, flags,
//! vector state, memory, and the fault itself (vector, error code, address) can be compared.
//!
//! What the manuals leave undefined is not compared: flags that an instruction leaves undefined (a case in
//! which a later instruction reads such a flag is not generated), and the x87 instruction and data pointers.

pub mod case;
pub mod compare;
pub mod generate;
pub mod guest;
pub mod native;
pub mod random;
pub mod run;

/// Linear address of the code page.
pub const CODE_ADDRESS: u64 = 0x1000_0000;
/// Linear address of the first of the data pages. The pages around them are not mapped.
pub const DATA_ADDRESS: u64 = 0x2000_0000;
/// Bytes of data.
pub const DATA_SIZE: usize = 0x2000;
/// Longest code of a case, in bytes.
pub const CODE_MAX: usize = 128;
/// Bytes of vector state: FXSAVE image, header, high halves of YMM.
pub const XSAVE_SIZE: usize = 832;
