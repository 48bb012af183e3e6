//! How images are opened and made.

use crate::BlockError;
use crate::image::DiskImage;
use crate::luks::KeyLimits;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which files an image may refer to (backing files, extents, external data).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BackingPolicy {
    /// None: an image that refers to a file is not opened.
    #[default]
    Refuse,
    /// The image is opened without its backing file: what that would give reads as zeros. External data files and
    /// extents are refused.
    Ignore,
    /// Files inside these directories, after all symbolic links are followed.
    Inside(Vec<PathBuf>),
    /// Every file. For tools whose user names the image and its chain.
    Anywhere,
}

impl BackingPolicy {
    /// Files beside the image itself.
    pub fn beside(image: &Path) -> Self {
        let folder = image.parent().filter(|folder| !folder.as_os_str().is_empty());
        BackingPolicy::Inside(vec![folder.unwrap_or(Path::new(".")).to_owned()])
    }
}

/// What is done so that writes survive, and where data are kept meanwhile. The names are those of QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// The host's page cache; a flush writes it out.
    #[default]
    WriteBack,
    /// The host's page cache; every write is flushed.
    WriteThrough,
    /// Past the host's page cache (`O_DIRECT`); a flush makes the disk write its own cache.
    None,
    /// Past the host's page cache; every write is flushed.
    DirectSync,
    /// The host's page cache; flushes hand everything to the host and do not wait for its disk. A power loss loses the
    /// image.
    Unsafe,
}

impl CacheMode {
    /// All of them.
    pub const ALL: [CacheMode; 5] =
        [Self::WriteBack, Self::WriteThrough, Self::None, Self::DirectSync, Self::Unsafe];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            CacheMode::WriteBack => "writeback",
            CacheMode::WriteThrough => "writethrough",
            CacheMode::None => "none",
            CacheMode::DirectSync => "directsync",
            CacheMode::Unsafe => "unsafe",
        }
    }

    /// From its name.
    ///
    /// # Errors
    /// When there is no such mode.
    pub fn named(name: &str) -> Result<Self, BlockError> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| {
            let known = Self::ALL.map(CacheMode::name).join(", ");
            BlockError::option("cache", format!("{name:?} is unknown; known: {known}"))
        })
    }

    /// Data do not stay in the host's page cache.
    pub fn bypasses_host(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::DirectSync)
    }

    /// A write is complete when it is on the disk.
    pub fn flushes_writes(self) -> bool {
        matches!(self, CacheMode::WriteThrough | CacheMode::DirectSync)
    }
}

/// How requests to a file are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// By io_uring where it is the faster way (a file past the page cache) and the host lets us; else as `Threads`.
    #[default]
    Auto,
    /// Each by a system call of the thread that wants it.
    Threads,
    /// Several that are there together by one io_uring submission; an error where the host refuses it.
    IoUring,
}

impl Aio {
    /// From its name: `auto`, `threads` or `io_uring`.
    ///
    /// # Errors
    /// When there is no such way.
    pub fn named(name: &str) -> Result<Self, BlockError> {
        match name {
            "auto" => Ok(Aio::Auto),
            "threads" => Ok(Aio::Threads),
            "io_uring" => Ok(Aio::IoUring),
            _ => {
                Err(BlockError::option("aio", format!("{name:?} is unknown; known: auto, threads, io_uring")))
            }
        }
    }
}

/// An open image that shall be the backing file of one that is being opened.
#[derive(Clone)]
pub struct OpenedBacking(pub Arc<dyn DiskImage>);

impl std::fmt::Debug for OpenedBacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OpenedBacking").field(&self.0.size()).finish()
    }
}

/// How an image is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Writes are refused, the file is opened for reading.
    pub read_only: bool,
    /// Files it may refer to.
    pub backing: BackingPolicy,
    /// Passphrase of an encrypted image.
    pub passphrase: Option<Arc<[u8]>>,
    /// What an encrypted image may make the try of that passphrase take.
    pub key_limits: KeyLimits,
    /// Opens an image for its check only: nothing is repaired while it is opened, and the corrupt bit is no reason
    /// to refuse.
    pub for_check: bool,
    /// Discards from above are ignored when set.
    pub keep_discarded: bool,
    /// How the files are opened: those of backing images as well. Flushes after every write are no matter of a file:
    /// [`crate::with_cache_mode`].
    pub cache: CacheMode,
    /// How requests to the files are done.
    pub aio: Aio,
    /// Opens an image that another process has open; what is read may be torn.
    pub ignore_locks: bool,
    /// Bytes of memory for caches of metadata; `None`: as much as covers the disk, at most 32 MiB.
    pub metadata_cache: Option<u64>,
    /// The backing file is opened for writing, so that it can be committed to; those below it are not.
    pub write_backing: bool,
    /// What the image's backing file is, opened already; the name in the image is not looked at.
    pub opened_backing: Option<OpenedBacking>,
    /// Images that lead here (top first): a chain that meets one again is a loop.
    pub chain: Vec<PathBuf>,
}

