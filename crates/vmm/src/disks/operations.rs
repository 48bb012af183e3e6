//! What is done with one running disk: its size, its snapshots and bitmaps, and the start of its jobs.

use super::DiskElsewhere;
use super::running::{Answer, RunningDisk, failed};
use crate::control::disk_commands::{DiskCommand, DiskJob, JobTarget};
use crate::control::protocol::Refusal;
use crate::driver::Request;
use block::{
    BackingPolicy, BlockBackend, BlockError, CreateOptions, DiskImage, Job, JobOrder, Layer, OpenOptions,
    OpenedBacking, RawFile, RawImage, SECTOR_SIZE, with_causes,
};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

fn wrong(error: BlockError) -> Refusal {
    failed(with_causes(&error))
}

/// A raw disk as a layer: it keeps its size.
pub(super) fn raw_layer(path: &Path, options: &OpenOptions) -> Result<Layer, BlockError> {
    let disk: Arc<dyn BlockBackend> = Arc::new(RawFile::open_disk(path, options)?);
    let image: Arc<dyn DiskImage> = Arc::new(RawImage::new(disk.clone(), path));
    Ok(Layer { disk, image, path: path.to_owned(), format: "raw".to_owned() })
}

/// A raw disk of a server as a layer.
pub(super) fn elsewhere_layer(client: Arc<dyn BlockBackend>, path: &Path) -> Layer {
    let image: Arc<dyn DiskImage> = Arc::new(RawImage::new(client.clone(), path));
    Layer { disk: client, image, path: path.to_owned(), format: "raw".to_owned() }
}

impl RunningDisk {
    /// Does what is no job.
    pub(super) fn operate(&self, command: &DiskCommand) -> Answer {
        match command {
            DiskCommand::Resize { size, .. } => self.resize(*size)?,
            DiskCommand::Snapshots { .. } => {
                let image = self.live.layer().image;
                let list = image.snapshots().map_or_else(|| Ok(Vec::new()), |snapshots| snapshots.list());
                return serde_json::to_value(list.map_err(wrong)?).map_err(failed);
            }
            DiskCommand::SnapshotCreate { name, .. } => {
                let made = self.live.with_image(|image| {
                    let snapshots = image.snapshots().ok_or_else(|| has_no("snapshots inside"))?;
                    snapshots.create(name)
                });
                return serde_json::to_value(made.map_err(wrong)?).map_err(failed);
            }
            DiskCommand::SnapshotDelete { name, .. } => {
                let delete = |image: &Arc<dyn DiskImage>| {
                    image.snapshots().ok_or_else(|| has_no("snapshots inside"))?.delete(name)
                };
                self.live.with_image(delete).map_err(wrong)?;
            }
            DiskCommand::Bitmaps { .. } => {
                let image = self.live.layer().image;
                let list = image.bitmaps().map_or_else(|| Ok(Vec::new()), |bitmaps| bitmaps.list());
                return serde_json::to_value(list.map_err(wrong)?).map_err(failed);
            }
            DiskCommand::BitmapAdd { name, .. } => {
                let add = |image: &Arc<dyn DiskImage>| {
                    image.bitmaps().ok_or_else(|| has_no("bitmaps"))?.add(name, None, true)
                };
                self.live.with_image(add).map_err(wrong)?;
            }
            DiskCommand::BitmapRemove { name, .. } => {
                let remove = |image: &Arc<dyn DiskImage>| {
                    image.bitmaps().ok_or_else(|| has_no("bitmaps"))?.remove(name)
                };
                self.live.with_image(remove).map_err(wrong)?;
            }
            DiskCommand::Overlay { path, .. } => self.overlay(path)?,
            DiskCommand::Mirror { .. }
            | DiskCommand::Backup { .. }
            | DiskCommand::Commit { .. }
            | DiskCommand::Stream { .. } => return Err(failed("a job is started in another way")),
        }
        Ok(json!({}))
    }

