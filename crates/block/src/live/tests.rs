//! Jobs under a guest that writes at random: what the disk and the copy hold in the end is compared with what was
//! written.

use super::*;
use crate::{
    BlockError, CreateOptions, FaultRule, Faulty, OpenOptions, OpenedBacking, RawFile, RawImage, Repair,
    create, open,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

const SIZE: u64 = 24 << 20;
const THREADS: u64 = 3;

fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// A folder with images.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn create(&self, name: &str, format: &str, backing: Option<&str>) -> PathBuf {
        let path = self.path(name);
        let backing = backing.map(|name| (name.to_owned(), "qcow2".to_owned()));
        create(&path, format, CreateOptions { size: SIZE, backing, ..CreateOptions::default() }).unwrap();
        path
    }

    fn layer(&self, name: &str, format: &str) -> Layer {
        let path = self.create(name, format, None);
        if format == "raw" {
            let disk: Arc<dyn BlockBackend> = Arc::new(RawFile::open(&path, false).unwrap());
            let image = Arc::new(RawImage::new(disk.clone(), &path));
            return Layer { disk, image, path, format: "raw".to_owned() };
        }
        Layer::of(open(&path, format, &OpenOptions::default()).unwrap(), &path, format)
    }

    /// A new image over an open one.
    fn overlay(&self, name: &str, below: &str, opened: &Arc<dyn DiskImage>) -> Layer {
        let path = self.create(name, "qcow2", Some(below));
        let opened_backing = Some(OpenedBacking(opened.clone()));
        let options = OpenOptions { opened_backing, ..OpenOptions::default() };
        Layer::of(open(&path, "qcow2", &options).unwrap(), &path, "qcow2")
    }
}

/// What an image file holds, and that nothing is wrong with it.
fn content(path: &Path, format: &str) -> Vec<u8> {
    let options = OpenOptions { backing: crate::BackingPolicy::beside(path), ..OpenOptions::reading() };
    let image = open(path, format, &options).unwrap();
    if format == "qcow2" {
        let report = image.check(Repair::Nothing).unwrap();
        assert!(report.corruptions == 0 && report.check_errors == 0, "{report:?}");
    }
    drop(image);
    let image = open(path, format, &options).unwrap();
    let mut bytes = vec![0; SIZE as usize];
    image.read_bytes(0, &mut bytes).unwrap();
    bytes
}

/// One random change, of the disk and of what it should hold; thread `number` has every `THREADS`th 4 KiB block, so that
/// the order of threads does not matter while they share grains.
fn change(disk: &LiveDisk, model: &mut [u8], number: u64, seed: &mut u64) {
    let blocks = SIZE / 4096 / THREADS;
    let at = (random(seed) % blocks * THREADS + number) * 4096 + random(seed) % 4 * 512;
    let len = (random(seed) % 4 + 1) * 512;
    let part = &mut model[at as usize..(at + len) as usize];
    match random(seed) % 16 {
        0 => {
            part.fill(0);
            disk.write_zeroes(at, len, true).unwrap();
        }
        1 => disk.flush().unwrap(),
        _ => {
            part.fill(random(seed) as u8);
            disk.write_bytes(at, part).unwrap();
        }
    }
}

/// Fills a disk with something, mostly in large runs with holes between.
fn fill(disk: &LiveDisk, model: &mut [u8], seed: &mut u64) {
    for _ in 0..30 {
        let at = random(seed) % (SIZE - (1 << 20)) / 512 * 512;
        let len = (random(seed) % (1 << 20)).next_multiple_of(512);
        model[at as usize..(at + len) as usize].fill(random(seed) as u8);
        disk.write_bytes(at, &model[at as usize..(at + len) as usize]).unwrap();
    }
}

/// Runs `work` while threads change the disk; answers what it should hold after the last change.
fn while_written(disk: &LiveDisk, model: &[u8], seed: u64, work: impl FnOnce()) -> Vec<u8> {
    let stop = AtomicBool::new(false);
    let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let (stop, mut model, mut seed) = (&stop, model.to_vec(), seed + number + 1);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        change(disk, &mut model, number, &mut seed);
                    }
                    model
                })
            })
            .collect();
        work();
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut whole = model.to_vec();
    for (block, bytes) in whole.chunks_mut(4096).enumerate() {
        bytes.copy_from_slice(&models[block % THREADS as usize][block * 4096..][..4096]);
    }
    whole
}

