//! The disks of a running machine, and the jobs at work on them, for whoever asks by the control socket.

use super::limits::limits_text;
use crate::control::disk_commands::{DiskCommand, DiskJob, JobCommand};
use crate::control::protocol::{Command, Refusal, RefusalKind};
use crate::driver::Request;
use block::{BlockBackend, DiskCounts, Job, Limits, LiveDisk, Throttled, with_causes};
use machine::DiskLink;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use vm_config::{ByteSize, DiskConfig};

/// The answer to a request.
pub(super) type Answer = Result<Value, Refusal>;

/// What is told of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskReport {
    /// Its name: `disk0` and so on, in the order of the configuration.
    pub name: String,
    /// The file it is made of now.
    pub path: PathBuf,
    /// The file's format.
    pub format: String,
    /// Bytes that the guest sees.
    pub size: u64,
    /// The guest cannot write.
    pub read_only: bool,
    /// What the guest did so far.
    #[serde(default)]
    pub counts: DiskCounts,
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

/// A disk and its last job.
pub(super) struct RunningDisk {
    pub name: String,
    pub config: DiskConfig,
    pub throttled: Arc<Throttled>,
    pub live: Arc<LiveDisk>,
    pub link: Arc<DiskLink>,
    job: Option<(String, Job)>,
}

/// All disks of a machine, in order.
#[derive(Default)]
pub struct RunningDisks {
    disks: Vec<RunningDisk>,
    jobs_so_far: u64,
    requests: Option<Sender<Request>>,
}

impl RunningDisks {
    /// No disks yet; what happens to jobs becomes requests.
    pub(super) fn telling(requests: &Sender<Request>) -> Self {
        RunningDisks { requests: Some(requests.clone()), ..RunningDisks::default() }
    }

    pub(super) fn add(
        &mut self,
        config: &DiskConfig,
        throttled: Arc<Throttled>,
        live: Arc<LiveDisk>,
        link: Arc<DiskLink>,
    ) {
        let name = format!("disk{}", self.disks.len());
        self.disks.push(RunningDisk { name, config: config.clone(), throttled, live, link, job: None });
    }

    /// While this holds, no request waits for its limits.
    pub fn drain(&self, begin: bool) {
        self.disks.iter().for_each(|disk| disk.throttled.drain(begin));
    }

    /// Ends all jobs, and makes everything durable.
    ///
    /// # Errors
    /// The first disk's that fails; the others are flushed nevertheless.
    pub fn finish(&mut self) -> std::io::Result<()> {
        self.disks.iter_mut().for_each(|disk| disk.job = None);
        let writable = self.disks.iter().filter(|disk| !disk.throttled.is_read_only());
        writable.map(|disk| disk.throttled.flush()).fold(Ok(()), std::io::Result::and)
    }

    /// Does what a client asks.
    ///
    /// # Errors
    /// Why not.
    pub fn obey(&mut self, command: Command) -> Answer {
        match command {
            Command::Throttle { disk, limits } => {
                self.find(&disk)?.throttled.group().set_limits(limits).map_err(failed)?;
                Ok(json!({}))
            }
            Command::Disk(command) => self.disk(command),
            Command::Job(command) => self.job(&command),
            _ => {
                let reports: Vec<DiskReport> = self.disks.iter().map(RunningDisk::report).collect();
                serde_json::to_value(reports).map_err(failed)
            }
        }
    }

    fn disk(&mut self, command: DiskCommand) -> Answer {
        let is_job = matches!(
            command,
            DiskCommand::Mirror { .. }
                | DiskCommand::Backup { .. }
                | DiskCommand::Commit { .. }
                | DiskCommand::Stream { .. }
        );
        let name = command.disk().to_owned();
        if !is_job {
            return self.find(&name)?.operate(&command);
        }
        let requests = self.requests.clone();
        let number = self.jobs_so_far;
        let disk = self.find_mut(&name)?;
        if disk.job.as_ref().is_some_and(|(_, job)| !job.report().status.is_end()) {
            return Err(failed("a job is at work on the disk already; wait for its end or cancel it"));
        }
        let job_name = format!("job{number}");
        let job = disk.start(&job_name, command, requests)?;
        disk.job = Some((job_name.clone(), job));
        self.jobs_so_far += 1;
        Ok(json!({ "job": job_name }))
    }