    fn resize(&self, size: u64) -> Result<(), Refusal> {
        let present = self.live.size();
        if size < present || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(failed(format!(
                "a running disk only grows, by whole sectors of 512 bytes; it has {present} bytes"
            )));
        }
        self.live.resize(size).map_err(|error| failed(with_causes(&error)))?;
        self.link.resized(size);
        Ok(())
    }

    fn overlay(&self, path: &Path) -> Result<(), Refusal> {
        must_not_exist(path)?;
        let make = |present: &Layer| {
            let backing = (name_from(path, &present.path), present.format.clone());
            let create = CreateOptions {
                size: present.disk.size(),
                backing: Some(backing),
                ..CreateOptions::default()
            };
            block::create(path, "qcow2", create)?;
            let options = OpenOptions {
                opened_backing: Some(OpenedBacking(present.image.clone())),
                keep_discarded: self.config.keep_discarded,
                cache: super::cache_mode(&self.config),
                ..OpenOptions::default()
            };
            let image = block::open(path, "qcow2", &options)?;
            image.flush().map_err(|source| BlockError::io(path, "making it durable", source))?;
            Ok(Layer::of(image, path, "qcow2"))
        };
        self.live.replace(make).map_err(|error| {
            // Nothing but what was made here has this name.
            let _ = std::fs::remove_file(path);
            wrong(error)
        })
    }

    /// Starts a job.
    pub(super) fn start(
        &self,
        name: &str,
        command: DiskCommand,
        requests: Option<Sender<Request>>,
    ) -> Result<Job, Refusal> {
        let mut made = None;
        let (order, speed) = match command {
            DiskCommand::Mirror { target, speed, .. } => {
                let fresh = !target.existing;
                (JobOrder::Mirror { target: self.target(&target, &mut made)?, fresh }, speed)
            }
            DiskCommand::Backup { target, bitmap, full, speed, .. } => {
                let fresh = !target.existing && target.backing.is_none();
                let target = self.target(&target, &mut made)?;
                (JobOrder::Backup { target, fresh, bitmap, full }, speed)
            }
            DiskCommand::Commit { speed, .. } => (JobOrder::Commit, speed),
            DiskCommand::Stream { speed, .. } => (JobOrder::Stream, speed),
            _ => return Err(failed("this is no job")),
        };
        let (job, disk) = (name.to_owned(), self.name.clone());
        let tell = move |report| {
            let event = Request::Job(DiskJob { job: job.clone(), disk: disk.clone(), report });
            if let Some(requests) = &requests {
                // Without a driver nobody listens any more.
                let _ = requests.send(event);
            }
        };
        Job::start(&self.live, order, speed, Box::new(tell)).map_err(|error| {
            if let Some(path) = made {
                let _ = std::fs::remove_file(path);
            }
            wrong(error)
        })
    }

    /// Opens a job's target, and makes it before if it is to be made.
    fn target(&self, target: &JobTarget, made: &mut Option<PathBuf>) -> Result<Layer, Refusal> {
        let JobTarget { path, format, existing, backing } = target;
        if let Some(elsewhere) = DiskElsewhere::parse(path).map_err(|error| failed(with_causes(&error)))? {
            if !existing || format != "raw" {
                return Err(failed("a disk on a server exists and is raw: --existing --format raw"));
            }
            let client = elsewhere.connect(false).map_err(|error| failed(with_causes(&error)))?;
            return Ok(elsewhere_layer(client, path));
        }
        if *existing && backing.is_some() {
            return Err(failed("a backing file is for a target that is made"));
        }
        if !existing {
            must_not_exist(path)?;
            let size = self.live.size();
            let create = CreateOptions { size, backing: backing.clone(), ..CreateOptions::default() };
            block::create(path, format, create).map_err(wrong)?;
            *made = Some(path.clone());
        }
        let mut folders = vec![folder_of(path)];
        folders.extend(backing.as_ref().map(|(file, _)| folder_of(&folder_of(path).join(file))));
        folders.extend(self.config.backing.clone());
        let cache = super::cache_mode(&self.config);
        let options =
            OpenOptions { backing: BackingPolicy::Inside(folders), cache, ..OpenOptions::default() };
        let layer = match format.as_str() {
            "raw" => raw_layer(path, &options),
            format => block::open(path, format, &options).map(|image| Layer::of(image, path, format)),
        };
        layer.map_err(|error| {
            if let Some(path) = made {
                let _ = std::fs::remove_file(path);
            }
            wrong(error)
        })
    }
}

fn has_no(what: &str) -> BlockError {
    BlockError::option("disk", format!("its format has no {what}; qcow2 has"))
}

fn must_not_exist(path: &Path) -> Result<(), Refusal> {
    match path.symlink_metadata() {
        Ok(_) => Err(failed(format!("{} exists already; it would be overwritten", path.display()))),
        Err(_) => Ok(()),
    }
}

fn folder_of(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_owned()
}

/// How `image` names a file: by its name alone beside it, else whole.
fn name_from(image: &Path, file: &Path) -> String {
    let whole = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let beside = folder_of(image).canonicalize().ok() == whole.parent().map(Path::to_owned);
    let name = whole.file_name().filter(|_| beside).map_or(whole.as_os_str(), |name| name);
    name.to_string_lossy().into_owned()
}
