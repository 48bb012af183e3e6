//! `kill -9` at random moments of a load of writes, zeros, discards, flushes and snapshots. The process is gone, the
//! host's page cache is not: what was flushed has to be there, the check may find leaks at most.
//!
//! The test runs itself as the process that is killed: it notes in a journal what it is about to do, and each flush that
//! is done. The journal tells afterwards what each sector may hold. The same image goes on after each kill.
//! `VIREO_KILLS=500 cargo nextest run -p block --test kill` does it longer than CI does.

#[path = "power_loss/model.rs"]
mod model;
mod random;

use block::{CheckReport, CreateOptions, DiskImage, OpenOptions, Repair, create, open};
use model::{Model, SECTOR};
use random::Random;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const SIZE: usize = 6 << 20;
/// Tells the process that is killed what to do: image, format, seed, journal.
const ORDERS: &str = "VIREO_KILL_ORDERS";

/// Formats, and options of images.
const KINDS: &[(&str, &[(&str, &str)])] = &[
    ("qcow2", &[]),
    ("qcow2", &[("cluster_size", "512")]),
    ("qcow2", &[("lazy_refcounts", "on"), ("cluster_size", "4096")]),
    ("qcow2", &[("extended_l2", "on"), ("cluster_size", "16384")]),
    ("qcow2", &[("compat", "0.10"), ("cluster_size", "4096")]),
    ("vdi", &[]),
    ("vpc", &[]),
    ("vhdx", &[]),
    ("vmdk", &[]),
    ("raw", &[]),
];

type Outcome<T> = Result<T, String>;

fn text(error: impl std::error::Error + 'static) -> String {
    block::with_causes(&error)
}

/// What the process that is killed does until then.
fn work(path: &Path, format: &str, seed: u64, journal: &Path) -> Outcome<()> {
    let mut random = Random(seed);
    let mut journal = File::options().append(true).open(journal).map_err(text)?;
    let image = open(path, format, &OpenOptions::default()).map_err(text)?;
    let cluster = image.cluster_size().clamp(SECTOR as u64, 1 << 16) as usize;
    loop {
        let at = random.below((SIZE / SECTOR) as u64) as usize * SECTOR;
        let len = ((1 + random.below(96)) as usize * SECTOR).min(SIZE - at);
        let value = random.next() as u8;
        // One write each: a line is there or is not.
        let mut note = |line: String| journal.write_all(line.as_bytes()).map_err(text);
        match random.below(24) {
            0 | 1 => {
                image.flush().map_err(text)?;
                note("flushed\n".to_owned())?;
            }
            2 => {
                note(format!("{at} {len} 0\n"))?;
                image.write_zeroes(at as u64, len as u64, true).map_err(text)?;
            }
            3 | 4 => {
                let start = at / cluster * cluster;
                let len = (cluster * (1 + random.below(8) as usize)).min(SIZE - start) / cluster * cluster;
                note(format!("{start} {len} 0\n"))?;
                image.discard(start as u64, len as u64).map_err(text)?;
                if format != "qcow2" {
                    // What is discarded there may still read as before, so it is written anew.
                    note(format!("{start} {len} {value}\n"))?;
                    image.write_bytes(start as u64, &vec![value; len]).map_err(text)?;
                }
            }
            5 if at.is_multiple_of(cluster) && at + cluster <= SIZE && format == "qcow2" => {
                note(format!("{at} {cluster} {value}\n"))?;
                image.write_compressed(at as u64, &vec![value; cluster]).map_err(text)?;
            }
            6 if random.chance(20) && image.snapshots().is_some() => snapshot(&mut random, &*image)?,
            _ => {
                note(format!("{at} {len} {value}\n"))?;
                image.write_bytes(at as u64, &vec![value; len]).map_err(text)?;
            }
        }
    }
}

