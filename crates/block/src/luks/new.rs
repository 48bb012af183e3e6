//! New containers.

use super::cipher::Cipher;
use super::image::LuksImage;
use super::keys::{self, Hash};
use super::luks1::Luks1;
use super::luks2::Luks2;
use super::sectors::{EncryptedFile, Section};
use super::{Kdf, MAGIC, needs_passphrase};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::format::Driver;
use crate::image::{DiskImage, ImageResult};
use crate::options::{CreateOptions, OpenOptions};
use crate::raw::RawFile;
use std::path::Path;
use std::sync::Arc;

/// The luks format.
#[derive(Debug)]
pub(crate) struct LuksFormat;

const OPTIONS: &[(&str, &str)] = &[
    ("version", "1 (default) or 2"),
    ("cipher-alg", "aes-256 (default) or aes-128"),
    ("cipher-mode", "xts (default) or cbc"),
    ("ivgen-alg", "plain64 (default), plain, or essiv"),
    ("ivgen-hash-alg", "hash of essiv: sha256 (default)"),
    ("hash-alg", "sha256 (default), sha1 or sha512"),
    ("iter-time", "milliseconds a passphrase takes to be tried, with pbkdf2; 1000"),
    ("kdf", "pbkdf2 (version 1), argon2id (default of version 2)"),
    ("memory", "bytes that argon2id takes; 256M"),
    ("sector_size", "bytes that are encrypted together: 512 (default); in version 2 also 1024, 2048 or 4096"),
];

/// What a new container shall be.
pub(crate) struct NewContainer {
    two: bool,
    cipher: String,
    key_len: usize,
    hash: Hash,
    kdf: Kdf,
    sector: u32,
    passphrase: Option<Arc<[u8]>>,
}

fn cipher(options: &mut CreateOptions) -> ImageResult<(String, usize)> {
    let bytes = match options.take("cipher-alg").as_deref() {
        None | Some("aes-256") => 32,
        Some("aes-128") => 16,
        Some(other) => {
            return Err(BlockError::option(
                "cipher-alg",
                format!("{other:?} is neither aes-128 nor aes-256"),
            ));
        }
    };
    let (mode, bytes) = match options.take("cipher-mode").as_deref() {
        None | Some("xts") => ("xts", 2 * bytes),
        Some("cbc") => ("cbc", bytes),
        Some(other) => {
            return Err(BlockError::option("cipher-mode", format!("{other:?} is neither xts nor cbc")));
        }
    };
    let hash = options.take("ivgen-hash-alg");
    let vector = match options.take("ivgen-alg").as_deref() {
        None | Some("plain64") => "plain64".to_owned(),
        Some("plain") => "plain".to_owned(),
        Some("essiv") => format!("essiv:{}", hash.as_deref().unwrap_or("sha256")),
        Some(other) => {
            return Err(BlockError::option(
                "ivgen-alg",
                format!("{other:?} is none of plain64, plain, essiv"),
            ));
        }
    };
    Ok((format!("aes-{mode}-{vector}"), bytes))
}

impl NewContainer {
    /// Takes what options say.
    pub fn plan(options: &mut CreateOptions) -> ImageResult<Self> {
        let two = match options.take("version").as_deref() {
            None | Some("1") => false,
            Some("2") => true,
            Some(other) => {
                return Err(BlockError::option("version", format!("{other:?} is neither 1 nor 2")));
            }
        };
        let (cipher, key_len) = cipher(options)?;
        let name = options.take("hash-alg").unwrap_or_else(|| "sha256".to_owned());
        let hash = Hash::named(&name).ok_or_else(|| {
            BlockError::option("hash-alg", format!("{name:?} is unknown; known: sha1, sha256, sha512"))
        })?;
        let kdf = kdf(options, two)?;
        let sector = options.take_bytes("sector_size")?.unwrap_or(512);
        if !matches!(sector, 512 | 1024 | 2048 | 4096) || sector != 512 && !two {
            let problem = format!("{sector} is not possible; only version 2 has more than 512");
            return Err(BlockError::option("sector_size", problem));
        }
        let passphrase = options.passphrase.clone();
        Ok(NewContainer { two, cipher, key_len, hash, kdf, sector: sector as u32, passphrase })
    }

    /// Finds what is wrong with the options before any file is touched.
    pub fn check(&self, path: &Path) -> ImageResult<()> {
        if self.two {
            return Err(BlockError::option("encrypt.version", "qcow2 images have version 1"));
        }
        self.key(path).map(|_| ())
    }

