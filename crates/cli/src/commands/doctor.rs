//! `vireo doctor`.

use anyhow::Result;
use clap::Args;
use machine::engines::examine;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &DoctorArgs) -> Result<u8> {
    let report = examine();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(0);
    }
    for check in &report.kvm.checks {
        println!("{} {}: {}", if check.ok { "ok  " } else { "BAD " }, check.name, check.detail);
    }
    let findings = &report.kvm.verdict.findings;
    if findings.is_empty() {
        println!("Engine auto is {}: {}", report.chosen, report.reason);
        return Ok(0);
    }
    println!("Engine auto is {}, because of this host's KVM:", report.chosen);
    for finding in findings {
        println!("  {finding}");
    }
    Ok(0)
}
