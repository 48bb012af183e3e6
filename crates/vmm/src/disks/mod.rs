//! The host's files behind a machine's disks, and that no file has two roles.

mod elsewhere;
mod limits;
mod operations;
mod running;

pub use elsewhere::{DiskElsewhere, ElsewhereError};
pub use limits::{limits, limits_text};
pub use running::{DiskReport, RunningDisks};

use crate::VmmError;
use crate::driver::Request;
use block::{
    Aio, BackingPolicy, BlockBackend, BlockError, CacheMode, FaultRule, Faulty, Layer, LiveDisk, OpenOptions,
    ThrottleGroup, Throttled,
};
use http_disk::HttpDisk;
use machine::{Disk, DiskLink, ErrorAction};
use operations::{elsewhere_layer, raw_layer};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use vm_config::{DiskAio, DiskCache, DiskConfig, DiskErrorAction, DiskFormat, SerialConfig, VmConfig};

/// Opens and locks the disks: for the machine, and for whoever wants something of them while it runs. Errors that stop
/// the machine become requests.
///
/// # Errors
/// When one is not usable, or one file is asked for twice.
pub fn open(config: &VmConfig, requests: &Sender<Request>) -> Result<(Vec<Disk>, RunningDisks), VmmError> {
    one_role_each(config)?;
    let groups = Groups::new(config)?;
    let mut running = RunningDisks::telling(requests);
    let mut open = |(index, disk): (usize, &DiskConfig)| {
        let live = LiveDisk::new(open_layer(disk)?);
        let throttled = Arc::new(Throttled::new(decorated(disk, live.clone())?, groups.of(disk)?));
        let serial = if disk.serial.is_empty() { format!("disk{index}") } else { disk.serial.clone() };
        let queues = disk.queues.unwrap_or_else(|| automatic_queues(config.cpus));
        let link = link(disk, index, requests.clone());
        running.add(disk, throttled.clone(), live, link.clone());
        Ok(Disk { backend: throttled, serial, queues, packed: disk.packed, link })
    };
    let disks = config.disks.iter().enumerate().map(&mut open).collect::<Result<_, VmmError>>()?;
    Ok((disks, running))
}

/// The groups of disks that share limits.
struct Groups<'a>(BTreeMap<&'a str, Arc<ThrottleGroup>>);

impl<'a> Groups<'a> {
    fn new(config: &'a VmConfig) -> Result<Self, VmmError> {
        let mut groups: BTreeMap<&str, Arc<ThrottleGroup>> = BTreeMap::new();
        for throttle in config.disks.iter().map(|disk| &disk.throttle) {
            let Some(name) = &throttle.group else { continue };
            let stated = limits(throttle);
            match groups.get(name.as_str()) {
                // One of the disks states the limits, wherever it stands.
                Some(_) if stated.is_unlimited() => {}
                _ => drop(groups.insert(name, group(stated)?)),
            }
        }
        Ok(Groups(groups))
    }

    /// The disk's group: shared, or its own.
    fn of(&self, disk: &DiskConfig) -> Result<Arc<ThrottleGroup>, VmmError> {
        let shared = disk.throttle.group.as_ref().and_then(|name| self.0.get(name.as_str()));
        shared.map_or_else(|| group(limits(&disk.throttle)), |group| Ok(group.clone()))
    }
}

fn link(disk: &DiskConfig, index: usize, requests: Sender<Request>) -> Arc<DiskLink> {
    let action = |chosen: Option<DiskErrorAction>, otherwise| match chosen {
        Some(DiskErrorAction::Report) => ErrorAction::Report,
        Some(DiskErrorAction::Ignore) => ErrorAction::Ignore,
        Some(DiskErrorAction::Stop) => ErrorAction::Stop,
        Some(DiskErrorAction::Enospc) => ErrorAction::Enospc,
        None => otherwise,
    };
    let reads = action(disk.rerror, ErrorAction::Report);
    let writes = action(disk.werror, ErrorAction::Enospc);
    let on_stop = move |failure| {
        // Without a driver there is no machine either.
        let _ = requests.send(Request::DiskFailed { disk: format!("disk{index}"), failure });
    };
    DiskLink::new(reads, writes, Box::new(on_stop))
}

fn group(limits: block::Limits) -> Result<Arc<ThrottleGroup>, VmmError> {
    ThrottleGroup::new(limits).map_err(|problem| BlockError::option("Limits of a disk", problem).into())
}

fn open_layer(disk: &DiskConfig) -> Result<Layer, VmmError> {
    let backing = match disk.backing.as_slice() {
        [] => BackingPolicy::Refuse,
        folders => BackingPolicy::Inside(folders.to_vec()),
    };
    let passphrase = disk.key_file.as_deref().map(block::read_key_file).transpose()?;
    let options = OpenOptions {
        passphrase,
        read_only: disk.readonly,
        backing,
        keep_discarded: disk.keep_discarded,
        write_backing: disk.commit,
        cache: cache_mode(disk),
        aio: match disk.aio {
            DiskAio::Auto => Aio::Auto,
            DiskAio::Threads => Aio::Threads,
            DiskAio::IoUring => Aio::IoUring,
        },
        ..OpenOptions::default()
    };
    if http_disk::is_address(&disk.path) {
        return http_layer(disk, options);
    }
    Ok(match (DiskElsewhere::parse(&disk.path)?, disk.format) {
        (Some(elsewhere), format) => {
            let client = connect(&elsewhere, disk, &options)?;
            match format {
                DiskFormat::Raw => elsewhere_layer(client, &disk.path),
                format => {
                    let image = block::driver(format.name())?.open(client, &disk.path, &options)?;
                    Layer::of(image, &disk.path, format.name())
                }
            }
        }
        // A guest's disk keeps its size, which a raw image as a format does not.
        (None, DiskFormat::Raw) => raw_layer(&disk.path, &options)?,
        (None, format) => {
            Layer::of(block::open(&disk.path, format.name(), &options)?, &disk.path, format.name())
        }
    })
}

