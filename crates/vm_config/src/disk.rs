//! Disks.

use crate::throttle::KNOWN;
use crate::{ConfigError, ThrottleConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// How a disk's content is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Byte for byte.
    #[default]
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
    /// A LUKS container, version 1 or 2.
    Luks,
    /// VirtualBox.
    Vdi,
    /// VMware.
    Vmdk,
    /// Virtual PC, Hyper-V's first format, Azure; `qemu-img` calls it so.
    Vpc,
    /// Hyper-V.
    Vhdx,
    /// Apple's disk images, which are only read.
    Dmg,
    /// A volume of a pool; the path is that of the pool file, `/`, and the volume's name.
    Pool,
}

impl DiskFormat {
    const ALL: [DiskFormat; 9] = [
        DiskFormat::Raw,
        DiskFormat::Qcow2,
        DiskFormat::Luks,
        DiskFormat::Vdi,
        DiskFormat::Vmdk,
        DiskFormat::Vpc,
        DiskFormat::Vhdx,
        DiskFormat::Dmg,
        DiskFormat::Pool,
    ];

    /// Its name, as `block` knows it.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Luks => "luks",
            DiskFormat::Vdi => "vdi",
            DiskFormat::Vmdk => "vmdk",
            DiskFormat::Vpc => "vpc",
            DiskFormat::Vhdx => "vhdx",
            DiskFormat::Dmg => "dmg",
            DiskFormat::Pool => "pool",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

/// When writes reach the disk of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskCache {
    /// When the guest flushes.
    #[default]
    WriteBack,
    /// With every write.
    WriteThrough,
    /// When the guest flushes, past the host's page cache.
    None,
    /// With every write, past the host's page cache.
    DirectSync,
    /// Some time: flushes are ignored, and a power loss loses the disk.
    Unsafe,
}

impl DiskCache {
    fn named(name: &str) -> Option<Self> {
        match name {
            "writeback" => Some(DiskCache::WriteBack),
            "writethrough" => Some(DiskCache::WriteThrough),
            "none" => Some(DiskCache::None),
            "directsync" => Some(DiskCache::DirectSync),
            "unsafe" => Some(DiskCache::Unsafe),
            _ => None,
        }
    }
}

/// How a disk's requests are done on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskAio {
    /// By io_uring for a file past the host's page cache, if the host lets us; else by the threads of the queues.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// By the threads of the queues, one after the other.
    #[serde(rename = "threads")]
    Threads,
    /// All that are there together by one io_uring submission.
    #[serde(rename = "io_uring")]
    IoUring,
}

impl DiskAio {
    fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(DiskAio::Auto),
            "threads" => Some(DiskAio::Threads),
            "io_uring" => Some(DiskAio::IoUring),
            _ => None,
        }
    }
}

/// A disk. Text: `PATH[,format=raw|qcow2|luks|vdi|vmdk|vpc|vhdx|dmg|pool][,key-file=FILE][,backing=DIR][,cache=writeback|writethrough|none|directsync|unsafe][,aio=auto|threads|io_uring][,discard=on|off]
/// [,readonly=on|off][,serial=TEXT]
/// [,queues=N][,packed=on|off][,rerror=report|ignore|stop|enospc][,werror=…][,commit=on|off][,inject=RULE]`, and the limits of [`ThrottleConfig`]; a comma of the path is written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// File with the content, the URI of an NBD export or of an iSCSI logical unit, or the address of a file on a web server (`http://…`,
    /// `https://…`), which is for reading only.
    pub path: PathBuf,
    /// How it is stored.
    #[serde(default)]
    pub format: DiskFormat,
    /// File whose whole content is the passphrase of an encrypted disk.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Directories that may hold the backing files the image names. Without one, an image with a backing file is
    /// refused.
    #[serde(default)]
    pub backing: Vec<PathBuf>,
    /// When writes reach the host's disk.
    #[serde(default)]
    pub cache: DiskCache,
    /// How requests are done.
    #[serde(default)]
    pub aio: DiskAio,
    /// What the guest discards keeps its space.
    #[serde(default)]
    pub keep_discarded: bool,
    /// The guest cannot write.
    #[serde(default)]
    pub readonly: bool,
    /// Serial number that the guest reads, at most 20 bytes of ASCII; empty for a numbered one.
    #[serde(default)]
    pub serial: String,
    /// Request queues, 1 to [`MAX_DISK_QUEUES`]; without a number, one a processor up to four.
    #[serde(default)]
    pub queues: Option<u16>,
    /// The guest may use packed virtqueues (virtio 1.2, 2.8) instead of split ones.
    #[serde(default)]
    pub packed: bool,
    /// Limits on requests and bytes a second.
    #[serde(default)]
    pub throttle: ThrottleConfig,
    /// What becomes of reads that fail on the host; reported without a choice.
    #[serde(default)]
    pub rerror: Option<DiskErrorAction>,
    /// What becomes of changes and flushes that fail on the host; [`DiskErrorAction::Enospc`] without a choice.
    #[serde(default)]
    pub werror: Option<DiskErrorAction>,
    /// The backing image is opened for writing, so that a job can commit to it.
    #[serde(default)]
    pub commit: bool,
    /// Errors and delays on demand, each a rule of `block::FaultRule`; for trying what a guest makes of them.
    #[serde(default)]
    pub inject: Vec<String>,
}

