//! Silicon as the oracle of the software CPU.
//!
//! A [`case::Case`] is a short piece of user-mode code with registers, segments, vector state and two pages of data.
//! An [`executor::Executor`] runs it: [`native::Native`] on the host's processor in a child process, [`guest::Guest`]
//! on an engine, in a small 64-bit guest whose tables put code and data at the same addresses and segments. Both end
//! at the first exception, and `hlt` follows each piece of code, which faults at CPL 3: so registers, flags, segments,
//! vector state, memory, and the exception itself (vector, error code, address) can be compared.
//!
//! What the manuals leave undefined, and processors do differently, is not compared; [`undefined`] names it.

pub mod case;
pub mod compare;
pub mod executor;
mod free;
pub mod generate;
pub mod guest;
pub mod layout;
pub mod minimise;
pub mod native;
pub mod processor;
pub mod random;
pub mod regression;
pub mod run;
mod slot;
pub mod undefined;

/// Linear address of the code page.
pub const CODE_ADDRESS: u64 = 0x1000_0000;
/// Bytes of the code page.
pub const CODE_SIZE: usize = 0x1000;
/// Linear address of the first of the data pages. The pages around them are not mapped.
pub const DATA_ADDRESS: u64 = 0x2000_0000;
/// Bytes of data.
pub const DATA_SIZE: usize = 0x2000;
/// Longest code of a case, in bytes.
pub const CODE_MAX: usize = 128;
/// Bytes of vector state: FXSAVE image, header, high halves of YMM.
pub const XSAVE_SIZE: usize = 832;
