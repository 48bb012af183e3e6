//! The disk against a target that others wrote, `tgtd`; beside it, QEMU's initiator on the same logical unit.

#[path = "../../block/tests/random/mod.rs"]
mod random;
mod tgt;

use block::{BlockBackend, Buffers, Transfer};
use iscsi::{IscsiError, Location};
use random::Random;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tgt::{NAME, Target};

const SIZE: usize = 8 << 20;

fn open(uri: &str) -> Result<Arc<dyn BlockBackend>, IscsiError> {
    iscsi::open(&Location::parse(uri).unwrap().unwrap(), false)
}

fn error(result: Result<Arc<dyn BlockBackend>, IscsiError>) -> String {
    block::with_causes(&result.err().expect("this must fail"))
}

/// A file of random bytes for a logical unit.
fn content(folder: &Path, name: &str, seed: u64) -> (PathBuf, Vec<u8>) {
    let path = folder.join(name);
    let mut random = Random(seed);
    let bytes: Vec<u8> = (0..SIZE / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

/// QEMU's initiator, where its driver is installed.
fn qemu(arguments: &[&str], uri: &str) -> bool {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img must run");
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("Unknown driver") || words.contains("Unknown protocol") {
        eprintln!("qemu-img {uri}: not compared, it has no iSCSI driver (package qemu-block-extra)");
        return false;
    }
    assert!(output.status.success(), "qemu-img {arguments:?}: {words}");
    true
}

/// Random requests of any alignment, compared with a model, and at the end with the target's file.
fn exercise(disk: &dyn BlockBackend, model: &mut [u8], rounds: usize) {
    let mut random = Random(rounds as u64);
    for _ in 0..rounds {
        let offset = random.below(SIZE as u64) as usize;
        let most = random.pick(&[600, 5000, 70_000, 1_500_000]);
        let len = (random.below(most) as usize).min(SIZE - offset);
        let range = offset..offset + len;
        let at = offset as u64;
        match random.below(10) {
            0..4 => {
                let mut bytes = vec![0; len];
                let (first, second) = bytes.split_at_mut(len / 3);
                disk.read_at(at, &mut [IoSliceMut::new(first), IoSliceMut::new(second)]).unwrap();
                assert!(bytes == model[range], "{at} {len}");
            }
            4..8 => {
                let bytes = vec![random.next() as u8; len];
                let (first, second) = bytes.split_at(len / 2);
                disk.write_at(at, &[IoSlice::new(first), IoSlice::new(second)]).unwrap();
                model[range].copy_from_slice(&bytes);
            }
            8 => {
                disk.write_zeroes(at, len as u64, random.chance(50)).unwrap();
                model[range].fill(0);
            }
            _ => disk.flush().unwrap(),
        }
    }
    disk.flush().unwrap();
}

#[test]
fn what_is_written_is_what_the_target_and_other_initiators_have() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let Some(mut target) = Target::start(folder) else { return };
    target.tell("--op update --mode target --tid 1 --name HeaderDigest --value CRC32C,None");
    target.tell("--op update --mode target --tid 1 --name DataDigest --value CRC32C,None");
    for (lun, block, more) in
        [(1, 512, ""), (2, 4096, ""), (3, 512, "?header_digest=crc32c&data_digest=crc32c")]
    {
        let (path, mut model) = content(folder, &format!("{lun}.raw"), 7);
        target.unit(lun, &path, block, false);
        let uri = target.uri("", lun, more);
        let disk = open(&uri).unwrap();
        assert_eq!(disk.size(), SIZE as u64);
        exercise(&*disk, &mut model, 150);
        assert!(std::fs::read(&path).unwrap() == model, "the file of {uri}");
        drop(disk);
        let plain = target.uri("", lun, "");
        qemu(&["compare", "-f", "raw", "-F", "raw", &plain, path.to_str().unwrap()], &plain);
        // The other way: QEMU writes, we read.
        let (other, bytes) = content(folder, "other.raw", 8);
        if qemu(&["convert", "-n", "-f", "raw", "-O", "raw", other.to_str().unwrap(), &plain], &plain) {
            let disk = open(&uri).unwrap();
            let mut all = vec![0; SIZE];
            disk.read_bytes(0, &mut all).unwrap();
            assert!(all == bytes, "{uri}");
        }
    }
}

#[test]
fn many_requests_at_once_do_what_one_after_the_other_would() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut target) = Target::start(folder.path()) else { return };
    let (path, mut model) = content(folder.path(), "a.raw", 7);
    target.unit(1, &path, 512, false);
    let disk = open(&target.uri("", 1, "")).unwrap();
    assert!(disk.batches());
    let lengths = [512, 4096, 9000 / 512 * 512, 200 << 10, 2 << 20];
    let mut reads: Vec<Vec<u8>> = (0..40).map(|n| vec![0; lengths[n % lengths.len()]]).collect();
    let offsets: Vec<usize> = (0..40).map(|n| n * 61_440 % (SIZE - (2 << 20))).collect();
    let mut batch: Vec<Transfer> = reads
        .iter_mut()
        .zip(&offsets)
        .map(|(bytes, at)| Transfer::new(*at as u64, Buffers::Read(vec![IoSliceMut::new(bytes)])))
        .collect();
    disk.transfer(&mut batch.iter_mut().collect::<Vec<_>>());
    assert!(batch.iter().all(|transfer| transfer.result.is_ok()));
    drop(batch);
    for (bytes, at) in reads.iter().zip(&offsets) {
        assert!(*bytes == model[*at..at + bytes.len()]);
    }
    let written: Vec<Vec<u8>> = (0..30).map(|n| vec![n as u8; 200 << 10]).collect();
    let mut batch: Vec<Transfer> = written
        .iter()
        .enumerate()
        .map(|(n, bytes)| Transfer::new((n * (200 << 10)) as u64, Buffers::Write(vec![IoSlice::new(bytes)])))
        .collect();
    disk.transfer(&mut batch.iter_mut().collect::<Vec<_>>());
    assert!(batch.iter().all(|transfer| transfer.result.is_ok()));
    disk.flush().unwrap();
    for (n, bytes) in written.iter().enumerate() {
        model[n * (200 << 10)..][..bytes.len()].copy_from_slice(bytes);
    }
    assert!(std::fs::read(&path).unwrap() == model);
}

