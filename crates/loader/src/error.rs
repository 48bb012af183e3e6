//! Refusals.

use guest_memory::MemoryError;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a guest cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file cannot be opened or read.
    #[error("{role} {} cannot be read", .path.display())]
    Read {
        /// What the file is for.
        role: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A directory, a pipe, an empty file.
    #[error("{role} {} is {found}; a regular file with content is needed", .path.display())]
    NotAFile {
        /// What the file is for.
        role: &'static str,
        /// Which file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The kernel file is larger than RAM.
    #[error("{role} {} has {size} bytes, more than the guest's {memory} bytes of memory; give it more memory or the right file", .path.display())]
    LargerThanMemory {
        /// What the file is for.
        role: &'static str,
        /// Which file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// RAM.
        memory: u64,
    },
    /// No known format.
    #[error("{} is not a kernel: it is {found}; a Linux bzImage, an ELF file with a PVH note, or a multiboot image is needed", .path.display())]
    NotAKernel {
        /// Which file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// A bzImage whose header or content is wrong.
    #[error("{} is not a usable bzImage: {problem}", .path.display())]
    BzImage {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// An ELF file whose headers are wrong.
    #[error("{} is not a usable ELF kernel: {problem}", .path.display())]
    Elf {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// An ELF file that offers no way in.
    #[error("{} is an ELF file with neither a PVH note nor a multiboot header; a kernel built with CONFIG_PVH, a multiboot kernel or a bzImage is needed", .path.display())]
    ElfWithoutEntry {
        /// Which file.
        path: PathBuf,
    },
    /// A multiboot image whose header is wrong or asks for what is not offered.
    #[error("{} is not a usable multiboot image: {problem}", .path.display())]
    Multiboot {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The protocol asked for is not offered by the file.
    #[error("{} has no {protocol} entry; leave the choice of the entry to Vireo, or use another kernel", .path.display())]
    NoEntry {
        /// Which file.
        path: PathBuf,
        /// The protocol's name.
        protocol: &'static str,
    },
    /// The kernel does not fit.
    #[error("{} needs guest memory up to {needed:#x}, but memory ends at {end:#x}; give the guest at least {} MiB", .path.display(), .needed.div_ceil(1 << 20))]
    KernelTooLarge {
        /// Which file.
        path: PathBuf,
        /// Address it needs RAM to, in bytes.
        needed: u64,
        /// Where low RAM ends.
        end: u64,
    },
    /// The initrd does not fit.
    #[error("Initrd {} has {size} bytes, but beside the kernel only {room} of the guest's {memory} bytes of memory can hold it; give the guest more memory", .path.display())]
    InitrdTooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// Bytes there are for it.
        room: u64,
        /// All RAM.
        memory: u64,
    },
    /// The command line is too long for the kernel.
    #[error("The kernel command line has {len} bytes; this kernel takes at most {limit}")]
    CommandLineTooLong {
        /// Its length.
        len: usize,
        /// The most the kernel takes.
        limit: usize,
    },
    /// A zero byte in the command line.
    #[error("The kernel command line holds a zero byte, which would end it there; remove it")]
    CommandLineZero,
    /// The guest has less RAM than the tables need.
    #[error("The guest has {size} bytes of memory; at least {needed} are needed")]
    MemoryTooSmall {
        /// The least.
        needed: u64,
        /// What there is.
        size: u64,
    },
    /// The tables do not fit into their place.
    #[error("The firmware tables need {len} bytes, for which there is no room below 1 MiB")]
    TablesTooLarge {
        /// Their size.
        len: u64,
    },
    /// RAM refused an access.
    #[error("The guest's memory cannot take what is to be loaded")]
    Memory(#[from] MemoryError),
}

impl LoadError {
    pub(crate) fn bzimage(path: &Path, problem: String) -> Self {
        LoadError::BzImage { path: path.to_owned(), problem }
    }
    pub(crate) fn elf(path: &Path, problem: String) -> Self {
        LoadError::Elf { path: path.to_owned(), problem }
    }
    pub(crate) fn multiboot(path: &Path, problem: String) -> Self {
        LoadError::Multiboot { path: path.to_owned(), problem }
    }

    /// Guesses what a file is that no loader knows.
    pub(crate) fn not_a_kernel(path: &Path, image: &[u8]) -> Self {
        let start = &image[..image.len().min(512)];
        let found = if start.starts_with(&[0x1f, 0x8b]) {
            "gzip data".to_owned()
        } else if start.starts_with(b"QFI\xfb") {
            "a qcow2 disk image".to_owned()
        } else if start.starts_with(b"070701") {
            "a cpio archive (an initrd?)".to_owned()
        } else if start.starts_with(b"MZ") {
            "a PE or DOS program without a Linux setup header".to_owned()
        } else if start.iter().all(|&byte| byte == 0) {
            "full of zeros".to_owned()
        } else if start.iter().all(|&byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
            "a text file".to_owned()
        } else {
            "a file of unknown format".to_owned()
        };
        LoadError::NotAKernel { path: path.to_owned(), found }
    }
}
