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

/// A disk. Text: `PATH[,format=raw][,readonly=on|off][,serial=TEXT]`; a comma of the path is written twice.
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
}

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
                _ => {
                    let known = "known: format=raw, readonly=on|off, serial=TEXT";
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
    }

    #[test]
    fn wrong_disks_say_what_would_be_right() {
        for (text, words) in [
            ("", "path"),
            ("a,format=qcow2", "raw"),
            ("a,readonly=yes", "on or off"),
            ("a,cache=none", "known: format"),
            ("a,serial=123456789012345678901", "at most 20"),
        ] {
            let error = text.parse::<DiskConfig>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
