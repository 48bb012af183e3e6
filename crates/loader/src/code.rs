//! Code of a kernel or program that is not to be loaded: for translating it ahead of time.

use crate::bzimage::{SetupHeader, is_bzimage};
use crate::elf::{ElfImage, is_elf};
use crate::file::SourceFile;
use crate::{LoadError, payload};
use std::path::Path;

/// Longest file, and longest kernel unpacked.
const LONGEST: u64 = 1 << 30;

/// The executable segments of a 64-bit x86 ELF file, or of the one that is packed in a bzImage: virtual addresses and bytes.
///
/// # Errors
/// When the file cannot be read, is neither of the two, is damaged, or holds 32-bit code.
pub fn code(path: &Path) -> Result<Vec<(u64, Vec<u8>)>, LoadError> {
    let mut image = SourceFile::open(path, "image")?.read_all(LONGEST)?;
    if is_bzimage(&image) {
        let header = SetupHeader::parse(path, &image)?;
        let packed = header.payload.ok_or_else(|| {
            let problem = "it is older than boot protocol 2.08 and does not tell where its kernel is packed";
            LoadError::bzimage(path, problem.to_owned())
        })?;
        image = payload::unpack(path, &image, packed, LONGEST)?;
    }
    if !is_elf(&image) {
        let problem = "it does not begin like ELF; a program, a vmlinux or a bzImage is needed";
        return Err(LoadError::elf(path, problem.to_owned()));
    }
    let elf = ElfImage::parse(path, &image)?;
    if !elf.is_wide() {
        let problem = "its field EI_CLASS at offset 4 says 32-bit (1); 64-bit code (2) is needed";
        return Err(LoadError::elf(path, problem.to_owned()));
    }
    Ok(elf.code().map(|(address, bytes)| (address, bytes.to_vec())).collect())
}