fn snapshot(random: &mut Random, image: &dyn DiskImage) -> Outcome<()> {
    let snapshots = image.snapshots().ok_or("no snapshots")?;
    let list = snapshots.list().map_err(text)?;
    match list.first() {
        Some(first) if list.len() > 2 || random.chance(50) => snapshots.delete(&first.id).map_err(text),
        _ => snapshots.create("s").map(drop).map_err(text),
    }
}

/// The process that is killed; nothing in an ordinary run.
#[test]
fn worker() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let words: Vec<&str> = orders.split('\n').collect();
    let [path, format, seed, journal] = words[..] else { panic!("wrong orders") };
    let error = work(Path::new(path), format, seed.parse().unwrap(), Path::new(journal)).unwrap_err();
    panic!("{error}");
}

/// An image that is killed again and again.
struct Victim {
    path: PathBuf,
    journal: PathBuf,
    format: &'static str,
    /// As after the last check.
    content: Vec<u8>,
}

impl Victim {
    fn new(folder: &Path, number: usize) -> Outcome<Self> {
        let (format, pairs) = KINDS[number % KINDS.len()];
        let path = folder.join(format!("{number}.{format}"));
        let options = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let create_options = CreateOptions { size: SIZE as u64, options, ..CreateOptions::default() };
        create(&path, format, create_options).map_err(text)?;
        Ok(Victim { journal: folder.join(format!("{number}.journal")), path, format, content: vec![0; SIZE] })
    }

