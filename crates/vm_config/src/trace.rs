//! What is traced, and where to.

use crate::ConfigError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a trace begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceFrom {
    /// At a linear address. Text: `0x…`.
    Address(u64),
    /// After so many instructions of a processor.
    Count(u64),
}

/// A trace of executed instructions. Text: `FILE[,from=0xADDRESS|COUNT][,count=N]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceConfig {
    /// The file, which must not be there.
    pub path: PathBuf,
    /// Where it begins.
    pub from: TraceFrom,
    /// Instructions at most.
    pub count: u64,
}

/// Instructions where nobody says how many.
const DEFAULT_COUNT: u64 = 1_000_000;

fn from(text: &str) -> Option<TraceFrom> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok().map(TraceFrom::Address),
        None => text.parse().ok().map(TraceFrom::Count),
    }
}

impl FromStr for TraceConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refuse = |found: &str, reason: &str| Err(ConfigError::value("Trace", found, reason));
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return refuse(text, "it begins with the name of a file");
        }
        let mut config = TraceConfig { path: path.into(), from: TraceFrom::Count(0), count: DEFAULT_COUNT };
        for part in parts {
            match part.split_once('=') {
                Some(("from", value)) => match from(value) {
                    Some(from) => config.from = from,
                    None => {
                        return refuse(
                            part,
                            "an address like 0xffffffff81000000 or a number of instructions is needed",
                        );
                    }
                },
                Some(("count", value)) => match value.parse() {
                    Ok(count) if count > 0 => config.count = count,
                    _ => return refuse(part, "a number of instructions, at least 1, is needed"),
                },
                _ => return refuse(part, "known are from=0xADDRESS, from=COUNT and count=N"),
            }
        }
        Ok(config)
    }
}

impl fmt::Display for TraceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, from, count } = self;
        write!(f, "{},from=", path.display())?;
        match from {
            TraceFrom::Address(address) => write!(f, "{address:#x}")?,
            TraceFrom::Count(count) => write!(f, "{count}")?,
        }
        write!(f, ",count={count}")
    }
}

impl TryFrom<String> for TraceConfig {
    type Error = ConfigError;
    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<TraceConfig> for String {
    fn from(trace: TraceConfig) -> String {
        trace.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_back() {
        for (text, from, count) in [
            ("a.trace", TraceFrom::Count(0), DEFAULT_COUNT),
            ("a.trace,from=77", TraceFrom::Count(77), DEFAULT_COUNT),
            ("a.trace,count=5,from=0xffffffff81000000", TraceFrom::Address(0xffff_ffff_8100_0000), 5),
        ] {
            let config: TraceConfig = text.parse().unwrap();
            assert_eq!(config, TraceConfig { path: "a.trace".into(), from, count });
            assert_eq!(config.to_string().parse::<TraceConfig>().unwrap(), config);
        }
    }

    #[test]
    fn what_is_no_trace_is_refused_with_what_is_wrong() {
        for (text, wrong) in [
            (",count=1", ",count=1"),
            ("a,from=start", "from=start"),
            ("a,from=0xzz", "from=0xzz"),
            ("a,count=0", "count=0"),
            ("a,to=7", "to=7"),
        ] {
            let error = text.parse::<TraceConfig>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
