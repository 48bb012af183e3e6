//! Limits on a disk's requests and bytes a second.

use crate::{ByteSize, ConfigError, DiskConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Units a second: the average and, after a slash, the higher rate of a burst. Text: `100`, `100/500`; with `BYTES`
/// the numbers may have units, like `20M/100M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoRate<const BYTES: bool> {
    /// In the long run.
    pub average: u64,
    /// While a burst lasts.
    pub burst: Option<u64>,
}

/// Requests a second.
pub type RequestRate = IoRate<false>;
/// Bytes a second.
pub type ByteRate = IoRate<true>;

impl<const BYTES: bool> FromStr for IoRate<BYTES> {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let example =
            if BYTES { "20M or 20M/100M (bytes a second" } else { "100 or 100/500 (requests a second" };
        let fail =
            || ConfigError::value("Rate", text, format!("a rate like {example}, average/burst) is needed"));
        let number = |text: &str| match BYTES {
            true => text.parse().map(|ByteSize(bytes)| bytes).map_err(|_| fail()),
            false => text.parse::<u64>().map_err(|_| fail()),
        };
        let (average, burst) = match text.split_once('/') {
            Some((average, burst)) => (number(average)?, Some(number(burst)?)),
            None => (number(text)?, None),
        };
        if average == 0 || burst.is_some_and(|burst| burst <= average) {
            return Err(fail());
        }
        Ok(IoRate { average, burst })
    }
}

impl<const BYTES: bool> fmt::Display for IoRate<BYTES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut number = |number: u64| match BYTES {
            true => write!(f, "{}", ByteSize(number)),
            false => write!(f, "{number}"),
        };
        number(self.average)?;
        match self.burst {
            Some(burst) => {
                f.write_str("/")?;
                if BYTES { write!(f, "{}", ByteSize(burst)) } else { write!(f, "{burst}") }
            }
            None => Ok(()),
        }
    }
}

impl<const BYTES: bool> Serialize for IoRate<BYTES> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const BYTES: bool> Deserialize<'de> for IoRate<BYTES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a rate: a number, or a text like \"100/500\"")]
        enum NumberOrText {
            Number(u64),
            Text(String),
        }
        let text = match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(number) => number.to_string(),
            NumberOrText::Text(text) => text,
        };
        text.parse().map_err(de::Error::custom)
    }
}

/// Limits of a disk, or of the group it is in. Text: `NAME=VALUE` with the fields' names, `-` for `_`, separated by
/// commas; `none` for no limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ThrottleConfig {
    /// Requests a second.
    pub iops: Option<RequestRate>,
    /// Reads a second.
    pub iops_rd: Option<RequestRate>,
    /// Writes, discards and requests for zeros a second.
    pub iops_wr: Option<RequestRate>,
    /// Bytes a second.
    pub bps: Option<ByteRate>,
    /// Bytes read a second.
    pub bps_rd: Option<ByteRate>,
    /// Bytes written a second.
    pub bps_wr: Option<ByteRate>,
    /// How long a burst lasts, in seconds, 1 to [`MAX_BURST`]; 1 if not given.
    pub burst: Option<u64>,
    /// Name of a group of disks that share the limits, which one of them states.
    pub group: Option<String>,
}

/// Longest burst in seconds.
pub const MAX_BURST: u64 = 86_400;

const OPTION: &str = "Limit";
/// The options, for messages.
pub(crate) const KNOWN: &str =
    "iops|iops-rd|iops-wr=N[/BURST], bps|bps-rd|bps-wr=SIZE[/BURST], burst=SECONDS";

