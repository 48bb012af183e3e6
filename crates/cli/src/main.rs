//! `vireo`: virtual machines on KVM and on its own x86-64 CPU.
//!
//! One file per command in [`commands`]. Every error ends in one line on standard error, with its causes.

mod commands;

use clap::error::ErrorKind;
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
    /// Ask a running machine: status, pause, stats, …
    Ctl(commands::ctl::CtlArgs),
    /// Say what this host offers, which engine is chosen, and why
    Doctor(commands::doctor::DoctorArgs),
    /// Make, inspect, check and convert disk images
    Image(Box<commands::image::ImageArgs>),
    /// Pools of disks, and the volumes in them
    Pool(Box<commands::pool::PoolArgs>),
    /// Volumes of LVM volume groups that this host has
    Lvm(commands::lvm::LvmArgs),
    /// CPU models
    Cpu(commands::cpu::CpuArgs),
    /// Translate kernels and programs for the software CPU before they run
    Translate(commands::translate::TranslateArgs),
    /// Print a shell's completions of this program
    Completions(commands::completions::CompletionsArgs),
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
        Command::Ctl(arguments) => commands::ctl::run(&arguments),
        Command::Completions(arguments) => commands::completions::run(&arguments),
        Command::Doctor(arguments) => commands::doctor::run(&arguments),
        Command::Image(arguments) => commands::image::run(&arguments),
        Command::Pool(arguments) => commands::pool::run(&arguments),
        Command::Lvm(arguments) => commands::lvm::run(&arguments),
        Command::Cpu(arguments) => commands::cpu::run(&arguments),
        Command::Translate(arguments) => commands::translate::run(&arguments),
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

/// Help goes out as it is; a mistake in one line, with what would be right.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return if error.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::from(exit_code::HOST) };
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(exit_code::USAGE);
    }
    eprintln!("vireo: error: {}; see --help", one_line(&error.to_string()));
    ExitCode::from(exit_code::USAGE)
}

/// The lines before the usage, joined.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let said: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")).collect();
    let all = said.join("; ");
    all.strip_prefix("error: ").unwrap_or(&all).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_are_one_line_that_says_what_would_be_right() {
        for (arguments, words) in [
            (&["vireo", "run", "--memroy", "1G"][..], &["--memroy", "--memory"][..]),
            (&["vireo", "run", "--engine", "steam"], &["steam", "auto, kvm, software"]),
            (&["vireo", "run", "--serial", "tty"], &["stdio, pty, unix:PATH, file:PATH, none"]),
            (&["vireo", "run", "--memory", "12 X"], &["12 X", "512M"]),
            (&["vireo", "run", "--disk", "a,format=qcow9"], &["qcow9", "raw"]),
            (&["vireo", "run", "--debug-exit=x"], &["0xf4"]),
            (&["vireo", "ctl", "s", "switch-engine", "steam"], &["steam", "software, kvm"]),
            (&["vireo", "ruun"], &["ruun", "'run'"]),
        ] {
            let text = one_line(&Cli::try_parse_from(arguments).unwrap_err().to_string());
            assert!(!text.contains('\n'), "{text}");
            for word in words {
                assert!(text.contains(word), "{arguments:?} does not say {word:?}: {text}");
            }
        }
    }
}