impl OpenOptions {
    /// Reading only, no files beside it.
    pub fn reading() -> Self {
        OpenOptions { read_only: true, ..OpenOptions::default() }
    }
}

/// Longest passphrase, in bytes: as long as the key files that `cryptsetup` takes.
const KEY_FILE_MAX: u64 = 8 << 20;

/// The passphrase that is the whole content of a file, the end of the last line included.
///
/// # Errors
/// When the file cannot be read, is empty, or is longer than 8 MiB.
pub fn read_key_file(path: &Path) -> Result<Arc<[u8]>, BlockError> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(KEY_FILE_MAX + 1).read_to_end(&mut bytes))
        .map_err(|source| BlockError::io(path, "reading the passphrase", source))?;
    if bytes.is_empty() || bytes.len() as u64 > KEY_FILE_MAX {
        return Err(BlockError::option(
            "key file",
            format!("{} is empty or more than 8 MiB", path.display()),
        ));
    }
    Ok(bytes.into())
}

/// Space that is taken when an image is made or grown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// None: thin.
    #[default]
    Off,
    /// Only metadata.
    Metadata,
    /// Blocks are reserved and not written: thick, lazily zeroed.
    Falloc,
    /// Zeros are written: thick, eagerly zeroed.
    Full,
}

impl Preallocation {
    /// From its name; `thin`, `lazy` and `eager` are understood as well.
    pub fn named(name: &str) -> Result<Self, BlockError> {
        match name {
            "off" | "thin" => Ok(Preallocation::Off),
            "metadata" => Ok(Preallocation::Metadata),
            "falloc" | "lazy" => Ok(Preallocation::Falloc),
            "full" | "eager" => Ok(Preallocation::Full),
            other => Err(BlockError::option(
                "preallocation",
                format!("{other:?} is unknown; known: off (thin), metadata, falloc (lazy), full (eager)"),
            )),
        }
    }
}

/// What a new image shall be.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Size of the disk in bytes, a multiple of 512.
    pub size: u64,
    /// Backing file as it shall be written into the image, and its format's name.
    pub backing: Option<(String, String)>,
    /// The format's own options (`-o name=value`). A name the format does not know is an error.
    pub options: BTreeMap<String, String>,
    /// Passphrase of an encrypted image.
    pub passphrase: Option<Arc<[u8]>>,
    /// [`CacheMode::Unsafe`]: the new image may be lost with the host's power; else it is on its disk when it is made.
    pub cache: CacheMode,
}

impl CreateOptions {
    /// Takes an option out; what is left when all known ones are taken is unknown.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.options.remove(name)
    }

    /// Takes an on/off option out.
    pub fn take_switch(&mut self, name: &str) -> Result<Option<bool>, BlockError> {
        self.take(name).map(|value| switch(name, &value)).transpose()
    }

    /// Takes a number of bytes out (`64k`, `2M`).
    pub fn take_bytes(&mut self, name: &str) -> Result<Option<u64>, BlockError> {
        self.take(name).map(|value| parse_size(&value).map_err(|e| BlockError::option(name, e))).transpose()
    }

    /// Refuses what nobody took.
    pub fn finish(&self, format: &str, known: &[(&str, &str)]) -> Result<(), BlockError> {
        let Some(name) = self.options.keys().next() else { return Ok(()) };
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let problem = format!("{name:?} is no option of {format}; known: {}", names.join(", "));
        Err(BlockError::option("-o", problem))
    }
}

/// `on`/`off`, also in the other usual spellings.
pub fn switch(name: &str, value: &str) -> Result<bool, BlockError> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        other => Err(BlockError::option(name, format!("{other:?} is neither on nor off"))),
    }
}

/// A number of bytes: decimal with an optional suffix b, k, M, G, T, P, E (powers of 1024), or hexadecimal; a decimal
/// fraction is allowed before a suffix.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; examples: 65536, 64k, 1.5G");
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).map_err(|_| wrong());
    }
    let (number, shift) = match text.char_indices().next_back() {
        Some((at, last)) if last.is_ascii_alphabetic() => {
            let shift = "bkmgtpe".find(last.to_ascii_lowercase()).ok_or_else(wrong)? as u32 * 10;
            (&text[..at], shift)
        }
        _ => (text, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty()
        || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        || fraction.len() > 18
    {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let whole = whole.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more than 16 EiB"))?;
    if fraction.is_empty() {
        return Ok(whole);
    }
    let digits: u128 = fraction.parse().map_err(|_| wrong())?;
    let part = (digits << shift) / 10_u128.pow(fraction.len() as u32);
    whole.checked_add(part as u64).ok_or_else(wrong)
}