    /// Runs the load, kills it, and looks. Answers how many changes and flushes there were.
    fn kill(&mut self, seed: u64) -> Outcome<(usize, usize)> {
        std::fs::write(&self.journal, b"").map_err(text)?;
        let words = [
            self.path.to_string_lossy(),
            self.format.into(),
            seed.to_string().into(),
            self.journal.to_string_lossy(),
        ];
        let program = std::env::current_exe().map_err(text)?;
        let mut child = Command::new(program)
            .args(["worker", "--exact", "--nocapture"])
            .env(ORDERS, words.join("\n"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(text)?;
        // It has begun when it has noted something; then it has any time, for whatever it does just then.
        while std::fs::metadata(&self.journal).map_err(text)?.len() == 0 {
            if child.try_wait().map_err(text)?.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let mut random = Random(seed ^ 0x5bd1);
        std::thread::sleep(Duration::from_micros({
            let longest = random.pick(&[1_000, 10_000, 60_000]);
            random.below(longest)
        }));
        child.kill().map_err(text)?;
        let output = child.wait_with_output().map_err(text)?;
        if output.status.code().is_some() {
            return Err(format!("the load ended by itself: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let (model, flushes) = self.replay()?;
        self.look(&model)?;
        Ok((model.changes, flushes))
    }

    /// What each sector may hold.
    fn replay(&self) -> Outcome<(Model, usize)> {
        let journal = std::fs::read_to_string(&self.journal).map_err(text)?;
        let mut model = Model::of(self.content.clone());
        let mut flushes = 0;
        for line in journal.lines() {
            if line == "flushed" {
                model.flush();
                flushes += 1;
                continue;
            }
            let numbers: Vec<usize> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
            let [at, len, value] = numbers[..] else { return Err(format!("the journal says {line:?}")) };
            model.write(at, len, value as u8);
        }
        Ok((model, flushes))
    }

    fn look(&mut self, model: &Model) -> Outcome<()> {
        self.second_opinion()?;
        let for_check = self.format == "qcow2";
        if for_check {
            let image = self.open(true)?;
            let report = image.check(Repair::Nothing).map_err(text)?;
            let dirty = image.info().map_err(text)?.dirty_flag;
            let harmless = |text: &String| text.starts_with("Leaked") || text.ends_with("wrongly missing");
            if report.corruptions > 0 && !dirty && !report.findings.iter().all(harmless) {
                return Err(format!("the check finds {report:#?}"));
            }
        }
        let image = self.open(false)?;
        let has_metadata = self.format != "raw";
        if has_metadata && !for_check {
            sound(&image.check(Repair::Nothing).map_err(text)?)?;
        }
        image.read_bytes(0, &mut self.content).map_err(text)?;
        model.check(&self.content)?;
        if has_metadata {
            image.check(Repair::All).map_err(text)?;
            let report = image.check(Repair::Nothing).map_err(text)?;
            sound(&report)?;
            if for_check && report.leaks > 0 {
                return Err(format!("leaks are left after the repair: {report:#?}"));
            }
        }
        image.flush().map_err(text)
    }

    fn open(&self, for_check: bool) -> Outcome<Arc<dyn DiskImage>> {
        open(&self.path, self.format, &OpenOptions { for_check, ..OpenOptions::default() }).map_err(text)
    }

    /// What `qemu-img check` says, where it has a check and the image needs no replay: status 3 is leaks.
    fn second_opinion(&self) -> Outcome<()> {
        if self.format != "qcow2" && self.format != "vdi" {
            return Ok(());
        }
        let dirty = self.format == "qcow2" && self.open(true)?.info().map_err(text)?.dirty_flag;
        let Ok(output) = Command::new("qemu-img").args(["check", "-f", self.format]).arg(&self.path).output()
        else {
            return Ok(());
        };
        match output.status.code() {
            Some(0 | 3) => Ok(()),
            _ if dirty => Ok(()),
            // A copied flag that is missing costs a copy, and counts as an error there, as does vdi's counter of blocks
            // that is ahead of its table: it is written first.
            _ if harmless_for_qemu(&String::from_utf8_lossy(&output.stderr)) => Ok(()),
            _ => Err(format!("qemu-img check: {output:?}")),
        }
    }
}

fn sound(report: &CheckReport) -> Outcome<()> {
    match (report.corruptions, report.check_errors) {
        (0, 0) => Ok(()),
        _ => Err(format!("the check finds {report:#?}")),
    }
}

/// Only leaks and references that are about to be given back.
fn harmless_for_qemu(said: &str) -> bool {
    let leak = |line: &str| line.starts_with("Leaked") || line.contains("OFLAG_COPIED");
    said.lines().all(|line| line.is_empty() || leak(line) || counts_too_many(line))
}

/// Whether the line says that vdi's header counts more blocks than the table has: "is" is the table's number there, and
/// "should be" the header's.
fn counts_too_many(line: &str) -> bool {
    let numbers =
        line.strip_prefix("ERROR: allocated blocks mismatch, is ").map(|rest| rest.split(", should be "));
    let numbers: Vec<u64> = numbers.into_iter().flatten().filter_map(|number| number.parse().ok()).collect();
    matches!(numbers[..], [table, header] if header > table)
}

#[test]
fn only_a_counter_that_is_too_high_is_harmless() {
    assert!(harmless_for_qemu("ERROR: allocated blocks mismatch, is 0, should be 2\n"));
    assert!(!harmless_for_qemu("ERROR: allocated blocks mismatch, is 2, should be 0\n"));
    assert!(!harmless_for_qemu("ERROR: block index 3 out of range, is 7\n"));
}

#[test]
fn kills_lose_nothing_that_was_flushed() {
    let count = std::env::var("VIREO_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(30);
    let folder = tempfile::tempdir().unwrap();
    let mut victims: Vec<Victim> =
        (0..KINDS.len()).map(|number| Victim::new(folder.path(), number).unwrap()).collect();
    let (mut changes, mut flushes) = (0, 0);
    for kill in 0..count {
        let victim = &mut victims[kill % KINDS.len()];
        let counted = victim.kill(kill as u64 + 1);
        let path = victim.path.display().to_string();
        let (its_changes, its_flushes) =
            counted.unwrap_or_else(|error| panic!("kill {kill} of {path}: {error}"));
        changes += its_changes;
        flushes += its_flushes;
    }
    println!("{count} kills, {changes} changes, {flushes} flushes: nothing lost");
    assert!(changes > count, "the load did nothing");
}