impl ThrottleConfig {
    /// Takes over one `name=value`; `false` when the name is no limit's.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<bool, ConfigError> {
        match name {
            "iops" => self.iops = Some(value.parse()?),
            "iops-rd" => self.iops_rd = Some(value.parse()?),
            "iops-wr" => self.iops_wr = Some(value.parse()?),
            "bps" => self.bps = Some(value.parse()?),
            "bps-rd" => self.bps_rd = Some(value.parse()?),
            "bps-wr" => self.bps_wr = Some(value.parse()?),
            "burst" => {
                let fail = |_| ConfigError::value(OPTION, value, "burst is a number of seconds");
                self.burst = Some(value.parse().map_err(fail)?);
            }
            "group" => self.group = Some(value.to_owned()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if let Some(burst) = self.burst.filter(|burst| !(1..=MAX_BURST).contains(burst)) {
            let reason = format!("burst=SECONDS is 1 to {MAX_BURST}");
            return Err(ConfigError::value(OPTION, burst.to_string(), reason));
        }
        let bursts =
            [self.iops, self.iops_rd, self.iops_wr].iter().flatten().any(|rate| rate.burst.is_some())
                || [self.bps, self.bps_rd, self.bps_wr].iter().flatten().any(|rate| rate.burst.is_some());
        if self.burst.is_some() && !bursts {
            let reason = "burst=SECONDS needs a limit with a burst rate, like iops=100/500";
            return Err(ConfigError::value(OPTION, "burst", reason));
        }
        if self.group.as_deref() == Some("") {
            return Err(ConfigError::value(OPTION, "group", "a group has a name"));
        }
        Ok(())
    }

    /// States no limit.
    fn is_silent(&self) -> bool {
        ThrottleConfig { group: None, ..self.clone() } == ThrottleConfig::default()
    }
}

/// The disks of a group agree on its limits.
pub(crate) fn validate_groups(disks: &[DiskConfig]) -> Result<(), ConfigError> {
    let mut stated: BTreeMap<&str, &ThrottleConfig> = BTreeMap::new();
    for throttle in disks.iter().map(|disk| &disk.throttle).filter(|throttle| !throttle.is_silent()) {
        let Some(group) = &throttle.group else { continue };
        if stated.insert(group, throttle).is_some_and(|other| other != throttle) {
            let reason = "two disks of the group state different limits; state them with one disk";
            return Err(ConfigError::value("Disk group", group, reason));
        }
    }
    Ok(())
}

impl FromStr for ThrottleConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut limits = ThrottleConfig::default();
        for part in text.split(',').filter(|_| text != "none") {
            let known = match part.split_once('=') {
                Some((name, value)) if name != "group" => limits.set(name, value)?,
                _ => false,
            };
            if !known {
                let reason = format!("{part:?} is no limit; known: {KNOWN}, or none");
                return Err(ConfigError::value(OPTION, text, reason));
            }
        }
        limits.validate()?;
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_from_text_and_files() {
        let limits: ThrottleConfig = "iops=100/500,bps-wr=20M,burst=10".parse().unwrap();
        assert_eq!(limits.iops, Some(IoRate { average: 100, burst: Some(500) }));
        assert_eq!(limits.bps_wr, Some(IoRate { average: 20 << 20, burst: None }));
        let json = serde_json::to_string(&limits).unwrap();
        assert!(json.contains("\"iops\":\"100/500\"") && json.contains("\"bps-wr\":\"20M\""), "{json}");
        assert_eq!(serde_json::from_str::<ThrottleConfig>(&json).unwrap(), limits);
        let number: ThrottleConfig = serde_json::from_str("{\"iops-rd\":7}").unwrap();
        assert_eq!(number.iops_rd, Some(IoRate { average: 7, burst: None }));
        assert_eq!("none".parse::<ThrottleConfig>().unwrap(), ThrottleConfig::default());
    }

    #[test]
    fn wrong_limits_say_what_would_be_right() {
        for (text, words) in [
            ("iops=10M", "100 or 100/500"),
            ("iops=0", "100 or 100/500"),
            ("bps=10M/5M", "20M or 20M/100M"),
            ("bps=", "20M or 20M/100M"),
            ("iops=1/2,burst=0", "1 to 86400"),
            ("iops=1,burst=5", "100/500"),
            ("speed=3", "iops"),
            ("group=a", "no limit"),
            ("", "iops"),
        ] {
            let error = text.parse::<ThrottleConfig>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_group_has_one_set_of_limits() {
        let disks =
            |texts: &[&str]| -> Vec<DiskConfig> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        assert!(
            validate_groups(&disks(&["a,iops=5,group=x", "b,group=x", "c,iops=5,group=x", "d,iops=6"]))
                .is_ok()
        );
        assert!(validate_groups(&disks(&["a,iops=5,group=x", "b,iops=6,group=x"])).is_err());
    }
}