    fn job(&self, command: &JobCommand) -> Answer {
        match command {
            JobCommand::List {} => {
                let jobs: Vec<DiskJob> = self.disks.iter().filter_map(RunningDisk::job_report).collect();
                return serde_json::to_value(jobs).map_err(failed);
            }
            JobCommand::Speed { job, speed } => self.find_job(job)?.set_speed(*speed),
            JobCommand::Pause { job } => self.find_job(job)?.pause(true),
            JobCommand::Resume { job } => self.find_job(job)?.pause(false),
            JobCommand::Cancel { job } => self.find_job(job)?.cancel(),
            JobCommand::Complete { job, pivot } => {
                self.find_job(job)?.complete(*pivot).map_err(|error| failed(with_causes(&error)))?;
            }
        }
        Ok(json!({}))
    }

    fn find_job(&self, name: &str) -> Result<&Job, Refusal> {
        let jobs = self.disks.iter().filter_map(|disk| disk.job.as_ref());
        let found = jobs.filter(|(_, job)| !job.report().status.is_end()).find(|(job, _)| job == name);
        let unknown = || failed(format!("{name:?} is no job at work; see: vireo ctl PATH jobs"));
        found.map(|(_, job)| job).ok_or_else(unknown)
    }

    fn position(&self, name: &str) -> Result<usize, Refusal> {
        self.disks.iter().position(|disk| disk.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
            let known = if names.is_empty() { "there is none".to_owned() } else { names.join(", ") };
            failed(format!("{name:?} is no disk of this machine; its disks: {known}"))
        })
    }

    fn find(&self, name: &str) -> Result<&RunningDisk, Refusal> {
        let at = self.position(name)?;
        self.disks.get(at).ok_or_else(|| failed("no such disk"))
    }

    fn find_mut(&mut self, name: &str) -> Result<&mut RunningDisk, Refusal> {
        let at = self.position(name)?;
        self.disks.get_mut(at).ok_or_else(|| failed("no such disk"))
    }
}

impl RunningDisk {
    fn report(&self) -> DiskReport {
        let (read_errors, write_errors) = self.link.errors();
        let layer = self.live.layer();
        DiskReport {
            name: self.name.clone(),
            path: layer.path,
            format: layer.format,
            size: self.throttled.size(),
            read_only: self.throttled.is_read_only(),
            counts: self.live.counts(),
            read_errors,
            write_errors,
            limits: self.throttled.group().limits(),
            group: self.config.throttle.group.clone(),
        }
    }

    fn job_report(&self) -> Option<DiskJob> {
        let (job, at_work) = self.job.as_ref()?;
        Some(DiskJob { job: job.clone(), disk: self.name.clone(), report: at_work.report() })
    }
}

pub(super) fn failed(problem: impl ToString) -> Refusal {
    Refusal::new(RefusalKind::Failed, problem.to_string())
}

/// A disk a paragraph.
impl fmt::Display for DiskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.read_only { " read-only" } else { "" };
        let (name, format, size) = (&self.name, &self.format, ByteSize(self.size));
        writeln!(f, "{name} {format} {size}{access} {}", self.path.display())?;
        let DiskCounts { reads, read_bytes, writes, written_bytes, flushes, discards, .. } = self.counts;
        writeln!(
            f,
            "  reads {reads} ({read_bytes} bytes), writes {writes} ({written_bytes} bytes), flushes {flushes}, discards {discards}"
        )?;
        if self.read_errors + self.write_errors > 0 {
            writeln!(f, "  failed on the host: {} reads, {} writes", self.read_errors, self.write_errors)?;
        }
        if !self.limits.is_unlimited() {
            let group = self.group.as_ref().map_or_else(String::new, |group| format!(" (group {group})"));
            writeln!(f, "  limits{group}: {}", limits_text(&self.limits))?;
        }
        Ok(())
    }
}
