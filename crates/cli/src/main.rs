//! `vireo`: virtual machines on KVM and on its own x86-64 CPU.
//!
//! One file per command in [`commands`]. Every error ends in one line on standard error, with its causes.

mod commands;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use vmm::exit_code;

/// Virtual machines on KVM, and on Vireo's own x86-64 CPU where there is none.
#[derive(Debug, Parser)]
#[command(name = "vireo", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a virtual machine in the foreground
    Run(Box<commands::run::RunArgs>),
    /// Say what this host offers, which engine is chosen, and why
    Doctor(commands::doctor::DoctorArgs),
    /// CPU models
    Cpu(commands::cpu::CpuArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let filter = EnvFilter::try_from_env("VIREO_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match cli.command {
        Command::Run(arguments) => commands::run::run(&arguments),
        Command::Doctor(arguments) => commands::doctor::run(&arguments),
        Command::Cpu(arguments) => commands::cpu::run(&arguments),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // With `#`, the causes follow on the same line, joined by ": ".
            eprintln!("vireo: error: {error:#}");
            let code =
                error.downcast_ref::<vmm::VmmError>().map_or(exit_code::USAGE, vmm::VmmError::exit_code);
            ExitCode::from(code)
        }
    }
}

/// Help goes out as it is; a mistake in one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return if error.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::from(exit_code::HOST) };
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    eprintln!("vireo: error: {}; see --help", first.strip_prefix("error: ").unwrap_or(first));
    ExitCode::from(exit_code::USAGE)
}