fn read(disk: &dyn BlockBackend) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    disk.read_bytes(0, &mut bytes).unwrap();
    bytes
}

fn start(disk: &Arc<LiveDisk>, order: JobOrder) -> (Job, Receiver<JobReport>) {
    let (sender, events) = channel();
    let told = parking_lot::Mutex::new(sender);
    let job = Job::start(disk, order, 0, Box::new(move |report| drop(told.lock().send(report)))).unwrap();
    (job, events)
}

fn wait_for(events: &Receiver<JobReport>, status: JobStatus) -> JobReport {
    let report = events.recv().unwrap();
    assert_eq!(report.status, status, "{report:?}");
    report
}

#[test]
fn a_mirror_becomes_the_disk_while_it_is_written() {
    for (round, (from, to)) in
        [("qcow2", "raw"), ("raw", "qcow2"), ("qcow2", "vdi"), ("qcow2", "qcow2")].into_iter().enumerate()
    {
        let place = Place::new();
        let disk = LiveDisk::new(place.layer("source", from));
        let mut seed = 77 + round as u64;
        let mut model = vec![0; SIZE as usize];
        fill(&disk, &mut model, &mut seed);
        let target = place.layer("target", to);
        let (mut job, events) = start(&disk, JobOrder::Mirror { target, fresh: true });
        let mut at_pivot = Vec::new();
        let model = while_written(&disk, &model, seed, || {
            wait_for(&events, JobStatus::Ready);
            job.complete(true).unwrap();
            let report = job.wait();
            assert_eq!((report.status, report.done), (JobStatus::Completed, report.total));
            at_pivot = content(&place.path("source"), from);
        });
        assert!(read(&*disk) == model, "{from} to {to}: the disk does not hold what was written");
        assert!(
            at_pivot == content(&place.path("source"), from),
            "{from} to {to}: writes went to the source"
        );
        disk.flush().unwrap();
        drop(disk);
        assert!(content(&place.path("target"), to) == model, "{from} to {to}: the target's file is wrong");
    }
}

#[test]
fn a_mirror_that_is_completed_without_pivot_is_a_copy_and_a_cancelled_one_is_nothing() {
    let place = Place::new();
    let disk = LiveDisk::new(place.layer("source", "qcow2"));
    let (mut seed, mut model) = (5, vec![0; SIZE as usize]);
    fill(&disk, &mut model, &mut seed);
    let (mut job, events) =
        start(&disk, JobOrder::Mirror { target: place.layer("target", "raw"), fresh: true });
    let model = while_written(&disk, &model, seed, || drop(wait_for(&events, JobStatus::Ready)));
    job.complete(false).unwrap();
    assert_eq!(job.wait().status, JobStatus::Completed);
    assert!(content(&place.path("target"), "raw") == model && read(&*disk) == model);
    let (mut job, events) =
        start(&disk, JobOrder::Mirror { target: place.layer("other", "raw"), fresh: true });
    assert!(job.complete(true).is_err() || job.report().status == JobStatus::Ready);
    let again = Job::start(&disk, JobOrder::Stream, 0, Box::new(|_| {}));
    assert!(matches!(again, Err(BlockError::Option { .. })), "two jobs on one disk");
    assert!(disk.resize(2 * SIZE).is_err(), "a resize under a job");
    let model = while_written(&disk, &model, 99, || {
        job.cancel();
        job.wait();
    });
    assert_eq!(events.try_iter().last().unwrap().status, JobStatus::Cancelled);
    assert!(read(&*disk) == model);
    disk.resize(2 * SIZE).unwrap();
}

#[test]
fn backups_hold_the_disk_as_it_was_at_their_start() {
    let place = Place::new();
    let layer = place.layer("source", "qcow2");
    layer.image.bitmaps().unwrap().add("b", None, true).unwrap();
    let disk = LiveDisk::new(layer);
    let (mut seed, mut model) = (11, vec![0; SIZE as usize]);
    fill(&disk, &mut model, &mut seed);
    let mut below: Option<(String, Arc<dyn DiskImage>)> = None;
    for round in 0..4 {
        let name = format!("backup{round}");
        let target = match &below {
            None => place.layer(&name, "qcow2"),
            Some((below, opened)) => place.overlay(&name, below, opened),
        };
        let opened = target.image.clone();
        let bitmap = Some("b".to_owned());
        let order = JobOrder::Backup { target, fresh: round == 0, bitmap, full: round == 0 };
        // Slow enough that writes come before the copies.
        let (mut job, events) = start(&disk, order);
        job.set_speed(64 << 20);
        let after = while_written(&disk, &model, seed + round, || drop(events.recv().unwrap()));
        assert_eq!(job.wait().status, JobStatus::Completed);
        assert!(read(&*opened) == model, "round {round}: not the disk at the start");
        model = after;
        assert!(read(&*disk) == model);
        below = Some((name, opened));
    }
    drop(below);
    content(&place.path("backup3"), "qcow2");
}

