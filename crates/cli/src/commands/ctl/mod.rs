//! `vireo ctl`.

mod disk;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use disk::{DiskAction, JobAction};
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use vm_config::ThrottleConfig;
use vmm::control::client::Client;
use vmm::control::disk_commands::JobCommand;
use vmm::control::protocol::{Command, EngineName};
use vmm::disks::DiskReport;
use vmm::stats::{Stats, Status};

const AFTER_HELP: &str = "\
Examples:
  vireo run machine.toml --control /run/user/1000/web.ctl &
  vireo ctl /run/user/1000/web.ctl status
  vireo ctl /run/user/1000/web.ctl pause
  vireo ctl /run/user/1000/web.ctl switch-engine software
  vireo ctl /run/user/1000/web.ctl stats --json
  vireo ctl /run/user/1000/web.ctl disks
  vireo ctl /run/user/1000/web.ctl disk resize disk0 40G
  vireo ctl /run/user/1000/web.ctl disk mirror disk0 /fast/web.qcow2
  vireo ctl /run/user/1000/web.ctl job complete job0
  vireo ctl /run/user/1000/web.ctl disk bitmap-add disk0 daily
  vireo ctl /run/user/1000/web.ctl disk backup disk0 monday.qcow2 --bitmap daily --full
  vireo ctl /run/user/1000/web.ctl disk backup disk0 tuesday.qcow2 --bitmap daily --backing monday.qcow2
  vireo ctl /run/user/1000/web.ctl throttle disk0 iops=200/1000,bps=20M,burst=30

Exit status: 0 when the machine did it, 2 when no machine is there or it refuses.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CtlArgs {
    /// Socket of `vireo run --control PATH`
    #[arg(value_name = "PATH")]
    socket: PathBuf,
    #[command(subcommand)]
    command: CtlCommand,
    /// Print the machine's answer as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Say whether the guest runs, on which engine, and why on that one
    Status,
    /// Let the guest stand; its time stands too
    Pause,
    /// Let the guest go on
    Resume,
    /// Press the power button; what comes of it is the guest's affair
    PowerButton,
    /// Press the reset button
    Reset,
    /// End the machine at once, as if its plug were pulled
    Stop,
    /// Print exits by kind, instructions, engine switches and MIPS
    Stats,
    /// Move the running guest to another engine
    SwitchEngine {
        /// The engine
        engine: EngineArgument,
    },
    /// Print what happens, one JSON object a line, until the machine ends
    Events,
    /// List the disks: files, sizes, what was done, limits
    Disks,
    /// Do something with a disk: resize, snapshots, bitmaps, and the jobs mirror, backup, commit, stream
    #[command(subcommand)]
    Disk(Box<DiskAction>),
    /// List the jobs, with their progress
    Jobs,
    /// Steer a job
    #[command(subcommand)]
    Job(JobAction),
    /// Change the limits of a disk and its group
    Throttle {
        /// The disk, like disk0
        disk: String,
        /// Limits as in `vireo run --disk`, like iops=200/1000,bps=20M,burst=30, or none; replaces all that hold
        #[arg(value_parser = |text: &str| text.parse::<ThrottleConfig>().map(Box::new))]
        limits: Box<ThrottleConfig>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EngineArgument {
    Software,
    Kvm,
}

impl CtlCommand {
    fn command(&self) -> Command {
        match self {
            CtlCommand::Status => Command::Status {},
            CtlCommand::Pause => Command::Pause {},
            CtlCommand::Resume => Command::Resume {},
            CtlCommand::PowerButton => Command::PowerButton {},
            CtlCommand::Reset => Command::Reset {},
            CtlCommand::Stop => Command::Stop {},
            CtlCommand::Stats => Command::Stats {},
            CtlCommand::SwitchEngine { engine: EngineArgument::Software } => {
                Command::SwitchEngine { engine: EngineName::Software }
            }
            CtlCommand::SwitchEngine { engine: EngineArgument::Kvm } => {
                Command::SwitchEngine { engine: EngineName::Kvm }
            }
            CtlCommand::Events => Command::Events {},
            CtlCommand::Disks => Command::Disks {},
            CtlCommand::Disk(action) => Command::Disk(action.command()),
            CtlCommand::Jobs => Command::Job(JobCommand::List {}),
            CtlCommand::Job(action) => Command::Job(action.command()),
            CtlCommand::Throttle { disk, limits } => {
                Command::Throttle { disk: disk.clone(), limits: vmm::disks::limits(limits) }
            }
        }
    }
}

pub fn run(arguments: &CtlArgs) -> Result<u8> {
    let mut client = Client::connect(&arguments.socket)?;
    let answer = client.ask(&arguments.command.command())?;
    let mut out = std::io::stdout().lock();
    match &arguments.command {
        CtlCommand::Events => {
            while let Some(event) = client.event()? {
                // Whoever reads may leave: that ends this command, not the machine.
                if writeln!(out, "{event}").and_then(|()| out.flush()).is_err() {
                    break;
                }
            }
        }
        _ if arguments.json => writeln!(out, "{answer}")?,
        CtlCommand::Status => write!(out, "{}", status_text(answer)?)?,
        CtlCommand::Disks => {
            for disk in serde_json::from_value::<Vec<DiskReport>>(answer)? {
                write!(out, "{disk}")?;
            }
        }
        CtlCommand::Disk(action) => write!(out, "{}", action.text(&answer)?)?,
        CtlCommand::Jobs => write!(out, "{}", disk::jobs_text(answer)?)?,
        CtlCommand::Stats => write!(out, "{}", serde_json::from_value::<Stats>(answer)?)?,
        _ => {}
    }
    Ok(0)
}

fn status_text(answer: Value) -> Result<String> {
    let status: Status = serde_json::from_value(answer.clone())?;
    let engine = status.engine.map_or_else(String::new, |engine| engine.to_string());
    let paused_by = status.paused_by.map_or_else(String::new, |reason| format!(" ({reason})"));
    Ok(format!(
        "name    {}\nstate   {}{paused_by}\nengine  {engine} ({})\ncpus    {}\nmemory  {}\npid     {}\n",
        status.name,
        answer["state"].as_str().unwrap_or_default(),
        status.engine_reason,
        status.cpus,
        vm_config::ByteSize(status.memory),
        status.pid,
    ))
}