/// What becomes of requests that fail on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskErrorAction {
    /// The guest sees an I/O error.
    Report,
    /// The guest sees success.
    Ignore,
    /// The machine pauses, and the request is done again when it resumes.
    Stop,
    /// As `Stop` if the host is out of space, else as `Report`.
    Enospc,
}

impl DiskErrorAction {
    fn named(name: &str) -> Result<Self, ConfigError> {
        match name {
            "report" => Ok(DiskErrorAction::Report),
            "ignore" => Ok(DiskErrorAction::Ignore),
            "stop" => Ok(DiskErrorAction::Stop),
            "enospc" => Ok(DiskErrorAction::Enospc),
            other => Err(ConfigError::value(OPTION, other, "known actions: report, ignore, stop, enospc")),
        }
    }
}

/// Most request queues of a disk.
pub const MAX_DISK_QUEUES: u16 = 16;

/// virtio's length of a serial number (virtio 1.2, 5.2.6.1).
const SERIAL_LEN: usize = 20;
const OPTION: &str = "Disk";

impl DiskConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.path.as_os_str().is_empty() {
            return Err(ConfigError::value(OPTION, "", "the path of its file is needed"));
        }
        if self.format == DiskFormat::Luks && self.key_file.is_none() {
            let reason = "an encrypted disk needs key-file=FILE, the file with its passphrase";
            return Err(ConfigError::value(OPTION, self.path.display().to_string(), reason));
        }
        if !matches!(self.format, DiskFormat::Luks | DiskFormat::Qcow2) && self.key_file.is_some() {
            let reason = "key-file is for format=luks and for encrypted images of format=qcow2";
            return Err(ConfigError::value(OPTION, self.path.display().to_string(), reason));
        }
        let serial = &self.serial;
        if serial.len() > SERIAL_LEN || !serial.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = "at most 20 visible ASCII characters are needed";
            return Err(ConfigError::value("Disk serial", serial, reason));
        }
        if let Some(queues) = self.queues.filter(|queues| !(1..=MAX_DISK_QUEUES).contains(queues)) {
            let reason = format!("1 to {MAX_DISK_QUEUES} are possible");
            return Err(ConfigError::value("Disk queues", queues.to_string(), reason));
        }
        self.throttle.validate()
    }
}

/// Splits at single commas; two commas are one of the text.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(char);
        }
    }
    parts
}

/// The options that are no limits, for messages.
const OPTIONS: &str = "format=raw|qcow2|luks|vdi|vmdk|vpc|vhdx|dmg|pool, key-file=FILE, backing=DIR, cache=writeback|writethrough|none|directsync|unsafe, aio=auto|threads|io_uring, \
                       discard=on|off, readonly=on|off, serial=TEXT, queues=N, packed=on|off, rerror|werror=report|ignore|stop|enospc, commit=on|off, inject=RULE";

fn on_off(name: &'static str, value: &str) -> Result<bool, ConfigError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(ConfigError::value(OPTION, other, format!("{name} is on or off"))),
    }
}