#[test]
fn space_of_thin_units_is_given_back_and_seen() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let Some(mut target) = Target::start(folder.path()) else { return };
    let (path, mut model) = content(folder.path(), "thin.raw", 7);
    target.unit(1, &path, 512, true);
    let disk = open(&target.uri("", 1, "")).unwrap();
    assert!(disk.capabilities().discard);
    let before = std::fs::metadata(&path).unwrap().blocks();
    disk.discard(1 << 20, 4 << 20).unwrap();
    disk.flush().unwrap();
    let after = std::fs::metadata(&path).unwrap().blocks();
    assert!(before - after >= (4 << 20) / 512 - 64, "{before} {after}");
    model[1 << 20..5 << 20].fill(0);
    let mut all = vec![0; SIZE];
    disk.read_bytes(0, &mut all).unwrap();
    assert!(all == model);
    let first = disk.block_status(0, SIZE as u64).unwrap();
    let hole = disk.block_status(1 << 20, SIZE as u64 - (1 << 20)).unwrap();
    assert_eq!((first.length, first.data, hole.length, hole.zero), (1 << 20, true, 4 << 20, true));
}

#[test]
fn secrets_let_in_and_others_keep_out() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut target) = Target::start(folder.path()) else { return };
    let (path, model) = content(folder.path(), "a.raw", 7);
    target.unit(1, &path, 512, false);
    target.tell("--op new --mode account --user me --password rightsecret1");
    target.tell("--op bind --mode account --tid 1 --user me");
    let reads = |uri: &str| {
        let mut bytes = vec![0; 4096];
        open(uri).unwrap().read_bytes(4096, &mut bytes).unwrap();
        assert!(bytes == model[4096..8192]);
    };
    reads(&target.uri("me%rightsecret1@", 1, ""));
    let file = folder.path().join("secret");
    std::fs::write(&file, "rightsecret1\n").unwrap();
    reads(&target.uri("me@", 1, &format!("?secret_file={}", file.display())));
    for user in ["me%wrongsecret1@", "you%rightsecret1@", ""] {
        let words = error(open(&target.uri(user, 1, "")));
        assert!(words.contains("USER%SECRET") && !words.contains("secret1"), "{user}: {words}");
    }
    // The target proves that it knows a secret too.
    target.tell("--op new --mode account --user it --password theirsecret2");
    target.tell("--op bind --mode account --tid 1 --user it --outgoing");
    reads(&target.uri("me%rightsecret1@", 1, "?target_user=it&target_password=theirsecret2"));
    let words =
        error(open(&target.uri("me%rightsecret1@", 1, "?target_user=it&target_password=notthatsecret")));
    assert!(words.contains("does not prove"), "{words}");
}

