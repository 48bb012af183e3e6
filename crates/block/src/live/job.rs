//! A job on a disk at work: its orders, its progress, and how it is steered.

use super::{Layer, LiveDisk, backup, mirror, stream};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::image::ImageResult;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes a job moves at a time.
pub(super) const STEP: u64 = 1 << 20;

/// What is to be done.
pub enum JobOrder {
    /// Copy the disk, follow its changes, and in the end become the disk if asked.
    Mirror {
        /// Where to.
        target: Layer,
        /// It reads as zeros everywhere.
        fresh: bool,
    },
    /// Copy the disk as it is at the start.
    Backup {
        /// Where to.
        target: Layer,
        /// It reads as zeros everywhere.
        fresh: bool,
        /// A bitmap of the disk: it starts anew with the backup; if the backup comes to nothing, it is as if it had
        /// gone on.
        bitmap: Option<String>,
        /// Copy all, not only what the bitmap marks.
        full: bool,
    },
    /// Write what the top image has into its backing image, follow changes, and in the end become that image.
    Commit,
    /// Copy what the top image takes from its backing chain into it, and cut the chain off.
    Stream,
}

/// Kinds of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// [`JobOrder::Mirror`].
    Mirror,
    /// [`JobOrder::Backup`].
    Backup,
    /// [`JobOrder::Commit`].
    Commit,
    /// [`JobOrder::Stream`].
    Stream,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobStatus {
    /// At work.
    Running,
    /// Asked to wait.
    Paused,
    /// Mirror and commit: everything is copied and changes are followed; waits to be completed or cancelled.
    Ready,
    /// Done.
    Completed,
    /// Given up because somebody asked for that.
    Cancelled,
    /// Given up because of an error; the disk is as if there had been no job.
    Failed,
}

impl JobStatus {
    /// Nothing will happen any more.
    pub fn is_end(self) -> bool {
        matches!(self, JobStatus::Completed | JobStatus::Cancelled | JobStatus::Failed)
    }
}

/// What is told of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobReport {
    /// What it does.
    pub kind: JobKind,
    /// Where it is.
    pub status: JobStatus,
    /// Bytes done.
    pub done: u64,
    /// Bytes to be done in all, as far as is known: a mirror's grow with the guest's writes.
    pub total: u64,
    /// Bytes a second at most; 0: no limit.
    pub speed: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Why a job ends early.
pub(super) enum End {
    Cancelled,
    Failed(std::io::Error),
}

impl End {
    /// Says what was being copied to.
    pub fn copying_to(self, target: &Path) -> End {
        match self {
            End::Cancelled => End::Cancelled,
            End::Failed(error) => {
                let problem = format!("copying to {}: {error}", target.display());
                End::Failed(std::io::Error::new(error.kind(), problem))
            }
        }
    }
}

/// A part of a job; a panic fails the job, and does not keep whoever waits for its end from learning of it.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, End>) -> Result<T, End> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    done.unwrap_or_else(|_| Err(End::Failed(std::io::Error::other("the job's code panicked"))))
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        End::Failed(error)
    }
}

impl From<BlockError> for End {
    fn from(error: BlockError) -> Self {
        End::Failed(error.into())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    GoOn,
    Cancel,
    Complete { pivot: bool },
}

struct State {
    status: JobStatus,
    paused: bool,
    wish: Wish,
    speed: u64,
    /// When the speed allows the next step.
    next_step: Instant,
    error: Option<String>,
}

/// How a job is steered, and what it tells.
pub(super) struct Control {
    kind: JobKind,
    state: Mutex<State>,
    changed: Condvar,
    done: AtomicU64,
    total: AtomicU64,
    on_event: Box<dyn Fn(JobReport) + Send + Sync>,
}

impl Control {
    pub fn report(&self) -> JobReport {
        let state = self.state.lock();
        let waits = state.paused && state.status == JobStatus::Running;
        JobReport {
            kind: self.kind,
            status: if waits { JobStatus::Paused } else { state.status },
            done: self.done.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
            speed: state.speed,
            error: state.error.clone(),
        }
    }