impl DiskConfig {
    /// Takes over one `name=value`; `false` when the name is no option's.
    fn set(&mut self, name: &str, value: &str) -> Result<bool, ConfigError> {
        let unknown = |known: String| ConfigError::value(OPTION, value, known);
        match name {
            "format" => {
                let names = DiskFormat::ALL.map(DiskFormat::name).join(", ");
                let error = || unknown(format!("that format is unknown; known: {names}"));
                self.format = DiskFormat::named(value).ok_or_else(error)?;
            }
            "key-file" => self.key_file = Some(value.into()),
            "backing" => self.backing.push(value.into()),
            "cache" => {
                let known = "that cache is unknown; known: writeback, writethrough, none, directsync, unsafe";
                self.cache = DiskCache::named(value).ok_or_else(|| unknown(known.to_owned()))?;
            }
            "aio" => {
                let known = "that way is unknown; known: auto, threads, io_uring";
                self.aio = DiskAio::named(value).ok_or_else(|| unknown(known.to_owned()))?;
            }
            "discard" => {
                self.keep_discarded = match value {
                    "unmap" => false,
                    "ignore" => true,
                    value => !on_off("discard", value)?,
                }
            }
            "readonly" => self.readonly = on_off("readonly", value)?,
            "serial" => value.clone_into(&mut self.serial),
            "queues" => {
                let error = |_| unknown("queues is a number".to_owned());
                self.queues = Some(value.parse().map_err(error)?);
            }
            "packed" => self.packed = on_off("packed", value)?,
            "rerror" => self.rerror = Some(DiskErrorAction::named(value)?),
            "werror" => self.werror = Some(DiskErrorAction::named(value)?),
            "commit" => self.commit = on_off("commit", value)?,
            "inject" => self.inject.push(value.to_owned()),
            limit => return self.throttle.set(limit, value),
        }
        Ok(true)
    }
}

impl FromStr for DiskConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let fail = |reason: String| ConfigError::value(OPTION, text, reason);
        let mut parts = split(text).into_iter();
        let mut disk = DiskConfig { path: parts.next().unwrap_or_default().into(), ..DiskConfig::default() };
        // A raw disk, and one that nobody means to write to.
        disk.readonly = disk.path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("iso"));
        for part in parts {
            let known = match part.split_once('=') {
                Some((name, value)) => disk.set(name, value)?,
                None => false,
            };
            if !known {
                return Err(fail(format!(
                    "{part:?} is not an option of a disk; known: {OPTIONS}, {KNOWN}, group=NAME"
                )));
            }
        }
        // Nobody can.
        disk.readonly |= disk.format == DiskFormat::Dmg;
        disk.validate()?;
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_read_from_text() {
        let disk: DiskConfig = "a,,b.raw,format=raw,readonly=on,serial=S1".parse().unwrap();
        assert_eq!(disk.path, PathBuf::from("a,b.raw"));
        assert!(disk.readonly);
        assert_eq!(disk.serial, "S1");
        assert_eq!((disk.queues, disk.packed), (None, false));
        let disk: DiskConfig =
            "a,format=qcow2,backing=/a,backing=b,cache=unsafe,discard=off".parse().unwrap();
        assert_eq!(
            (disk.format, disk.cache, disk.keep_discarded),
            (DiskFormat::Qcow2, DiskCache::Unsafe, true)
        );
        assert_eq!(disk.backing, ["/a", "b"].map(PathBuf::from));
        let readonly = |text: &str| text.parse::<DiskConfig>().unwrap().readonly;
        assert_eq!(
            ["a.iso", "a.ISO,format=raw", "a.iso,readonly=off", "iso", "a,format=dmg"].map(readonly),
            [true, true, false, false, true]
        );
        let disk: DiskConfig = "a,queues=4,packed=on,cache=none,aio=io_uring".parse().unwrap();
        assert_eq!((disk.queues, disk.packed), (Some(4), true));
        assert_eq!((disk.cache, disk.aio), (DiskCache::None, DiskAio::IoUring));
    }

    #[test]
    fn wrong_disks_say_what_would_be_right() {
        for (text, words) in [
            ("", "path"),
            ("a,format=qcow3", "raw, qcow2"),
            ("a,readonly=yes", "on or off"),
            ("a,cache=all", "known: writeback, writethrough, none, directsync, unsafe"),
            ("a,aio=native", "auto, threads, io_uring"),
            ("a,discard=2", "on or off"),
            ("a,speed=2", "known: format"),
            ("a,queues=0", "1 to 16"),
            ("a,queues=many", "a number"),
            ("a,packed=1", "on or off"),
            ("a,werror=panic", "report, ignore, stop, enospc"),
            ("a,serial=123456789012345678901", "at most 20"),
        ] {
            let error = text.parse::<DiskConfig>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
