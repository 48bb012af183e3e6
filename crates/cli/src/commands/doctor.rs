//! `vireo doctor`.

use anyhow::Result;
use clap::Args;
use machine::engines::examine;
use serde_json::json;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &DoctorArgs) -> Result<u8> {
    let report = examine();
    let refusal = block::io_uring_refusal().map(|error| error.to_string());
    if arguments.json {
        let mut all = serde_json::to_value(&report)?;
        if let Some(all) = all.as_object_mut() {
            all.insert("io_uring".to_owned(), json!({ "ok": refusal.is_none(), "refusal": refusal }));
        }
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(0);
    }
    for check in &report.kvm.checks {
        println!("{} {}: {}", if check.ok { "ok  " } else { "BAD " }, check.name, check.detail);
    }
    match &refusal {
        None => println!("ok   io_uring: for disks with cache=none or cache=directsync"),
        Some(error) => println!("--   io_uring: {error}; disks do without (aio=threads)"),
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