/// A target that fails harms neither the guest nor the next incremental backup.
#[test]
fn a_failed_backup_is_as_if_it_had_not_been() {
    let place = Place::new();
    let layer = place.layer("source", "qcow2");
    let image = layer.image.clone();
    let bitmaps = image.bitmaps().unwrap();
    bitmaps.add("b", None, true).unwrap();
    let disk = LiveDisk::new(layer);
    let (mut seed, mut model) = (21, vec![0; SIZE as usize]);
    fill(&disk, &mut model, &mut seed);
    let before = bitmaps.dirty_ranges("b").unwrap();
    let raw = place.layer("bad", "raw");
    let rule: FaultRule = "write:error=ENOSPC:after=5".parse().unwrap();
    let target = Layer { disk: Arc::new(Faulty::new(raw.disk.clone(), vec![rule])), ..raw };
    let order = JobOrder::Backup { target, fresh: true, bitmap: Some("b".to_owned()), full: false };
    let (mut job, events) = start(&disk, order);
    let model = while_written(&disk, &model, seed, || drop(wait_for(&events, JobStatus::Failed)));
    assert!(job.wait().error.unwrap().contains("space"));
    assert!(read(&*disk) == model);
    let marked = bitmaps.dirty_ranges("b").unwrap();
    let covers = |range: &Range<u64>| marked.iter().any(|it| it.start <= range.start && range.end <= it.end);
    assert!(before.iter().all(covers), "the bitmap lost what it had marked");
    let wrong = disk.layer();
    let small = JobOrder::Backup { target: wrong, fresh: true, bitmap: Some("c".to_owned()), full: false };
    assert!(Job::start(&disk, small, 0, Box::new(|_| {})).is_err(), "a bitmap that does not exist");
}

/// A mirror onto a file system that gets full ends with an error that names the file, the guest goes on, and the next mirror
/// works.
#[test]
fn a_mirror_without_space_fails_and_the_disk_goes_on() {
    let place = Place::new();
    let disk = LiveDisk::new(place.layer("source", "qcow2"));
    let (mut seed, mut model) = (5, vec![0; SIZE as usize]);
    fill(&disk, &mut model, &mut seed);
    let raw = place.layer("small", "raw");
    let rule: FaultRule = "write:error=ENOSPC:after=5".parse().unwrap();
    let target = Layer { disk: Arc::new(Faulty::new(raw.disk.clone(), vec![rule])), ..raw };
    let (mut job, events) = start(&disk, JobOrder::Mirror { target, fresh: true });
    model = while_written(&disk, &model, seed, || drop(wait_for(&events, JobStatus::Failed)));
    let error = job.wait().error.unwrap();
    let named = error.contains(&*place.path("small").to_string_lossy());
    assert!(named && error.contains("writing at offset 0x") && error.contains("space"), "{error}");
    assert!(read(&*disk) == model);
    let target = place.layer("large", "qcow2");
    let (mut job, events) = start(&disk, JobOrder::Mirror { target, fresh: true });
    wait_for(&events, JobStatus::Ready);
    job.complete(true).unwrap();
    assert_eq!(job.wait().status, JobStatus::Completed);
    assert!(read(&*disk) == model);
}

/// A target whose code panics when it is written.
struct Panics;

impl BlockBackend for Panics {
    fn size(&self) -> u64 {
        SIZE
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: false, discard: false, zero_alignment: 512, growable: false }
    }
    fn read_at(&self, _offset: u64, _buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        Ok(())
    }
    fn write_at(&self, offset: u64, _buffers: &[IoSlice<'_>]) -> Result<()> {
        panic!("a test asked for it, at {offset:#x}");
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, _len: u64, _unmap: bool) -> Result<()> {
        panic!("a test asked for it, at {offset:#x}");
    }
    fn resize(&self, _size: u64) -> Result<()> {
        Ok(())
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent::data(offset, len, None))
    }
}