    pub fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// So many more bytes are done.
    pub fn advance(&self, bytes: u64) -> u64 {
        self.done.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// Waits while the job is paused or too fast. `Err` when it is cancelled.
    pub fn checkpoint(&self) -> Result<(), End> {
        let mut state = self.state.lock();
        loop {
            if state.wish == Wish::Cancel {
                return Err(End::Cancelled);
            }
            let now = Instant::now();
            if state.paused {
                self.changed.wait(&mut state);
            } else if state.speed > 0 && state.next_step > now {
                let until = state.next_step;
                self.changed.wait_until(&mut state, until);
            } else {
                return Ok(());
            }
        }
    }

    /// So many bytes were moved: with a limit, the next step waits accordingly.
    pub fn pace(&self, bytes: u64) {
        let mut state = self.state.lock();
        if state.speed > 0 {
            let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(state.speed);
            let wait = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
            let from = state.next_step.max(Instant::now());
            state.next_step = from.checked_add(wait.min(Duration::from_secs(3600))).unwrap_or(from);
        }
    }

    /// Everything is copied: tells so once, and what is wished then. Waits a little for a wish.
    pub fn ready(&self) -> Wish {
        let mut state = self.state.lock();
        if state.status == JobStatus::Running {
            state.status = JobStatus::Ready;
            drop(state);
            (self.on_event)(self.report());
            state = self.state.lock();
        }
        if state.wish == Wish::GoOn {
            // Changes of the disk end this wait late, which costs nothing: they are remembered.
            self.changed.wait_for(&mut state, Duration::from_millis(20));
        }
        state.wish
    }

    /// What somebody wishes.
    pub fn wish(&self) -> Wish {
        self.state.lock().wish
    }

    fn end(&self, result: Result<(), End>) {
        {
            let mut state = self.state.lock();
            state.status = match result {
                Ok(()) => JobStatus::Completed,
                Err(End::Cancelled) => JobStatus::Cancelled,
                Err(End::Failed(error)) => {
                    state.error = Some(error.to_string());
                    JobStatus::Failed
                }
            };
        }
        self.changed.notify_all();
        (self.on_event)(self.report());
    }
}

/// A job. Dropped, it is cancelled.
pub struct Job {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

impl Job {
    /// Starts a job, at so many bytes a second at most (0: no limit). `on_event` is told when it is ready and when it
    /// ends, on its thread.
    ///
    /// # Errors
    /// When another job is at work on the disk, or the disk or the target is not fit for it.
    pub fn start(
        live: &Arc<LiveDisk>,
        order: JobOrder,
        speed: u64,
        on_event: Box<dyn Fn(JobReport) + Send + Sync>,
    ) -> ImageResult<Self> {
        let kind = match &order {
            JobOrder::Mirror { .. } => JobKind::Mirror,
            JobOrder::Backup { .. } => JobKind::Backup,
            JobOrder::Commit => JobKind::Commit,
            JobOrder::Stream => JobKind::Stream,
        };
        let state = State {
            status: JobStatus::Running,
            paused: false,
            wish: Wish::GoOn,
            speed,
            next_step: Instant::now(),
            error: None,
        };
        let control = Arc::new(Control {
            kind,
            state: Mutex::new(state),
            changed: Condvar::new(),
            done: AtomicU64::new(0),
            total: AtomicU64::new(live.size()),
            on_event,
        });
        type Work = Box<dyn FnOnce(&Control) -> Result<(), End> + Send>;
        let work: Work = match order {
            JobOrder::Mirror { target, fresh } => mirror::start(live, target, fresh)?,
            JobOrder::Commit => mirror::start_commit(live)?,
            JobOrder::Backup { target, fresh, bitmap, full } => {
                backup::start(live, &target, fresh, bitmap, full)?
            }
            JobOrder::Stream => stream::start(live)?,
        };
        let its = control.clone();
        let run = move || its.end(guarded(|| work(&its)));
        let thread = std::thread::Builder::new().name("block-job".to_owned()).spawn(run);
        match thread {
            Ok(thread) => Ok(Job { control, thread: Some(thread) }),
            Err(error) => {
                // Whoever changes the disk must not tell a job that never began.
                live.top.write().watcher = None;
                Err(BlockError::option("job", format!("the host gives no thread: {error}")))
            }
        }
    }

    /// Where it is.
    pub fn report(&self) -> JobReport {
        self.control.report()
    }

    /// Changes the speed: bytes a second, 0 for no limit.
    pub fn set_speed(&self, speed: u64) {
        let mut state = self.control.state.lock();
        state.speed = speed;
        state.next_step = Instant::now();
        self.control.changed.notify_all();
    }

    /// Lets it wait, or go on. A mirror that waits still learns of changes, a backup still copies what is about to
    /// change.
    pub fn pause(&self, pause: bool) {
        self.control.state.lock().paused = pause;
        self.control.changed.notify_all();
    }

    /// Gives it up.
    pub fn cancel(&self) {
        self.control.state.lock().wish = Wish::Cancel;
        self.control.changed.notify_all();
    }

    /// Ends a mirror or commit that is ready: the target has everything then, durably, and with `pivot` it is the disk from
    /// there on.
    ///
    /// # Errors
    /// When it is not ready, or is a commit that shall not pivot.
    pub fn complete(&self, pivot: bool) -> ImageResult<()> {
        let mut state = self.control.state.lock();
        if state.status != JobStatus::Ready {
            return Err(BlockError::option("job", "it is not ready to be completed"));
        }
        if self.control.kind == JobKind::Commit && !pivot {
            return Err(BlockError::option("job", "a commit goes on in the backing image or is cancelled"));
        }
        state.wish = Wish::Complete { pivot };
        self.control.changed.notify_all();
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> JobReport {
        if let Some(thread) = self.thread.take() {
            // A panic of what is told of events has been written already.
            let _ = thread.join();
        }
        self.report()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.cancel();
        self.wait();
    }
}

/// Puts what was done in front of an error.
fn at_offset(doing: &str, at: u64) -> impl FnOnce(std::io::Error) -> std::io::Error {
    move |error| std::io::Error::new(error.kind(), format!("{doing} at offset {at:#x}: {error}"))
}

/// Copies a range as it is stored; zeros are passed over if the target is known to have them.
pub(super) fn copy_range(
    from: &dyn BlockBackend,
    to: &dyn BlockBackend,
    range: Range<u64>,
    buffer: &mut Vec<u8>,
    skip_zeros: bool,
) -> std::io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let extent = from.block_status(at, range.end - at)?;
        let length = extent.length.clamp(1, (range.end - at).min(STEP));
        if !extent.zero {
            buffer.resize(length as usize, 0);
            from.read_bytes(at, buffer).map_err(at_offset("reading", at))?;
            to.write_bytes(at, buffer).map_err(at_offset("writing", at))?;
        } else if !skip_zeros {
            to.write_zeroes(at, length, true).map_err(at_offset("writing zeros", at))?;
        }
        at += length;
    }
    Ok(())
}