fn cache_mode(disk: &DiskConfig) -> CacheMode {
    match disk.cache {
        DiskCache::WriteBack => CacheMode::WriteBack,
        DiskCache::WriteThrough => CacheMode::WriteThrough,
        DiskCache::None => CacheMode::None,
        DiskCache::DirectSync => CacheMode::DirectSync,
        DiskCache::Unsafe => CacheMode::Unsafe,
    }
}

fn refuse_file_options(disk: &DiskConfig, options: &OpenOptions) -> Result<(), VmmError> {
    if options.cache.bypasses_host() || options.aio == Aio::IoUring {
        let problem = format!("{} is no file of this host; the server chooses", disk.path.display());
        return Err(BlockError::option("cache=none, cache=directsync or aio=io_uring", problem).into());
    }
    Ok(())
}

/// A file on a web server: the guest cannot write.
fn http_layer(disk: &DiskConfig, options: OpenOptions) -> Result<Layer, VmmError> {
    refuse_file_options(disk, &options)?;
    let file = HttpDisk::open(&disk.path.to_string_lossy())?;
    let options = OpenOptions { read_only: true, write_backing: false, ..options };
    let image = block::driver(disk.format.name())?.open(Arc::new(file), &disk.path, &options)?;
    Ok(Layer::of(image, &disk.path, disk.format.name()))
}

/// A disk elsewhere below a disk: what concerns the host's files only is refused.
fn connect(
    elsewhere: &DiskElsewhere,
    disk: &DiskConfig,
    options: &OpenOptions,
) -> Result<Arc<dyn BlockBackend>, VmmError> {
    refuse_file_options(disk, options)?;
    let client = elsewhere.connect(disk.readonly)?;
    Ok(if options.cache == CacheMode::Unsafe { block::without_flushes(client) } else { client })
}

/// What is between the guest and the disk, but for the limits.
fn decorated(disk: &DiskConfig, backend: Arc<dyn BlockBackend>) -> Result<Arc<dyn BlockBackend>, VmmError> {
    let backend = if disk.inject.is_empty() {
        backend
    } else {
        let rules = disk.inject.iter().map(|rule| rule.parse::<FaultRule>());
        Arc::new(Faulty::new(backend, rules.collect::<Result<_, _>>()?))
    };
    Ok(block::with_cache_mode(backend, cache_mode(disk)))
}

/// A queue a processor spares the guest's processors to wait for each other; each costs a thread.
fn automatic_queues(cpus: u32) -> u16 {
    cpus.clamp(1, 4) as u16
}

/// A file by any of its names is one disk, or the serial port's file, or what the guest boots from.
fn one_role_each(config: &VmConfig) -> Result<(), VmmError> {
    let mut roles: BTreeMap<(u64, u64), String> = BTreeMap::new();
    let mut take = |path: &Path, role: String, written: bool| {
        // What does not exist, or is a device like /dev/null, is told apart by whoever opens it.
        let Ok(found) = std::fs::metadata(path) else { return Ok(()) };
        if !found.is_file() {
            return Ok(());
        }
        match roles.insert((found.dev(), found.ino()), role.clone()) {
            Some(other) if written => Err(VmmError::TwoRoles { path: path.to_owned(), role, other }),
            _ => Ok(()),
        }
    };
    let boot = [(&config.kernel, "the kernel"), (&config.initrd, "the initrd")];
    for (path, role) in boot.into_iter().filter_map(|(path, role)| Some((path.as_ref()?, role))) {
        take(path, role.to_owned(), false)?;
    }
    for (index, disk) in config.disks.iter().enumerate() {
        take(&disk.path, format!("disk {index}"), true)?;
    }
    let ends =
        [(Some(&config.serial), "the serial port's file"), (config.console.as_ref(), "the console's file")];
    for (end, role) in ends {
        if let Some(SerialConfig::File(path)) = end {
            take(path, role.to_owned(), true)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_file_has_one_role_by_whatever_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a"), [0; 512]).unwrap();
        std::fs::hard_link(path("a"), path("b")).unwrap();
        std::os::unix::fs::symlink(path("a"), path("c")).unwrap();
        std::fs::write(path("d"), [0; 512]).unwrap();
        let disk = |name: &str| DiskConfig { path: path(name), ..DiskConfig::default() };
        let refused =
            |config: VmConfig| matches!(open(&config, &channel().0), Err(VmmError::TwoRoles { .. }));
        for other in ["b", "c"] {
            assert!(refused(VmConfig { disks: vec![disk("a"), disk(other)], ..VmConfig::default() }));
        }
        let serial = SerialConfig::File(path("c"));
        assert!(refused(VmConfig { disks: vec![disk("a")], serial, ..VmConfig::default() }));
        assert!(refused(VmConfig { kernel: Some(path("a")), disks: vec![disk("b")], ..VmConfig::default() }));
        let good = VmConfig { disks: vec![disk("a"), disk("d")], ..VmConfig::default() };
        assert!(open(&good, &channel().0).is_ok());
    }
}
