//! Limits as people state them, and as the disks know them.

use block::{Limits, Rate};
use vm_config::{IoRate, ThrottleConfig};

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