    /// Makes the key; an error is one of the options, before any file is touched.
    fn key(&self, path: &Path) -> ImageResult<(Vec<u8>, Arc<[u8]>)> {
        let passphrase = self.passphrase.clone().ok_or_else(|| needs_passphrase(path))?;
        let key =
            keys::secret(self.key_len).map_err(|source| BlockError::io(path, "making the key", source))?;
        Cipher::new(&self.cipher, &key, self.sector as usize)
            .map_err(|what| BlockError::unsupported(path, what))?;
        Ok((key, passphrase))
    }

    /// Writes the header and its first key slot; returns where the content begins.
    fn write(&self, file: &dyn BlockBackend, path: &Path, key: &[u8], passphrase: &[u8]) -> ImageResult<u64> {
        let failed = |source| BlockError::io(path, "making the key", source);
        let milliseconds = self.kdf.milliseconds();
        if self.two {
            let mut header =
                Luks2::new(&self.cipher, self.hash, key, self.sector, milliseconds).map_err(failed)?;
            header.write(file, path)?;
            header.add(file, path, key, passphrase, &self.kdf)?;
            Ok(header.lock(path)?.start)
        } else {
            let mut header = Luks1::new(&self.cipher, self.hash, key, milliseconds).map_err(failed)?;
            header.write(file, path)?;
            header.add(file, path, key, passphrase, milliseconds)?;
            Ok(header.lock().start)
        }
    }

    /// Bytes that [`NewContainer::write_inside`] takes: those of version 1, the only one there.
    pub fn header_len(&self) -> u64 {
        Luks1::header_len(self.key_len)
    }

    /// Writes the header at `start` of a qcow2 image, and returns what encrypts `data`.
    pub fn write_inside(
        &self,
        file: &dyn BlockBackend,
        start: u64,
        data: Arc<dyn BlockBackend>,
        path: &Path,
    ) -> ImageResult<EncryptedFile> {
        let (key, passphrase) = self.key(path)?;
        let section = Section { file, start, len: self.header_len() };
        self.write(&section, path, &key, &passphrase)?;
        super::open_inside(
            file,
            (start, section.len),
            data,
            path,
            Some(&passphrase),
            keys::KeyLimits::default(),
        )
    }
}

fn kdf(options: &mut CreateOptions, two: bool) -> ImageResult<Kdf> {
    let time = options.take_bytes("iter-time")?;
    let memory = options.take_bytes("memory")?.unwrap_or(256 << 20);
    if !(64 << 10..=1 << 30).contains(&memory) {
        return Err(BlockError::option("memory", "64k to 1G are possible"));
    }
    match (options.take("kdf").as_deref(), two) {
        (None | Some("argon2id"), true) if time.is_none() => {
            Ok(Kdf::Argon2id { time: 4, memory_kib: (memory >> 10) as u32, lanes: 4 })
        }
        (None | Some("pbkdf2"), _) => match time.unwrap_or(1000) {
            time @ 1..=10_000 => Ok(Kdf::Pbkdf2(time as u32)),
            _ => Err(BlockError::option("iter-time", "1 to 10000 milliseconds are possible")),
        },
        (Some(other), _) => {
            let problem = format!(
                "{other:?} is not possible here: pbkdf2, or argon2id with version=2 and without iter-time"
            );
            Err(BlockError::option("kdf", problem))
        }
    }
}

impl Driver for LuksFormat {
    fn name(&self) -> &'static str {
        "luks"
    }

    fn options(&self) -> &'static [(&'static str, &'static str)] {
        OPTIONS
    }

    fn probe(&self, head: &[u8], _size: u64) -> bool {
        head.starts_with(MAGIC)
    }

    fn open(
        &self,
        file: Arc<dyn BlockBackend>,
        path: &Path,
        options: &OpenOptions,
    ) -> ImageResult<Arc<dyn DiskImage>> {
        LuksImage::open(file, path, options).map(|image| Arc::new(image) as Arc<dyn DiskImage>)
    }

    fn create(&self, path: &Path, mut options: CreateOptions) -> ImageResult<()> {
        let new = NewContainer::plan(&mut options)?;
        options.finish("luks", OPTIONS)?;
        if options.backing.is_some() {
            return Err(BlockError::unsupported(path, "a backing file, which luks containers cannot have"));
        }
        let (key, passphrase) = new.key(path)?;
        if !options.size.is_multiple_of(new.sector.into()) {
            let problem = format!("{} is no multiple of {}", options.size, new.sector);
            return Err(BlockError::option("size", problem));
        }
        let file = RawFile::create_storage(path, options.cache)?;
        let start = new.write(&file, path, &key, &passphrase)?;
        file.resize(start.saturating_add(options.size))
            .and_then(|()| file.flush())
            .map_err(|source| BlockError::io(path, "taking the disk's space", source))
    }
}