#[test]
fn what_is_not_there_is_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut target) = Target::start(folder.path()) else { return };
    let (path, _) = content(folder.path(), "a.raw", 7);
    target.unit(1, &path, 512, false);
    let words = error(open(&target.uri("", 1, "").replace(NAME, "iqn.2026-01.org.example:other")));
    assert!(words.contains("no target of this name"), "{words}");
    let words = error(open(&target.uri("", 7, "")));
    assert!(words.contains("no such logical unit"), "{words}");
    // Number 0 is the target's controller.
    let words = error(open(&target.uri("", 0, "")));
    assert!(words.contains("no disk but a device of type 0x0c"), "{words}");
    let uri = target.uri("", 1, "?timeout=2");
    target.kill();
    let words = error(open(&uri));
    assert!(words.contains("connecting failed: Connection refused"), "{words}");
}

#[test]
fn a_write_protected_unit_is_only_read() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut target) = Target::start(folder.path()) else { return };
    let (path, model) = content(folder.path(), "a.raw", 7);
    target.unit(1, &path, 512, false);
    target.tell("--op update --mode logicalunit --tid 1 --lun 1 --params readonly=1");
    let uri = target.uri("", 1, "");
    let words = error(open(&uri));
    assert!(words.contains("write-protected") && words.contains("readonly=on"), "{words}");
    let disk = iscsi::open(&Location::parse(&uri).unwrap().unwrap(), true).unwrap();
    let mut bytes = vec![0; 4096];
    disk.read_bytes(0, &mut bytes).unwrap();
    assert!(bytes == model[..4096]);
    assert_eq!(disk.write_bytes(0, &bytes).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_target_that_begins_anew_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut target) = Target::start(folder.path()) else { return };
    let (path, mut model) = content(folder.path(), "a.raw", 7);
    target.unit(1, &path, 512, false);
    let disk = open(&target.uri("", 1, "?timeout=30")).unwrap();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let parts: Vec<_> = model.chunks_mut(SIZE / 4).enumerate().collect();
        for (number, part) in parts {
            let (disk, end) = (&disk, &end);
            scope.spawn(move || {
                let mut random = Random(number as u64 + 1);
                while !end.load(Ordering::Relaxed) {
                    let at = random.below(part.len() as u64 - 65_536) as usize & !511;
                    let len = random.pick(&[512, 4096, 65_536]);
                    let offset = (number * SIZE / 4 + at) as u64;
                    let mut bytes = vec![0; len];
                    disk.read_bytes(offset, &mut bytes).unwrap();
                    assert!(bytes == part[at..at + len]);
                    bytes.fill(random.next() as u8);
                    disk.write_bytes(offset, &bytes).unwrap();
                    part[at..at + len].copy_from_slice(&bytes);
                }
            });
        }
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(300));
            target.kill();
            assert!(target.restart());
        }
        std::thread::sleep(Duration::from_millis(300));
        end.store(true, Ordering::Relaxed);
    });
    disk.flush().unwrap();
    assert!(std::fs::read(&path).unwrap() == model);
    // One that stays away is an error, after the time that the URI says, and no hang.
    drop(disk);
    let disk = open(&target.uri("", 1, "?timeout=1")).unwrap();
    target.kill();
    let begin = Instant::now();
    let failure = disk.read_bytes(0, &mut [0; 512]).unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::NotConnected);
    assert!(failure.to_string().contains("was gone for 1 s"), "{failure}");
    assert!(begin.elapsed() < Duration::from_secs(60));
}
