//! Disks.

use crate::ConfigError;
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
}

/// A disk. Text: `PATH[,format=raw][,readonly=on|off][,serial=TEXT]
/// [,queues=N][,packed=on|off]`; a comma of the path is written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// File with the content.
    pub path: PathBuf,
    /// How it is stored.
    #[serde(default)]
    pub format: DiskFormat,
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
        let serial = &self.serial;
        if serial.len() > SERIAL_LEN || !serial.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = "at most 20 visible ASCII characters are needed";
            return Err(ConfigError::value("Disk serial", serial, reason));
        }
        if let Some(queues) = self.queues.filter(|queues| !(1..=MAX_DISK_QUEUES).contains(queues)) {
            let reason = format!("1 to {MAX_DISK_QUEUES} are possible");
            return Err(ConfigError::value("Disk queues", queues.to_string(), reason));
        }
        Ok(())
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

impl FromStr for DiskConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let fail = |reason: String| ConfigError::value(OPTION, text, reason);
        let mut parts = split(text).into_iter();
        let mut disk = DiskConfig { path: parts.next().unwrap_or_default().into(), ..DiskConfig::default() };
        for part in parts {
            match part.split_once('=') {
                Some(("format", "raw")) => disk.format = DiskFormat::Raw,
                Some(("format", other)) => {
                    return Err(fail(format!("format {other:?} is unknown; known: raw")));
                }
                Some(("readonly", "on")) => disk.readonly = true,
                Some(("readonly", "off")) => disk.readonly = false,
                Some(("readonly", other)) => {
                    return Err(fail(format!("readonly is on or off, not {other:?}")));
                }
                Some(("serial", serial)) => disk.serial = serial.to_owned(),
                Some(("queues", number)) => {
                    let parsed = number.parse();
                    disk.queues =
                        Some(parsed.map_err(|_| fail(format!("queues is a number, not {number:?}")))?);
                }
                Some(("packed", "on")) => disk.packed = true,
                Some(("packed", "off")) => disk.packed = false,
                Some(("packed", other)) => return Err(fail(format!("packed is on or off, not {other:?}"))),
                _ => {
                    let known = "known: format=raw, readonly=on|off, serial=TEXT, queues=N, packed=on|off";
                    return Err(fail(format!("{part:?} is not an option of a disk; {known}")));
                }
            }
        }
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
        let disk: DiskConfig = "a,queues=4,packed=on".parse().unwrap();
        assert_eq!((disk.queues, disk.packed), (Some(4), true));
    }

    #[test]
    fn wrong_disks_say_what_would_be_right() {
        for (text, words) in [
            ("", "path"),
            ("a,format=qcow2", "raw"),
            ("a,readonly=yes", "on or off"),
            ("a,cache=none", "known: format"),
            ("a,queues=0", "1 to 16"),
            ("a,queues=many", "a number"),
            ("a,packed=1", "on or off"),
            ("a,serial=123456789012345678901", "at most 20"),
        ] {
            let error = text.parse::<DiskConfig>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
