//! The disks of a running machine, for whoever asks by the control socket.

use crate::control::protocol::{Command, Refusal, RefusalKind, Reply};
use block::{BlockBackend, Limits, Rate, Throttled};
use machine::DiskLink;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use vm_config::{DiskConfig, IoRate, ThrottleConfig};

/// What is told of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskReport {
    /// Its name: `disk0` and so on, in the order of the configuration.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
    /// Bytes that the guest sees.
    pub size: u64,
    /// The guest cannot write.
    pub read_only: bool,
    /// Reads that failed on the host.
    #[serde(default)]
    pub read_errors: u64,
    /// Changes and flushes that failed on the host.
    #[serde(default)]
    pub write_errors: u64,
    /// Limits of the disk and its group.
    pub limits: Limits,
    /// The group, if the disk shares its limits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<String>,
}

struct RunningDisk {
    name: String,
    config: DiskConfig,
    throttled: Arc<Throttled>,
    link: Arc<DiskLink>,
}

/// All disks of a machine, in order.
#[derive(Default)]
pub struct RunningDisks(Vec<RunningDisk>);

impl RunningDisks {
    pub(super) fn add(&mut self, config: &DiskConfig, throttled: Arc<Throttled>, link: Arc<DiskLink>) {
        let name = format!("disk{}", self.0.len());
        self.0.push(RunningDisk { name, config: config.clone(), throttled, link });
    }

    /// While this holds, no request waits for its limits.
    pub fn drain(&self, begin: bool) {
        self.0.iter().for_each(|disk| disk.throttled.drain(begin));
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// The first disk's that fails; the others are flushed nevertheless.
    pub fn flush(&self) -> std::io::Result<()> {
        let writable = self.0.iter().filter(|disk| !disk.throttled.is_read_only());
        writable.map(|disk| disk.throttled.flush()).fold(Ok(()), std::io::Result::and)
    }

    /// Does what a client asks.
    pub fn obey(&self, command: Command) -> Reply {
        match command {
            Command::Throttle { disk, limits } => {
                self.find(&disk)?.throttled.group().set_limits(limits).map_err(failed)?;
                Ok(json!({}))
            }
            _ => serde_json::to_value(self.0.iter().map(RunningDisk::report).collect::<Vec<_>>())
                .map_err(failed),
        }
    }

    fn find(&self, name: &str) -> Result<&RunningDisk, Refusal> {
        self.0.iter().find(|disk| disk.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.0.iter().map(|disk| disk.name.as_str()).collect();
            let known = if names.is_empty() { "there is none".to_owned() } else { names.join(", ") };
            failed(format!("{name:?} is no disk of this machine; its disks: {known}"))
        })
    }
}

impl RunningDisk {
    fn report(&self) -> DiskReport {
        let (read_errors, write_errors) = self.link.errors();
        DiskReport {
            name: self.name.clone(),
            path: self.config.path.clone(),
            format: self.config.format.name().to_owned(),
            size: self.throttled.size(),
            read_only: self.throttled.is_read_only(),
            read_errors,
            write_errors,
            limits: self.throttled.group().limits(),
            group: self.config.throttle.group.clone(),
        }
    }
}

fn failed(problem: impl ToString) -> Refusal {
    Refusal::new(RefusalKind::Failed, problem.to_string())
}

/// The limits as the disks know them.
pub fn limits(config: &ThrottleConfig) -> Limits {
    fn rate<const BYTES: bool>(rate: Option<IoRate<BYTES>>) -> Option<Rate> {
        rate.map(|IoRate { average, burst }| Rate { average, burst })
    }
    let ThrottleConfig { iops, iops_rd, iops_wr, bps, bps_rd, bps_wr, burst, group: _ } = config;
    Limits {
        iops: rate(*iops),
        iops_rd: rate(*iops_rd),
        iops_wr: rate(*iops_wr),
        bps: rate(*bps),
        bps_rd: rate(*bps_rd),
        bps_wr: rate(*bps_wr),
        burst: burst.unwrap_or(Limits::default().burst),
    }
}

/// The limits as an option states them.
pub fn limits_text(limits: &Limits) -> String {
    fn rate<const BYTES: bool>(rate: Option<Rate>) -> Option<IoRate<BYTES>> {
        rate.map(|Rate { average, burst }| IoRate { average, burst })
    }
    let Limits { iops, iops_rd, iops_wr, bps, bps_rd, bps_wr, burst } = *limits;
    let requests = [("iops", iops), ("iops-rd", iops_rd), ("iops-wr", iops_wr)];
    let bytes = [("bps", bps), ("bps-rd", bps_rd), ("bps-wr", bps_wr)];
    let bursts =
        requests.iter().chain(&bytes).any(|(_, limit)| limit.is_some_and(|rate| rate.burst.is_some()));
    let requests = requests.map(|(name, limit)| rate::<false>(limit).map(|rate| format!("{name}={rate}")));
    let bytes = bytes.map(|(name, limit)| rate::<true>(limit).map(|rate| format!("{name}={rate}")));
    let burst = bursts.then(|| format!("burst={burst}"));
    requests.into_iter().chain(bytes).chain([burst]).flatten().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_as_they_are_stated() {
        for text in ["iops=100/500,bps-wr=20M,burst=10", "iops-rd=7,bps=1K/1M,burst=1", ""] {
            let config = if text.is_empty() { Ok(ThrottleConfig::default()) } else { text.parse() };
            assert_eq!(limits_text(&limits(&config.unwrap())), text);
        }
    }
}
