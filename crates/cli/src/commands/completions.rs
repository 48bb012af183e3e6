//! `vireo completions`.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

const AFTER_HELP: &str = "\
Examples:
  vireo completions bash > ~/.local/share/bash-completion/completions/vireo
  vireo completions fish > ~/.config/fish/completions/vireo.fish";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub fn run(arguments: &CompletionsArgs) -> Result<u8> {
    let mut command = crate::Cli::command();
    clap_complete::generate(arguments.shell, &mut command, "vireo", &mut std::io::stdout());
    Ok(0)
}