/// Whoever waits for a job learns of its end, the next one may begin, and a bitmap keeps what it has marked.
#[test]
fn a_job_that_panics_has_failed() {
    let place = Place::new();
    let layer = place.layer("source", "qcow2");
    let image = layer.image.clone();
    let bitmaps = image.bitmaps().unwrap();
    bitmaps.add("b", None, true).unwrap();
    let disk = LiveDisk::new(layer);
    fill(&disk, &mut vec![0; SIZE as usize], &mut 3);
    let before = bitmaps.dirty_ranges("b").unwrap();
    let raw = place.layer("bad", "raw");
    let target = || Layer { disk: Arc::new(Panics), ..raw.clone() };
    let backup =
        JobOrder::Backup { target: target(), fresh: true, bitmap: Some("b".to_owned()), full: false };
    for order in [JobOrder::Mirror { target: target(), fresh: true }, backup] {
        let (mut job, events) = start(&disk, order);
        wait_for(&events, JobStatus::Failed);
        assert!(job.wait().error.unwrap().contains("panicked"));
    }
    assert_eq!(bitmaps.dirty_ranges("b").unwrap(), before);
}

#[test]
fn an_overlay_is_committed_or_streamed_while_it_is_written() {
    for commit in [true, false] {
        let place = Place::new();
        let disk = LiveDisk::new(place.layer("base", "qcow2"));
        let (mut seed, mut model) = (31, vec![0; SIZE as usize]);
        fill(&disk, &mut model, &mut seed);
        let make = |present: &Layer| Ok(place.overlay("top", "base", &present.image));
        let model = while_written(&disk, &model, seed, || disk.replace(make).unwrap());
        let frozen = content_of_open(&disk);
        let order = if commit { JobOrder::Commit } else { JobOrder::Stream };
        let (mut job, events) = start(&disk, order);
        let model = while_written(&disk, &model, seed + 9, || {
            if commit {
                wait_for(&events, JobStatus::Ready);
                job.complete(true).unwrap();
            }
            wait_for(&events, JobStatus::Completed);
        });
        job.wait();
        assert!(read(&*disk) == model);
        disk.flush().unwrap();
        drop(disk);
        if commit {
            assert!(content(&place.path("base"), "qcow2") == model);
        } else {
            assert!(frozen.is_some_and(|frozen| frozen == content(&place.path("base"), "qcow2")));
            std::fs::remove_file(place.path("base")).unwrap();
            assert!(content(&place.path("top"), "qcow2") == model);
        }
    }
}

/// What the backing image of a disk holds.
fn content_of_open(disk: &LiveDisk) -> Option<Vec<u8>> {
    disk.layer().image.backing().map(|backing| read(&*backing))
}

#[test]
fn snapshots_are_taken_between_requests() {
    let place = Place::new();
    let disk = LiveDisk::new(place.layer("disk", "qcow2"));
    let (mut seed, mut model) = (41, vec![0; SIZE as usize]);
    fill(&disk, &mut model, &mut seed);
    let snapshot = |disk: &LiveDisk| disk.with_image(|image| image.snapshots().unwrap().create("s")).unwrap();
    let model = while_written(&disk, &model, seed, || drop(snapshot(&disk)));
    assert!(read(&*disk) == model);
    assert!(disk.counts().writes > 0 && disk.counts().written_bytes > 0);
    disk.flush().unwrap();
    drop(disk);
    assert!(content(&place.path("disk"), "qcow2") == model);
}

#[test]
fn a_job_waits_when_asked_and_keeps_its_speed() {
    let place = Place::new();
    let disk = LiveDisk::new(place.layer("disk", "raw"));
    let (mut seed, mut model) = (51, vec![0; SIZE as usize]);
    fill(&disk, &mut model, &mut seed);
    let order = JobOrder::Mirror { target: place.layer("target", "raw"), fresh: false };
    // Days, as it is.
    let mut job = Job::start(&disk, order, 1, Box::new(|_| {})).unwrap();
    job.pause(true);
    let report = job.report();
    assert!(report.status == JobStatus::Paused && report.done <= STEP_MAX && report.speed == 1, "{report:?}");
    job.pause(false);
    job.set_speed(0);
    while job.report().status != JobStatus::Ready {
        std::thread::yield_now();
    }
    job.complete(true).unwrap();
    assert_eq!(job.wait().status, JobStatus::Completed);
    assert!(read(&*disk) == model);
}

/// What goes before the speed is looked at, and once more.
const STEP_MAX: u64 = 2 << 20;
