//! `vireo cpu`.

use anyhow::Result;
use clap::{Args, Subcommand};
use engine::cpu_model::{CpuModel, MODELS};

#[derive(Debug, Args)]
pub struct CpuArgs {
    #[command(subcommand)]
    command: CpuCommand,
}

#[derive(Debug, Subcommand)]
enum CpuCommand {
    /// List the CPU models
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub fn run(arguments: &CpuArgs) -> Result<u8> {
    let CpuCommand::List { json } = arguments.command;
    if !json {
        for (name, description) in MODELS {
            println!("{name:<12} {description}");
        }
        return Ok(0);
    }
    let mut list = Vec::new();
    for (name, description) in MODELS {
        let model = CpuModel::named(name)?;
        list.push(serde_json::json!({
            "name": name,
            "description": description,
            "required": model.required.iter().map(|feature| feature.name).collect::<Vec<_>>(),
            "optional": model.optional.iter().map(|feature| feature.name).collect::<Vec<_>>(),
        }));
    }
    println!("{}", serde_json::to_string_pretty(&list)?);
    Ok(0)
}
